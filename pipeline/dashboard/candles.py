"""Candles of every ticker since trading last began, counted by the dashboard: the table needs no trigger.

Trading begins after a pause of more than an hour. The table is read back to that point once, 40,000 trades at a time;
after that, each refresh recounts only the newest seconds, so a trade may arrive a few seconds late. A trade that
arrives later than that is in the table, but not in a candle.
"""

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from sqlalchemy import Engine

from pipeline.dashboard.feed import query, shared
from pipeline.dashboard.queries import CANDLES, CHUNK, NEWEST, STRETCH

PAUSE = timedelta(hours=1)  # as in STRETCH
LATE = timedelta(seconds=10)  # how late a trade may arrive and still be counted; less while over CHUNK trades are live
CATCH_UP = 1.0  # seconds a refresh may spend on reading back
FORGET_AFTER = 60.0  # seconds without a refresh after which there is too much to count in one go
MAX_CANDLES = 240
TRADES_PER_CANDLE = 4
# Each divides the next.
STEPS = [timedelta(seconds=s) for s in (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 14_400, 86_400)]
EPOCH, NEVER = datetime(1970, 1, 1), datetime(9999, 12, 31)


class Candle(NamedTuple):
    """The trades of one ticker in one time step (UTC)."""

    start: datetime
    open: float
    high: float
    low: float
    close: float
    volume: int
    notional: float  # Σ price · volume; divided by volume, the VWAP
    trades: int

    def then(self, later: "Candle") -> "Candle":
        """Return both as one candle, which starts when this one does."""
        high, low = max(self.high, later.high), min(self.low, later.low)
        volume, notional = self.volume + later.volume, self.notional + later.notional
        return Candle(self.start, self.open, high, low, later.close, volume, notional, self.trades + later.trades)


Candles = dict[tuple[str, datetime], Candle]  # by ticker and start, the oldest first


@dataclass(frozen=True, eq=False)
class History:
    """What has been counted so far: all trades from `start` on; those from `edge` on are recounted at every refresh."""

    settled: Candles = field(default_factory=dict)
    live: Candles = field(default_factory=dict)
    start: datetime = NEVER
    edge: datetime = NEVER
    complete: bool = False  # `start` is where trading began
    counted_at: float = float("-inf")  # seconds, monotonic clock

    @cached_property
    def tickers(self) -> list[str]:
        """Every ticker that traded, in alphabetical order."""
        return sorted({ticker for ticker, _ in self.settled | self.live})


def read_history(engine: Engine, last: History) -> History:
    """Refresh the history: count the newest trades, then read further back. Raises `SQLAlchemyError`."""
    history, deadline = read_on(engine, last), time.monotonic() + CATCH_UP
    while history.live and not history.complete and time.monotonic() < deadline:
        history = read_back(engine, history)
    return history


def read_on(engine: Engine, last: History) -> History:
    """Recount the live trades. Start over if trading paused, the trades are gone or the last refresh is too old."""
    if time.monotonic() - last.counted_at > FORGET_AFTER:
        ((newest,),) = query(engine, NEWEST)
        edge = floor(newest, STEPS[0]) if newest else NEVER
        last = History(start=edge, edge=edge)
    live = count(engine, last.edge, NEVER, STEPS[0])
    newest = max((start for _, start in live), default=None)
    before = max((start for _, start in last.live), default=None)
    if before and (not newest or newest - before > PAUSE):
        return read_on(engine, History())
    if not newest:
        return History()
    few = sum(candle.trades for candle in live.values()) <= CHUNK
    edge = max(last.edge, newest - LATE if few else newest)
    early = {key: candle for key, candle in live.items() if candle.start < edge}
    late = {key: candle for key, candle in live.items() if candle.start >= edge}
    settled = join(last.settled, early, step_for(edge - last.start))
    return replace(last, settled=settled, live=late, edge=edge, counted_at=time.monotonic())


def read_back(engine: Engine, history: History) -> History:
    """Add the trades before the oldest ones counted; a pause, or the table's first trade, completes the history."""
    ((oldest, after_pause, trades),) = query(engine, STRETCH, {"end": history.start})
    start = after_pause or oldest or history.start
    step = step_for(history.edge - start)
    settled = join(count(engine, start, history.start, step), history.settled, step)
    return replace(history, settled=settled, start=start, complete=after_pause is not None or trades < CHUNK)


def count(engine: Engine, start: datetime, end: datetime, step: timedelta) -> Candles:
    """Count the trades from `start` up to, but not including, `end`."""
    rows = query(engine, CANDLES, {"start": start, "end": end, "step": step})
    return {
        (ticker, moment): Candle._make([moment, *map(float, prices), int(volume), float(notional), trades])
        for ticker, moment, *prices, volume, notional, trades in rows
    }


def join(older: Candles, newer: Candles, step: timedelta) -> Candles:
    """Return both, merged into candles of the given step."""
    coarse: Candles = {}
    for candles in (older, newer):
        for (ticker, moment), candle in candles.items():
            start = floor(moment, step)
            before = coarse.get((ticker, start))
            coarse[ticker, start] = before.then(candle) if before else candle._replace(start=start)
    return coarse


@shared
def candles_of(history: History, ticker: str) -> tuple[timedelta, list[Candle]]:
    """Return one ticker's step and candles, oldest first: about 240 at most, of at least four trades on average."""
    fine = {key: candle for key, candle in (history.settled | history.live).items() if key[0] == ticker}
    starts = [start for _, start in fine]
    span, trades = starts[-1] - starts[0], sum(candle.trades for candle in fine.values())
    settled_step = step_for(history.edge - history.start)  # settled candles cannot be split, even for a new ticker
    step = max(settled_step, step_for(span * max(1, MAX_CANDLES * TRADES_PER_CANDLE / trades)))
    return step, [*join(fine, {}, step).values()]


def step_for(span: timedelta) -> timedelta:
    """Return the finest step that fits a span into 240 candles; a day if none does."""
    return next((step for step in STEPS if span <= step * MAX_CANDLES), STEPS[-1])


def floor(moment: datetime, step: timedelta) -> datetime:
    """Return the start of the step that contains a moment."""
    return EPOCH + (moment - EPOCH) // step * step
