"""Candles counted step by step equal those from a single pass over all trades, whatever else happens to the table."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from weakref import ref

import pytest
from sqlalchemy import Engine, text

from pipeline.dashboard import candles as module
from pipeline.dashboard.candles import STEPS, Candle, History, candles_of, floor, read_history, step_for
from pipeline.dashboard.feed import read_only_engine
from pipeline.dashboard.queries import CHUNK, STRETCH
from tests.live_page import Market, Row, insert, utc_now
from tests.services import Database

NOON = datetime(2026, 1, 31, 12, 0, 0)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = read_only_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks so small that a few hundred trades fill many."""
    monkeypatch.setattr(module, "STRETCH", text(str(STRETCH).replace(f"LIMIT {CHUNK}", "LIMIT 100")))
    monkeypatch.setattr(module, "CHUNK", 100)


def trades(count: int, every: float, start: datetime = NOON, seed: int = 1) -> list[Row]:
    market = Market(seed)
    return [market.trade(start + timedelta(seconds=n * every)) for n in range(count)]


def whole(engine: Engine, history: History | None = None) -> History:
    """Take turns until the whole history has been read."""
    history = read_history(engine, history or History())
    while not history.complete:
        history = read_history(engine, history)
    return history


def expected(rows: list[Row], ticker: str) -> list[Candle]:
    """Return the candles, computed in a single pass."""
    own = sorted((row for row in rows if row[1] == ticker), key=lambda row: row[5])
    span = floor(own[-1][5], STEPS[0]) - floor(own[0][5], STEPS[0])
    step = next(step for step in STEPS if span <= 240 * step and 4 * span <= len(own) * step)
    groups: dict[datetime, list[Row]] = defaultdict(list)
    for row in own:
        groups[floor(row[5], step)].append(row)
    return [
        Candle(
            start,
            group[0][2],
            max(row[2] for row in group),
            min(row[2] for row in group),
            group[-1][2],
            sum(row[3] for row in group),
            round(sum(row[2] * row[3] for row in group), 2),
            len(group),
        )
        for start, group in groups.items()
    ]


def shown(history: History, ticker: str) -> list[Candle]:
    """Return a ticker's candles, each notional rounded to the cent, which removes the error of adding up floats."""
    return [candle._replace(notional=round(candle.notional, 2)) for candle in candles_of(history, ticker)[1]]


def count_of(history: History) -> int:
    return sum(candle.trades for ticker in history.tickers for candle in shown(history, ticker))


def test_candles_of_a_ticker_that_is_new_are_as_long_as_their_title_says(engine: Engine, database: Database) -> None:
    rows = trades(1500, 4.1)
    late = [(f"late {n}", "LATE", 10.0, 1, "buy", rows[-1][5] - timedelta(seconds=n)) for n in range(400)]
    insert(database, rows + late)
    step, candles = candles_of(whole(engine), "LATE")
    assert {candle.start: candle.trades for candle in candles} == Counter(floor(row[5], step) for row in late)


@pytest.mark.parametrize("every", [0.02, 0.37, 4.1, 61.0])
def test_candles_are_what_one_pass_over_all_trades_gives(engine: Engine, database: Database, every: float) -> None:
    rows = trades(1500, every)
    insert(database, rows)
    history = whole(engine)
    for ticker in {row[1] for row in rows}:
        assert shown(history, ticker) == expected(rows, ticker)


def test_new_trades_are_added_turn_by_turn(engine: Engine, database: Database) -> None:
    rows = trades(900, 0.37)
    insert(database, rows[:150])
    history = whole(engine)
    for done in range(150, 900, 75):
        insert(database, rows[done : done + 75])
        history = read_history(engine, history)
        assert count_of(history) == done + 75
    assert shown(history, "NVDA") == expected(rows, "NVDA")


def test_a_refresh_copies_only_what_is_new_and_leaves_nothing_behind(engine: Engine, database: Database) -> None:
    rows = trades(600, 0.5)
    insert(database, [("once", "QUIET", 10.0, 1, "buy", NOON), *rows[:-20]])
    history = whole(engine)
    assert candles_of(history, "QUIET") is candles_of(history, "QUIET")  # made once for all viewers
    insert(database, rows[-20:])
    again = read_history(engine, history)
    assert again.settled["QUIET"] is history.settled["QUIET"]
    last = ref(history)
    del history
    assert last() is None


@pytest.mark.parametrize(("every", "late"), [(0.02, 540), (4.0, 598)], ids=["many: two seconds fill a chunk", "few"])
def test_a_trade_may_arrive_late_among_many_and_among_few(
    every: float, late: int, engine: Engine, database: Database
) -> None:
    rows = trades(600, every)
    trade = rows.pop(late)
    insert(database, rows[:500])
    history = whole(engine)
    insert(database, rows[500:])
    history = read_history(engine, history)
    insert(database, [trade])
    assert count_of(read_history(engine, history)) == 600


