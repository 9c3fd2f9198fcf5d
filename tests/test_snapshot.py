"""The figures, computed from handwritten rows."""

import re
from csv import reader
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dashboard.feed import MISSING_TABLE, Answer
from pipeline.dashboard.snapshot import (
    DOWN,
    EMPTY,
    LIVE,
    STALE,
    Figures,
    Line,
    Snapshot,
    as_csv,
    as_snapshot,
    as_trades,
    figures,
    span_seconds,
    state,
    trades_per_second,
)

NOON = datetime(2026, 1, 31, 12, 0, 0)
Row = tuple[str, str, object, int, str, datetime]


def row(seconds: float, ticker: str, price: str, volume: int, side: str) -> Row:
    moment = NOON + timedelta(seconds=seconds)
    return f"{ticker} at {seconds}", ticker, Decimal(price), volume, side, moment


# Newest first, as the database delivers them.
ROWS = [
    row(4, "AAPL", "110.00", 10, "buy"),
    row(3, "TSLA", "300.00", 50, "sell"),
    row(2, "AAPL", "90.00", 30, "sell"),
    row(1, "TSLA", "310.00", 20, "buy"),
    row(0, "AAPL", "100.00", 60, "buy"),
]


def seen(tickers: tuple[str, ...] = (), side: str = "all", rows: list[Row] = ROWS) -> Figures:
    return figures(Snapshot(as_trades(rows)), tickers, side)


def line(ticker: str, rows: list[Row] = ROWS) -> Line:
    return next(line for line in seen(rows=rows).lines if line.ticker == ticker)


def test_key_figures() -> None:
    shown = seen()
    assert (len(shown.trades), shown.total_volume, shown.most_active) == (5, 170, "AAPL")
    assert shown.average_price == pytest.approx((110 + 300 + 90 + 310 + 100) / 5)
    assert shown.vwap == pytest.approx((1100 + 15000 + 2700 + 6200 + 6000) / 170)
    assert shown.buy_share == pytest.approx(90 / 170)


def test_a_ticker_is_compared_with_its_first_trade_in_the_window() -> None:
    apple = line("AAPL")
    assert (apple.last, apple.change, apple.volume, apple.bought) == (110, 10, 100, 70)
    assert apple.prices == [100, 90, 110]
    assert apple.changes == [0, -10, 10]
    assert apple.vwap == pytest.approx((1100 + 2700 + 6000) / 100)


def test_a_change_is_one_of_whole_cents() -> None:
    """184.21 − 184.26 is not −0.05 in floats, and 0.3 − 0.1 − 0.2 is not 0."""
    assert line("A", [row(1, "A", "184.21", 1, "buy"), row(0, "A", "184.26", 1, "buy")]).change == -0.05


def test_tickers_are_in_alphabetical_order_so_that_rows_stay_where_they_are() -> None:
    assert [line.ticker for line in seen().lines] == ["AAPL", "TSLA"]
    assert [line.ticker for line in seen(rows=ROWS[::-1]).lines] == ["AAPL", "TSLA"]


@pytest.mark.parametrize(
    ("tickers", "side", "count", "volume"),
    [(("TSLA",), "all", 2, 70), ((), "buy", 3, 90), (("AAPL",), "sell", 1, 30), (("NONE",), "all", 0, 0)],
)
def test_a_choice_narrows_every_figure(tickers: tuple[str, ...], side: str, count: int, volume: int) -> None:
    shown = seen(tickers, side)
    assert (len(shown.trades), shown.total_volume) == (count, volume)
    assert sum(line.volume for line in shown.lines) == volume


def test_viewers_who_chose_the_same_share_the_work() -> None:
    snapshot = Snapshot(as_trades(ROWS))
    assert figures(snapshot, ("AAPL",)) is figures(snapshot, ("AAPL",))
    assert figures(snapshot) is not figures(replace(snapshot))


def test_no_trades_give_no_averages() -> None:
    shown = seen(rows=[])
    assert (len(shown.trades), shown.lines, shown.total_volume) == (0, [], 0)
    assert (shown.average_price, shown.vwap, shown.buy_share, shown.most_active) == (None, None, None, None)
    assert span_seconds(shown.trades) == 0
    assert trades_per_second(Snapshot(shown.trades)) is None


def test_one_trade_is_a_window_without_a_rate() -> None:
    shown = seen(rows=ROWS[:1])
    assert (len(shown.trades), shown.average_price, shown.vwap, shown.buy_share) == (1, 110, 110, 1)
    assert shown.lines[0].change == 0
    assert trades_per_second(Snapshot(shown.trades)) is None


def test_two_trades_in_the_same_microsecond_keep_the_order_they_come_in() -> None:
    first, second = row(0, "AAPL", "100.00", 1, "buy"), row(0, "AAPL", "101.00", 1, "sell")
    shown = seen(rows=[second, first])
    assert shown.lines[0].last == 101
    assert trades_per_second(Snapshot(shown.trades)) is None


def test_the_largest_price_and_volume_are_exact() -> None:
    rows = [row(n, "BRK", "99999999.99", 2_147_483_647, "buy") for n in range(200, 0, -1)]
    shown = seen(rows=rows)
    assert shown.total_volume == 200 * 2_147_483_647
    assert f"{shown.average_price:.2f}" == f"{shown.vwap:.2f}" == "99999999.99"


