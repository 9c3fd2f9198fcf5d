"""Candles of every ticker since trading last began, counted by the reader: the table needs no trigger.

Trading begins after a pause of more than an hour. The table is read back to there once, 40,000 trades at a time; from
then on only the newest seconds are counted, again at every turn, so a trade may arrive some seconds late. One that
arrives later than that is in the table and on the tape, but not in a candle.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Engine

from pipeline.dashboard.feed import query
from pipeline.dashboard.queries import CANDLES, CHUNK, NEWEST, STRETCH

PAUSE = timedelta(hours=1)  # as in STRETCH
LATE = timedelta(seconds=10)  # how late a trade may arrive and still be counted
CATCH_UP = 1.0  # seconds a turn may spend on reading back
FORGET_AFTER = 60.0  # seconds without a turn after which too much has happened to be counted in one go
MAX_CANDLES = 240
TRADES_PER_CANDLE = 4
STEPS = [
    timedelta(seconds=s) for s in (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 14_400, 86_400)
]  # each divides the next
EPOCH, NEVER = datetime(1970, 1, 1), datetime(9999, 12, 31)


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


Candles = dict[str, list[Candle]]  # by ticker, oldest first


@dataclass(frozen=True, eq=False)
class History:
    """What has been counted so far: all trades from `start` on, those from `edge` on anew at every turn."""

    settled: Candles = field(default_factory=dict)
    live: Candles = field(default_factory=dict)
    start: datetime = NEVER
    edge: datetime = NEVER
    complete: bool = False  # `start` is where trading began
    counted_at: float = float("-inf")  # seconds, monotonic clock

    @property
    def tickers(self) -> list[str]:
        """Every ticker that traded, in alphabetical order."""
        return sorted(self.settled.keys() | self.live.keys())


def read_history(engine: Engine, last: History) -> History:
    """Take one turn: count what is new, then read further back. Raises `SQLAlchemyError`."""
    history, deadline = read_on(engine, last), time.monotonic() + CATCH_UP
    while history.live and not history.complete and time.monotonic() < deadline:
        history = read_back(engine, history)
    return history


def read_on(engine: Engine, last: History) -> History:
    """Count the live trades anew. Where trading paused, the trades are gone or it has been too long, start over."""
    if time.monotonic() - last.counted_at > FORGET_AFTER:
        ((newest,),) = query(engine, NEWEST)
        edge = floor(newest, STEPS[0]) if newest else NEVER
        last = History(start=edge, edge=edge)
    live = count(engine, last.edge, NEVER, STEPS[0])
    if last.live and (not live or latest_start(live) - latest_start(last.live) > PAUSE):
        return read_on(engine, History())
    if not live:
        return History()
    newest = latest_start(live)
    few = sum(candle.trades for candles in live.values() for candle in candles) <= CHUNK
    edge = max(last.edge, newest - LATE if few else newest)
    early = {ticker: [candle for candle in candles if candle.start < edge] for ticker, candles in live.items()}
    late = {ticker: [candle for candle in candles if candle.start >= edge] for ticker, candles in live.items()}
    settled = join(last.settled, early, step_for(edge - last.start))
    return replace(last, settled=settled, live=late, edge=edge, counted_at=time.monotonic())


def read_back(engine: Engine, history: History) -> History:
    """Add the trades before the oldest ones counted; when there are none or a pause is found, that is all."""
    ((oldest, after_pause, trades),) = query(engine, STRETCH, {"end": history.start})
    start = after_pause or oldest or history.start
    step = step_for(history.edge - start)
    settled = join(count(engine, start, history.start, step), history.settled, step)
    return replace(history, settled=settled, start=start, complete=after_pause is not None or trades < CHUNK)


def count(engine: Engine, start: datetime, end: datetime, step: timedelta) -> Candles:
    """Count the trades from `start` on and before `end`."""
    counted: Candles = {}
    for ticker, moment, opened, high, low, closed, *sums in query(
        engine, CANDLES, {"start": start, "end": end, "step": step}
    ):
        volume, notional, trades = sums
        prices = float(opened), float(high), float(low), float(closed)
        counted.setdefault(ticker, []).append(Candle(moment, *prices, int(volume), float(notional), trades))
    return counted


def latest_start(candles: Candles) -> datetime:
    """Return when the newest candle of any ticker starts."""
    return max(own[-1].start for own in candles.values() if own)


def join(older: Candles, newer: Candles, step: timedelta) -> Candles:
    """Return both together, in candles of that step."""
    tickers = older.keys() | newer.keys()
    return {ticker: merged([*older.get(ticker, ()), *newer.get(ticker, ())], step) for ticker in tickers}


def merged(candles: Sequence[Candle], step: timedelta) -> list[Candle]:
    """Return candles, oldest first, as fewer of a coarser step."""
    coarse: list[Candle] = []
    for candle in candles:
        start = floor(candle.start, step)
        if coarse and coarse[-1].start == start:
            first = coarse[-1]
            high, low = max(first.high, candle.high), min(first.low, candle.low)
            volume, notional = first.volume + candle.volume, first.notional + candle.notional
            trades = first.trades + candle.trades
            coarse[-1] = Candle(start, first.open, high, low, candle.close, volume, notional, trades)
        else:
            coarse.append(candle._replace(start=start))
    return coarse


@lru_cache(maxsize=32)  # viewers who look at the same ticker share the work
def candles_of(history: History, ticker: str) -> tuple[timedelta, list[Candle]]:
    """Return the candles of one ticker, oldest first, and their step: at most 240, of four trades on average."""
    fine = [*history.settled.get(ticker, ()), *history.live.get(ticker, ())]
    if not fine:
        return STEPS[0], []
    span, trades = fine[-1].start - fine[0].start, sum(candle.trades for candle in fine)
    step = step_for(max(span, span * MAX_CANDLES * TRADES_PER_CANDLE / trades))
    return step, merged(fine, step)


def step_for(span: timedelta) -> timedelta:
    """Return the finest step that shows a span in at most 240 candles; a day, if none does."""
    return next((step for step in STEPS if span <= step * MAX_CANDLES), STEPS[-1])


def floor(moment: datetime, step: timedelta) -> datetime:
    """Return the start of the step that a moment is in."""
    return EPOCH + (moment - EPOCH) // step * step