def test_the_newest_candles_are_there_though_older_trades_cannot_be_read(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert(database, trades(600, 0.5))
    monkeypatch.setattr(module, "STRETCH", text("SELECT 1 / 0"))
    history = read_history(engine, History())
    assert history.tickers
    assert not history.complete


def test_a_trade_may_arrive_some_seconds_late(engine: Engine, database: Database) -> None:
    rows = trades(600, 0.5)
    late = rows.pop(-10)
    insert(database, rows[:-20])
    history = whole(engine)
    insert(database, rows[-20:])
    history = read_history(engine, history)
    insert(database, [late])
    history = read_history(engine, history)
    assert shown(history, late[1]) == expected([*rows, late], late[1])


def test_trading_begins_after_an_hour_without_a_trade(engine: Engine, database: Database) -> None:
    yesterday, today = trades(300, 1, NOON - timedelta(days=1)), trades(300, 1, seed=2)
    insert(database, yesterday)
    history = whole(engine)
    assert shown(history, "TSLA") == expected(yesterday, "TSLA")
    insert(database, today)
    history = whole(engine, history)
    assert shown(history, "TSLA") == expected(today, "TSLA") == shown(whole(engine), "TSLA")


@pytest.mark.parametrize("year", [1, 1969, 2999])
def test_a_trade_of_another_age_leaves_the_others_as_they_are(engine: Engine, database: Database, year: int) -> None:
    rows = trades(300, 1)
    insert(database, [*rows, ("elsewhen", "TSLA", 1.0, 1, "buy", datetime(year, 1, 1))])
    assert shown(whole(engine), "TSLA") == expected(rows, "TSLA")


@pytest.mark.parametrize("ahead", [timedelta(seconds=40), timedelta(hours=2)])
def test_a_trade_from_a_fast_clock_takes_nothing_from_the_others(
    engine: Engine, database: Database, ahead: timedelta
) -> None:
    insert(database, trades(50, 0.1, utc_now() - timedelta(seconds=10)))
    insert(database, [("ahead", "TSLA", 1.0, 1, "buy", utc_now() + ahead)])
    history = whole(engine)
    insert(database, trades(50, 0.1, utc_now() - timedelta(seconds=5), seed=2))
    assert count_of(read_history(engine, history)) == 100


def test_retention_beside_the_page_takes_nothing_from_the_screen(engine: Engine, database: Database) -> None:
    rows = trades(600, 1)
    insert(database, rows)
    history = whole(engine)
    database.query("DELETE FROM trades WHERE timestamp < %s", NOON + timedelta(seconds=400))
    for _ in range(3):
        history = read_history(engine, history)
    assert count_of(history) == 600
    database.query("DELETE FROM trades")
    history = read_history(engine, history)
    assert history.tickers == []
    insert(database, rows[:5])
    assert count_of(whole(engine, history)) == 5


def test_newest_trades_that_are_deleted_leave_the_others(engine: Engine, database: Database) -> None:
    insert(database, trades(300, 1))
    history = whole(engine)
    database.query("DELETE FROM trades WHERE timestamp > %s", NOON + timedelta(seconds=200))
    assert count_of(whole(engine, history)) == 201
    assert read_history(engine, history).tickers  # never empty in between


def test_after_a_long_time_without_a_turn_it_starts_over(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = trades(600, 1)
    insert(database, rows[:300])
    history = whole(engine)
    insert(database, rows[300:])
    monkeypatch.setattr(module, "FORGET_AFTER", -1.0)
    again = read_history(engine, history)
    assert again.start > history.start or again.complete
    assert shown(whole(engine, again), "NVDA") == expected(rows, "NVDA")


def test_trades_of_the_same_microsecond_open_and_close_in_the_order_of_their_ids(
    engine: Engine, database: Database
) -> None:
    insert(database, [(name, "AAPL", price, 1, "buy", NOON) for name, price in (("b", 2.0), ("c", 3.0), ("a", 1.0))])
    (candle,) = shown(whole(engine), "AAPL")
    assert (candle.open, candle.close) == (1, 3)


def test_the_largest_numbers_fit(engine: Engine, database: Database) -> None:
    insert(database, [(str(n), "BRK", 99_999_999.99, 2_147_483_647, "buy", NOON) for n in range(150)])
    (candle,) = shown(whole(engine), "BRK")
    assert (candle.open, candle.close, candle.volume) == (99_999_999.99, 99_999_999.99, 150 * 2_147_483_647)


@pytest.mark.parametrize(
    ("span", "step"),
    [(0, 1), (240, 1), (241, 5), (1200, 5), (3600, 15), (7200, 30), (14_400, 60), (86_400, 900), (864_000, 3600)],
)
def test_the_step_suits_the_span(span: int, step: int) -> None:
    assert step_for(timedelta(seconds=span)) == timedelta(seconds=step)


def test_each_step_holds_the_finer_ones_a_whole_number_of_times() -> None:
    assert all(coarse % fine == timedelta(0) for fine, coarse in pairwise(STEPS))


def test_rows_that_are_no_valid_trades_are_not_counted(engine: Engine, database: Database) -> None:
    rows = trades(300, every=1)
    insert(database, rows)
    wrong = ("ticker = NULL", "price = NULL", "price = 0", "price = 'NaN'", "volume = 0", "side = 'hold'")
    for number, change in enumerate(wrong):
        database.query(f"""
            INSERT INTO trades SELECT '{number}-' || trade_id, ticker, price, volume, side, timestamp FROM trades
            WHERE trade_id NOT LIKE '%-%-%-%-%-%';
            UPDATE trades SET {change} WHERE trade_id LIKE '{number}-%-%-%-%-%'
        """)  # a candle's first and last trades get such neighbours, too
    database.query("INSERT INTO trades VALUES ('newest', 'AAPL', 'NaN', 1, 'buy', %s)", NOON + timedelta(minutes=9))
    assert candles_of(whole(engine), "AAPL")[1] == expected(rows, "AAPL")
