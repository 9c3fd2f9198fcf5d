"""The session's candles: counted chunk by chunk, they are what one pass over all trades gives."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy import Engine, text

from pipeline.dashboard import candles as module
from pipeline.dashboard.candles import STEPS, Candle, Session, candles_of, floor, read_session, step_for
from pipeline.dashboard.feed import read_only_engine
from tests.live_page import Market, Row, insert
from tests.services import Database

NOON = datetime(2026, 1, 31, 12, 0, 0)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = read_only_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few hundred trades fill many chunks."""
    small = str(module.EDGES).replace(f"LIMIT {module.CHUNK}", "LIMIT 100")
    monkeypatch.setattr(module, "EDGES", text(small))
    monkeypatch.setattr(module, "CHUNK", 100)


def trades(count: int, every: float, start: datetime = NOON, seed: int = 1) -> list[Row]:
    market = Market(seed)
    return [market.trade(start + timedelta(seconds=n * every)) for n in range(count)]


def whole(engine: Engine, session: Session | None = None) -> Session:
    """Take turns until the session is complete."""
    session = read_session(engine, session or Session())
    while not session.complete:
        session = read_session(engine, session)
    assert session.problem is None
    return session


def expected(rows: list[Row], ticker: str) -> list[Candle]:
    """Work the candles out in one pass."""
    own = sorted((row for row in rows if row[1] == ticker), key=lambda row: row[5])
    step = step_for(floor(own[-1][5], STEPS[0]) - floor(own[0][5], STEPS[0]))
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


def rounded(candles: list[Candle]) -> list[Candle]:
    """Return candles with their money to the cent, as it was before floats were added up."""
    return [candle._replace(notional=round(candle.notional, 2)) for candle in candles]


@pytest.mark.parametrize("every", [0.02, 0.37, 4.1, 61.0])
def test_candles_are_what_one_pass_over_all_trades_gives(engine: Engine, database: Database, every: float) -> None:
    rows = trades(1500, every)
    insert(database, rows)
    session = whole(engine)
    assert len(session.chunks) > 2
    for ticker in session.tickers:
        step, candles = candles_of(session, ticker)
        wanted = expected(rows, ticker)
        assert sum(candle.trades for candle in candles) == sum(candle.trades for candle in wanted)
        assert rounded(candles) == wanted
        assert len(candles) <= module.MAX_CANDLES + 1
        assert step in STEPS


def test_new_trades_are_added_turn_by_turn(engine: Engine, database: Database) -> None:
    rows = trades(900, 0.37)
    insert(database, rows[:150])
    session = whole(engine)
    for done in range(150, 900, 75):
        insert(database, rows[done : done + 75])
        session = read_session(engine, session)
        assert sum(chunk.trades for chunk in session.chunks) == done + 75
    assert rounded(candles_of(session, "NVDA")[1]) == expected(rows, "NVDA")


def test_trades_that_arrive_late_are_found_on_the_next_round(engine: Engine, database: Database) -> None:
    rows = trades(600, 0.5)
    early = rows.pop(40)
    insert(database, rows)
    session = whole(engine)
    insert(database, [early])
    for _ in session.chunks:
        session = read_session(engine, session)
    assert rounded(candles_of(session, early[1])[1]) == expected([*rows, early], early[1])


def test_a_session_starts_after_an_hour_without_a_trade(engine: Engine, database: Database) -> None:
    yesterday, today = trades(300, 1, NOON - timedelta(days=1)), trades(300, 1, seed=2)
    insert(database, yesterday)
    session = whole(engine)
    assert session.chunks[0].times[0] == NOON - timedelta(days=1)
    insert(database, today)
    session = whole(engine, read_session(engine, session))
    assert session.chunks[0].times[0] == NOON
    assert rounded(candles_of(session, "TSLA")[1]) == expected(today, "TSLA")
    assert rounded(candles_of(whole(engine), "TSLA")[1]) == rounded(candles_of(session, "TSLA")[1])


def test_an_emptied_table_starts_over(engine: Engine, database: Database) -> None:
    insert(database, trades(300, 1))
    session = whole(engine)
    database.query("TRUNCATE trades")
    session = whole(engine, session)
    assert (session.tickers, candles_of(session, "AAPL")[1]) == ([], [])
    insert(database, trades(5, 1))
    session = whole(engine, read_session(engine, session))
    assert sum(chunk.trades for chunk in session.chunks) == 5


def test_a_lost_table_leaves_what_was_counted_and_says_so(engine: Engine, database: Database) -> None:
    insert(database, trades(50, 1))
    good = whole(engine)
    database.query("ALTER TABLE trades RENAME TO elsewhere")
    session = read_session(engine, good)
    assert session.chunks == good.chunks
    assert session.problem is not None


def test_trades_of_the_same_microsecond_open_and_close_in_the_order_of_their_ids(
    engine: Engine, database: Database
) -> None:
    insert(database, [(name, "AAPL", price, 1, "buy", NOON) for name, price in (("b", 2.0), ("c", 3.0), ("a", 1.0))])
    (candle,) = candles_of(whole(engine), "AAPL")[1]
    assert (candle.open, candle.close) == (1, 3)


def test_the_largest_numbers_fit(engine: Engine, database: Database) -> None:
    insert(database, [(str(n), "BRK", 99_999_999.99, 2_147_483_647, "buy", NOON) for n in range(150)])
    ((candle,),) = [candles_of(whole(engine), "BRK")[1]]
    assert (candle.open, candle.close, candle.volume) == (99_999_999.99, 99_999_999.99, 150 * 2_147_483_647)


@pytest.mark.parametrize(
    ("span", "step"),
    [(0, 1), (240, 1), (241, 5), (1200, 5), (3600, 15), (7200, 30), (14_400, 60), (86_400, 900), (864_000, 3600)],
)
def test_the_step_suits_the_span(span: int, step: int) -> None:
    assert step_for(timedelta(seconds=span)) == timedelta(seconds=step)


def test_each_step_holds_the_finer_ones_a_whole_number_of_times() -> None:
    assert all(coarse % fine == timedelta(0) for fine, coarse in pairwise(STEPS))
