"""Candles of every ticker since trading last began, counted by the dashboard: the table needs no trigger.

Trading begins after a pause of more than an hour. The table is read back to that point once, 40,000 trades at a time;
after that, each refresh recounts only the newest seconds, so a trade may arrive a few seconds late. A trade that
arrives later than that is in the table, but not in a candle.
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.dashboard.feed import query
from pipeline.dashboard.queries import CANDLES, CHUNK, NEWEST, STRETCH

PAUSE = timedelta(hours=1)  # as in STRETCH
LATE = timedelta(seconds=10)  # how late a trade may arrive and still be counted; less at over CHUNK trades in that time
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


Counted = Iterable[tuple[str, Candle]]  # with their tickers, each ticker's oldest first
Candles = dict[str, dict[datetime, Candle]]  # by ticker and start, the oldest first


@dataclass(frozen=True, eq=False)
class History:
    """What has been counted so far: all trades from `start` on; those from `edge` on are recounted at every refresh."""

    settled: Candles = field(default_factory=dict)
    live: Candles = field(default_factory=dict)
    start: datetime = NEVER
    edge: datetime = NEVER
    newest: datetime | None = None  # start of the newest candle
    complete: bool = False  # `start` is where trading began
    counted_at: float = float("-inf")  # seconds, monotonic clock
    drawn: dict[str, tuple[timedelta, list[Candle]]] = field(default_factory=dict, init=False)  # for the next viewers

    @property
    def step(self) -> timedelta:
        """The step of the settled candles, which cannot be split, even for a new ticker."""
        return step_for(self.edge - self.start)

    @cached_property
    def tickers(self) -> list[str]:
        """Every ticker that traded, in alphabetical order."""
        return sorted(self.settled.keys() | self.live.keys())


def read_history(engine: Engine, last: History) -> History:
    """Refresh the history: count the newest trades, then read further back if possible. Raises `SQLAlchemyError`."""
    history, deadline = read_on(engine, last), time.monotonic() + CATCH_UP
    while history.live and not history.complete and time.monotonic() < deadline:
        try:
            history = read_back(engine, history)
        except SQLAlchemyError:  # too slow for now: the newest candles count all the same
            break
    return history


def read_on(engine: Engine, last: History) -> History:
    """Recount the live trades. Start over if trading paused, the trades are gone or the last refresh is too old."""
    if time.monotonic() - last.counted_at > FORGET_AFTER:
        ((newest,),) = query(engine, NEWEST)
        edge = floor(newest, STEPS[0]) if newest else NEVER
        last = History(start=edge, edge=edge)
    counted = count(engine, last.edge, NEVER, STEPS[0])
    newest = counted[-1][1].start if counted else None
    if last.newest and (not newest or newest - last.newest > PAUSE):
        return read_on(engine, History())
    if not newest:
        return History()
    edge = max(last.edge, live_since(counted, newest))
    step = step_for(edge - last.start)
    settled = last.settled if step == last.step else join({}, each(last.settled), step)
    return replace(
        last,
        settled=join(settled, [one for one in counted if one[1].start < edge], step),
        live=join({}, [one for one in counted if one[1].start >= edge], STEPS[0]),
        edge=edge,
        newest=newest,
        counted_at=time.monotonic(),
    )


def live_since(counted: Counted, newest: datetime) -> datetime:
    """Return the second from which trades are recounted: LATE before the newest, or as far back as CHUNK trades go."""
    seconds: Counter[datetime] = Counter()
    for _, candle in counted:
        seconds[candle.start] += candle.trades
    edge, trades = newest, 0
    for second in sorted(seconds, reverse=True):
        trades += seconds[second]
        if trades > CHUNK:
            return max(edge, newest - LATE)
        edge = second
    return newest - LATE


def read_back(engine: Engine, history: History) -> History:
    """Add the trades before the oldest ones counted; a pause, or the table's first trade, completes the history."""
    ((oldest, after_pause, trades),) = query(engine, STRETCH, {"end": history.start})
    start = after_pause or oldest or history.start
    step = step_for(history.edge - start)
    older = join({}, count(engine, start, history.start, step), step)
    settled = join(older, each(history.settled), step)
    return replace(history, settled=settled, start=start, complete=after_pause is not None or trades < CHUNK)


def count(engine: Engine, start: datetime, end: datetime, step: timedelta) -> list[tuple[str, Candle]]:
    """Count the trades from `start` up to, but not including, `end`; the oldest candle comes first."""
    rows = query(engine, CANDLES, {"start": start, "end": end, "step": step})
    return [
        (ticker, Candle._make([moment, *map(float, prices), int(volume), float(notional), trades]))
        for ticker, moment, *prices, volume, notional, trades in rows
    ]


def each(candles: Candles) -> Counted:
    """Return every candle with its ticker."""
    return ((ticker, candle) for ticker, own in candles.items() for candle in own.values())


def join(older: Candles, newer: Counted, step: timedelta) -> Candles:
    """Return `older`, which are candles of the given step, with `newer` merged in; tickers without any are shared."""
    changed: Candles = {}
    for ticker, candle in newer:
        if ticker not in changed:
            changed[ticker] = dict(older.get(ticker, {}))
        own, start = changed[ticker], floor(candle.start, step)
        own[start] = own[start].then(candle) if start in own else candle._replace(start=start)
    return older | changed


def candles_of(history: History, ticker: str) -> tuple[timedelta, list[Candle]]:
    """Return the step and candles of one of the history's tickers.

    The candles are the oldest first, about 240 at most, and of at least four trades on average.
    """
    if ticker not in history.drawn:
        fine = [*history.settled.get(ticker, {}).values(), *history.live.get(ticker, {}).values()]
        span, trades = fine[-1].start - fine[0].start, sum(candle.trades for candle in fine)
        step = max(history.step, step_for(span * max(1, MAX_CANDLES * TRADES_PER_CANDLE / trades)))
        coarse = join({}, ((ticker, candle) for candle in fine), step)
        history.drawn[ticker] = step, [*coarse[ticker].values()]
    return history.drawn[ticker]


def step_for(span: timedelta) -> timedelta:
    """Return the finest step that fits a span into 240 candles; a day if none does."""
    return next((step for step in STEPS if span <= step * MAX_CANDLES), STEPS[-1])


def floor(moment: datetime, step: timedelta) -> datetime:
    """Return the start of the step that contains a moment."""
    return EPOCH + (moment - EPOCH) // step * step
