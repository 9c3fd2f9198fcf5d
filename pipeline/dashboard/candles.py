"""The session so far as candles, counted by the reader: the table needs no trigger, and its writers pay nothing.

A session starts after an hour without a trade. It is read backwards along the index on timestamp in chunks of about
40,000 trades, 20 ms each, until its start is found. From then on every turn counts the live chunk anew and one of the
older ones on a round trip, so that trades which arrive late are found too.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.dashboard.feed import problem, query

CHUNK = 40_000  # trades
SESSION_GAP = timedelta(hours=1)
CATCH_UP = 1.0  # seconds a turn may spend on reading further back
MAX_CANDLES = 240
STEPS = [timedelta(seconds=s) for s in (1, 5, 15, 30, 60, 300, 900, 1800, 3600)]  # each holds the one before n times
EPOCH, NEVER = datetime(1970, 1, 1), datetime(9999, 12, 31)

# The oldest and the newest of the last 40,000 trades before a moment.
EDGES = text(
    f"""SELECT min(timestamp), max(timestamp) FROM
    (SELECT timestamp FROM trades WHERE timestamp < :end ORDER BY timestamp DESC LIMIT {CHUNK}) AS chunk"""
)
# One index scan per candle, and two look-ups for the prices that open and close it. Grouped in one go, or with the
# prices of each group in order, it takes twice as long: the planner then sorts all rows.
CANDLES = text(
    """SELECT ticker, start,
        (SELECT price FROM trades AS trade WHERE trade.timestamp = first AND trade.ticker = candle.ticker
         ORDER BY trade_id LIMIT 1),
        high, low,
        (SELECT price FROM trades AS trade WHERE trade.timestamp = last AND trade.ticker = candle.ticker
         ORDER BY trade_id DESC LIMIT 1),
        volume, notional, trades
    FROM generate_series(
        CAST(:first AS timestamp),
        (SELECT timestamp FROM trades WHERE timestamp < :end ORDER BY timestamp DESC LIMIT 1),
        :step
    ) AS start CROSS JOIN LATERAL (
        SELECT ticker, min(timestamp) AS first, max(timestamp) AS last, max(price) AS high, min(price) AS low,
               sum(volume) AS volume, sum(price * volume) AS notional, count(*) AS trades
        FROM trades WHERE timestamp >= greatest(start, :start) AND timestamp < least(start + :step, :end)
        GROUP BY ticker
    ) AS candle ORDER BY start"""
)


class Candle(NamedTuple):
    """The trades of one ticker in one step of time, UTC."""

    start: datetime
    open: float
    high: float
    low: float
    close: float
    volume: int
    notional: float  # Σ price · volume; by volume it is the VWAP
    trades: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """The candles of all trades from `start` on, before `end`."""

    start: datetime
    end: datetime
    candles: dict[str, list[Candle]]  # by ticker, oldest first

    @property
    def times(self) -> list[datetime]:
        """When the candles of its tickers start, each time once."""
        return sorted({candle.start for candles in self.candles.values() for candle in candles})

    @property
    def trades(self) -> int:
        """How many trades were counted."""
        return sum(candle.trades for candles in self.candles.values() for candle in candles)


@dataclass(frozen=True, eq=False)
class Session:
    """What has been counted: the chunks, oldest first, and whether they reach back to the session's start."""

    chunks: tuple[Chunk, ...] = ()
    complete: bool = False
    turn: int = 0
    problem: str | None = None

    @property
    def tickers(self) -> list[str]:
        """Every ticker that traded, in alphabetical order."""
        return sorted({ticker for chunk in self.chunks for ticker in chunk.candles})


def read_session(engine: Engine, last: Session) -> Session:
    """Take one turn: count the live chunk, then read further back, or count one older chunk again."""
    try:
        session, deadline = read_live(engine, last), time.monotonic() + CATCH_UP
        while not session.complete and time.monotonic() < deadline:
            session = read_back(engine, session)
        return read_again(engine, session)
    except SQLAlchemyError as error:
        return replace(last, problem=problem(error))


def read_live(engine: Engine, last: Session) -> Session:
    """Count the newest chunk again; where it has become long, its last candle starts another."""
    if not last.chunks:
        return Session()
    live = read_chunk(engine, last.chunks[-1].start, NEVER, last.chunks[-1].times[-1])
    if not live.candles:
        return Session()  # the table was emptied
    session = with_chunk(replace(last, problem=None), len(last.chunks) - 1, live)
    *older, live = session.chunks
    if live.trades <= CHUNK or live.times[-1] <= live.start:
        return session
    return replace(session, chunks=(*older, *split(live, live.times[-1])))