def test_rate_and_span() -> None:
    trades = as_trades(ROWS)
    assert span_seconds(trades) == 4
    assert trades_per_second(Snapshot(trades)) == 1


def test_a_night_without_trades_does_not_count_in_the_rate() -> None:
    evening = [row(n - 40_000, "AAPL", "1.00", 1, "buy") for n in range(4, -1, -1)]
    assert trades_per_second(Snapshot(as_trades(ROWS + evening))) == 1


def test_types_do_not_depend_on_what_the_database_held() -> None:
    assert (as_trades().dtypes == as_trades(ROWS).dtypes).all()
    assert as_trades(ROWS)["timestamp"].dtype == "datetime64[us]"


def test_a_row_with_nulls_is_no_trade() -> None:
    assert len(as_trades([*ROWS, (None, "AAPL", None, 1, "buy", NOON)])) == len(ROWS)


def test_a_snapshot_tells_of_whom_it_was_asked() -> None:
    assert as_snapshot([(*ROWS[0], True, 3)]).standby
    assert as_snapshot([(None,) * 6 + (False, 200)]).ahead == 200


GOOD = Answer(Snapshot(as_trades(ROWS)), read_at=0.0)
NOTHING = Answer(Snapshot())


@pytest.mark.parametrize(
    ("answer", "trade_age", "query_age", "word"),
    [
        (GOOD, 1.0, 0.5, LIVE),
        (GOOD, -60.0, 0.5, LIVE),
        (GOOD, 11.0, 0.5, STALE),
        (GOOD, 14.0, 5.0, LIVE),  # an answer shared with other viewers: at its time, the trade was nine seconds old
        (GOOD, 16.0, 5.0, STALE),
        (GOOD, 1.0, 6.5, DOWN),  # the query hangs
        (replace(GOOD, problem="gone"), 1.0, 0.5, DOWN),
        (replace(NOTHING, read_at=0.0), None, 0.5, EMPTY),
        (replace(NOTHING, problem=MISSING_TABLE), None, None, EMPTY),
        (replace(GOOD, problem=MISSING_TABLE), 1.0, 2.0, DOWN),
        (NOTHING, None, None, DOWN),
    ],
)
def test_the_word_for_the_state(
    answer: Answer[Snapshot], trade_age: float | None, query_age: float | None, word: str
) -> None:
    assert state(answer, trade_age, query_age, silent_after=6) == word


def read_back(csv: str) -> list[tuple[str, ...]]:
    """Parse the page's CSV, with the apostrophe before formulas removed as documented."""
    rows = list(reader(StringIO(csv, newline="")))[1:]
    return [tuple(re.sub(r"^'(?='*[=+\-@\t\r])", "", cell) for cell in cells) for cells in rows]


def test_csv_has_the_tables_columns_oldest_first_to_the_cent_and_the_microsecond() -> None:
    rows = [row(0.000001, "TSLA", "99999999.99", 7, "sell"), row(0, "AAPL", "0.10", 1, "buy")]
    assert as_csv(as_trades(rows)).splitlines() == [
        "trade_id,ticker,price,volume,side,timestamp",
        "AAPL at 0,AAPL,0.10,1,buy,2026-01-31T12:00:00.000000Z",
        "TSLA at 1e-06,TSLA,99999999.99,7,sell,2026-01-31T12:00:00.000001Z",
    ]


@pytest.mark.parametrize(
    "ticker", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''=1", "'", "A,B", 'A"B', "=\n1"]
)
def test_no_cell_of_the_csv_is_a_formula_and_each_reads_back(ticker: str) -> None:
    csv = as_csv(as_trades([row(0, ticker, "1.00", 1, "buy")]))
    assert not any(cell[0] in "=+-@\t\r" for cells in reader(StringIO(csv, newline="")) for cell in cells)
    assert read_back(csv)[0][1] == ticker


ANY_ROW = st.tuples(
    st.uuids().map(str),
    st.text(min_size=1, max_size=10),
    st.decimals(min_value=Decimal("0.01"), max_value=Decimal("99999999.99"), places=2),
    st.integers(min_value=1, max_value=2_147_483_647),
    st.sampled_from(["buy", "sell"]),
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)),
)


@settings(deadline=None, max_examples=30)
@given(st.lists(ANY_ROW, min_size=1, max_size=40))
def test_whatever_the_trades_the_figures_agree_with_each_other(rows: list[Row]) -> None:
    shown = seen(rows=sorted(rows, key=lambda row: row[5], reverse=True))
    assert sum(line.volume for line in shown.lines) == shown.total_volume
    assert shown.buy_share is not None
    assert 0 <= shown.buy_share <= 1
    lowest, highest = min(min(line.prices) for line in shown.lines), max(max(line.prices) for line in shown.lines)
    assert shown.vwap is not None
    assert lowest * (1 - 1e-9) <= shown.vwap <= highest * (1 + 1e-9)
    texts = [
        (cells[0], cells[1], Decimal(cells[2]), int(cells[3]), cells[4]) for cells in read_back(as_csv(shown.trades))
    ]
    assert texts == [row[:5] for row in sorted(rows, key=lambda row: row[5], reverse=True)[::-1]]
