"""The figures, from rows given by hand."""

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dashboard.snapshot import (
    DOWN,
    EMPTY,
    LIVE,
    PAUSED,
    STALE,
    Figures,
    Snapshot,
    View,
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


def seen(view: View | None = None, rows: list[Row] = ROWS) -> Figures:
    return figures(Snapshot(as_trades(rows), read_at=0.0), view or View())


def test_key_figures() -> None:
    shown = seen()
    assert (shown.count, shown.total_volume, shown.most_active) == (5, 170, "AAPL")
    assert shown.average_price == pytest.approx((110 + 300 + 90 + 310 + 100) / 5)
    assert shown.vwap == pytest.approx((1100 + 15000 + 2700 + 6200 + 6000) / 170)
    assert shown.buy_share == pytest.approx(90 / 170)


def test_watchlist_compares_with_the_first_trade_in_the_window() -> None:
    apple = seen().watchlist.loc["AAPL"]
    assert apple["last"] == 110
    assert apple["change"] == pytest.approx(10)
    assert apple["change_percent"] == pytest.approx(10)
    assert (apple["high"], apple["low"], apple["volume"]) == (110, 90, 100)
    assert apple["vwap"] == pytest.approx((1100 + 2700 + 6000) / 100)
    assert apple["buy_share"] == pytest.approx(0.7)
    assert apple["prices"] == [100, 90, 110]


def test_watchlist_is_in_alphabetical_order_so_that_rows_stay_where_they_are() -> None:
    assert list(seen().watchlist.index) == ["AAPL", "TSLA"]
    assert list(seen(rows=ROWS[::-1]).watchlist.index) == ["AAPL", "TSLA"]


@pytest.mark.parametrize(
    ("view", "count", "volume"),
    [(View(("TSLA",)), 2, 70), (View((), "buy"), 3, 90), (View(("AAPL",), "sell"), 1, 30), (View(("NONE",)), 0, 0)],
)
def test_a_view_narrows_every_figure(view: View, count: int, volume: int) -> None:
    shown = seen(view)
    assert (shown.count, shown.total_volume, len(shown.trades)) == (count, volume, count)
    assert shown.watchlist["volume"].sum() == volume


def test_viewers_of_the_same_view_share_the_work() -> None:
    snapshot = Snapshot(as_trades(ROWS), read_at=0.0)
    assert figures(snapshot, View(("AAPL",))) is figures(snapshot, View(("AAPL",)))
    assert figures(snapshot, View()) is not figures(replace(snapshot), View())


def test_no_trades_give_no_averages() -> None:
    shown = seen(rows=[])
    assert (shown.count, shown.total_volume) == (0, 0)
    assert (shown.average_price, shown.vwap, shown.buy_share, shown.most_active) == (None, None, None, None)
    assert shown.watchlist.empty
    assert span_seconds(shown.trades) == 0
    assert trades_per_second(shown.trades) is None


def test_one_trade_is_a_window_without_a_rate() -> None:
    shown = seen(rows=ROWS[:1])
    assert (shown.count, shown.average_price, shown.vwap, shown.buy_share) == (1, 110, 110, 1)
    assert shown.watchlist.loc["AAPL", "change"] == 0
    assert trades_per_second(shown.trades) is None


def test_two_trades_in_the_same_microsecond_keep_the_order_they_come_in() -> None:
    first, second = row(0, "AAPL", "100.00", 1, "buy"), row(0, "AAPL", "101.00", 1, "sell")
    shown = seen(rows=[second, first])
    assert shown.watchlist.loc["AAPL", "last"] == 101
    assert trades_per_second(shown.trades) is None


def test_the_largest_price_and_volume_are_exact() -> None:
    rows = [row(n, "BRK", "99999999.99", 2_147_483_647, "buy") for n in range(200, 0, -1)]
    shown = seen(rows=rows)
    assert shown.total_volume == 200 * 2_147_483_647
    assert f"{shown.average_price:.2f}" == f"{shown.vwap:.2f}" == "99999999.99"


def test_rate_and_span() -> None:
    trades = as_trades(ROWS)
    assert span_seconds(trades) == 4
    assert trades_per_second(trades) == 1


def test_types_do_not_depend_on_what_the_database_held() -> None:
    assert (as_trades().dtypes == as_trades(ROWS).dtypes).all()
    assert as_trades(ROWS)["timestamp"].dtype == "datetime64[us]"


def test_a_row_with_nulls_is_no_trade() -> None:
    assert len(as_trades([*ROWS, (None, "AAPL", None, 1, "buy", NOON)])) == len(ROWS)


GOOD = Snapshot(as_trades(ROWS), read_at=0.0)
NOTHING = Snapshot(as_trades())


@pytest.mark.parametrize(
    ("snapshot", "trade_age", "query_age", "paused", "word"),
    [
        (GOOD, 1.0, 0.5, False, LIVE),
        (GOOD, -60.0, 0.5, False, LIVE),
        (GOOD, 11.0, 0.5, False, STALE),
        (GOOD, 1.0, 0.5, True, PAUSED),
        (GOOD, 1.0, 6.5, False, DOWN),  # it hangs
        (replace(GOOD, problem="gone"), 1.0, 0.5, False, DOWN),
        (replace(NOTHING, read_at=0.0), None, 0.5, False, EMPTY),
        (replace(NOTHING, problem="no table", missing=True), None, None, False, EMPTY),
        (replace(GOOD, problem="no table", missing=True), 1.0, 2.0, False, DOWN),
        (NOTHING, None, None, False, DOWN),
    ],
)
def test_the_word_for_the_state(
    snapshot: Snapshot, trade_age: float | None, query_age: float | None, paused: bool, word: str
) -> None:
    assert state(snapshot, trade_age, query_age, interval=2, paused=paused) == word


ANY_ROW = st.tuples(
    st.uuids().map(str),
    st.text(min_size=1, max_size=10),
    st.decimals(min_value=Decimal("0.01"), max_value=Decimal("99999999.99"), places=2),
    st.integers(min_value=1, max_value=2_147_483_647),
    st.sampled_from(["buy", "sell"]),
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)),
)


@given(st.lists(ANY_ROW, min_size=1, max_size=40))
def test_whatever_the_trades_the_figures_agree_with_each_other(rows: list[Row]) -> None:
    shown = seen(rows=sorted(rows, key=lambda row: row[5], reverse=True))
    assert shown.watchlist["volume"].sum() == shown.total_volume
    assert shown.buy_share is not None
    assert 0 <= shown.buy_share <= 1
    assert shown.vwap is not None
    assert shown.watchlist["low"].min() * (1 - 1e-9) <= shown.vwap <= shown.watchlist["high"].max() * (1 + 1e-9)
    assert (shown.watchlist["low"] <= shown.watchlist["last"]).all()
    assert isinstance(shown.trades, pd.DataFrame)