def read_back(engine: Engine, session: Session) -> Session:
    """Add the chunk before the oldest one; when there is none left, the session is complete."""
    end = session.chunks[0].start if session.chunks else NEVER
    ((oldest, newest),) = query(engine, EDGES, {"end": end})
    if oldest is None or (session.chunks and end - newest > SESSION_GAP):
        return replace(session, complete=True)
    latest = session.chunks[-1].times[-1] if session.chunks else newest
    chunks = (Chunk(oldest, end, {}), *session.chunks)
    return with_chunk(replace(session, chunks=chunks), 0, read_chunk(engine, oldest, end, latest))


def read_again(engine: Engine, session: Session) -> Session:
    """Count the next one of the older chunks anew."""
    if not session.complete or len(session.chunks) < 2:
        return session
    index = session.turn % (len(session.chunks) - 1)
    old = session.chunks[index]
    chunk = read_chunk(engine, old.start, old.end, session.chunks[-1].times[-1])
    return replace(with_chunk(session, index, chunk), turn=session.turn + 1)


def read_chunk(engine: Engine, start: datetime, end: datetime, latest: datetime) -> Chunk:
    """Count a stretch of time, in candles no finer than a session from then to the latest trade is shown in."""
    step = step_for(latest - start)
    values = {"first": floor(start, step), "start": start, "end": end, "step": step}
    candles: dict[str, list[Candle]] = defaultdict(list)
    for ticker, moment, opened, high, low, closed, volume, notional, trades in query(engine, CANDLES, values):
        prices = float(opened), float(high), float(low), float(closed)
        candles[ticker].append(Candle(moment, *prices, int(volume), float(notional), trades))
    return Chunk(start, end, dict(candles))


def with_chunk(session: Session, index: int, chunk: Chunk) -> Session:
    """Put a chunk in its place. Where it has a gap that ends a session, what is older goes."""
    starts = [after for before, after in pairwise(chunk.times) if after - before > SESSION_GAP]
    if starts:
        chunks = (split(chunk, starts[-1])[1], *session.chunks[index + 1 :])
        return replace(session, chunks=chunks, complete=True)
    return replace(session, chunks=(*session.chunks[:index], chunk, *session.chunks[index + 1 :]))


def split(chunk: Chunk, edge: datetime) -> tuple[Chunk, Chunk]:
    """Return a chunk as two, the later of which starts with the candle at the edge."""
    early: dict[str, list[Candle]] = {}
    late: dict[str, list[Candle]] = {}
    for ticker, candles in chunk.candles.items():
        for candle in candles:
            (late if candle.start >= edge else early).setdefault(ticker, []).append(candle)
    return Chunk(chunk.start, edge, early), Chunk(edge, chunk.end, late)


@lru_cache(maxsize=32)  # viewers who look at the same ticker share the work
def candles_of(session: Session, ticker: str) -> tuple[timedelta, list[Candle]]:
    """Return the session's candles of one ticker, oldest first, and the step that makes them at most about 240."""
    fine = [candle for chunk in session.chunks for candle in chunk.candles.get(ticker, ())]
    if not fine:
        return STEPS[0], []
    step = step_for(fine[-1].start - fine[0].start)
    merged: list[Candle] = []
    for candle in fine:
        start = floor(candle.start, step)
        if merged and merged[-1].start == start:
            merged[-1] = merge(merged[-1], candle)
        else:
            merged.append(candle._replace(start=start))
    return step, merged


def merge(first: Candle, second: Candle) -> Candle:
    """Return two candles as one, in which the first opens and the second closes."""
    return Candle(
        first.start,
        first.open,
        max(first.high, second.high),
        min(first.low, second.low),
        second.close,
        first.volume + second.volume,
        first.notional + second.notional,
        first.trades + second.trades,
    )


def step_for(span: timedelta) -> timedelta:
    """Return the finest step that shows a span in at most 240 candles; an hour, if none does."""
    return next((step for step in STEPS if span <= step * MAX_CANDLES), STEPS[-1])


def floor(moment: datetime, step: timedelta) -> datetime:
    """Return the start of the step that a moment is in."""
    return EPOCH + (moment - EPOCH) // step * step
