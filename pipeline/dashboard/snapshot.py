"""From the 200 newest trades to the figures on the screen. Pure: no clock, no database, no browser in here.

A `Snapshot` is what the database returned; `Figures` are what one viewer chose to see of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median_high
from typing import Any, NamedTuple

import pandas as pd

from pipeline.dashboard.feed import MISSING_TABLE, Answer, shared
from pipeline.dashboard.queries import WINDOW
from pipeline.trade import COLUMNS

STALE_AFTER = 10.0  # seconds without a new trade
SILENT_AFTER = 3  # refresh intervals without an answer from the database
SHORTEST_PAUSE = timedelta(minutes=1)

FORMULA = r"^('*[=+\-@\t\r])"

LIVE, STALE, PAUSED, EMPTY, DOWN = "LIVE", "STALE", "PAUSED", "EMPTY", "DATABASE DOWN"


def as_trades(rows: Iterable[Sequence[object]] = ()) -> pd.DataFrame:
    """Return rows of the six columns, newest first, as the data frame that this module works on.

    Prices become floats (exact to the cent below 10^13) and times naive UTC to the microsecond. The row that says that
    there is no trade is left out.
    """
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).dropna()
    texts = dict.fromkeys(("trade_id", "ticker", "side"), "str")
    return frame.astype(texts | {"price": "float64", "volume": "int64", "timestamp": "datetime64[us]"})


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What LATEST_TRADES returned."""

    trades: pd.DataFrame = field(default_factory=as_trades)
    standby: bool = False  # read from a standby, which may lag behind
    ahead: int = 0  # trades left out because they are dated in the future; counted up to 200


def as_snapshot(rows: Sequence[Sequence[Any]]) -> Snapshot:
    """Return the rows of LATEST_TRADES as a snapshot."""
    return Snapshot(as_trades(row[:-2] for row in rows), *rows[0][-2:])


class Line(NamedTuple):
    """One ticker in the window: a row of the watchlist, a line of the price chart, a bar of the volume chart."""

    ticker: str
    times: list[str]  # oldest first
    prices: list[float]  # one for each time
    volume: int
    bought: int  # part of the volume
    vwap: float  # volume-weighted average price: Σ price·volume / Σ volume

    @property
    def last(self) -> float:
        """The newest price."""
        return self.prices[-1]

    @property
    def change(self) -> float:
        """The price change since the ticker's first trade in the window, rounded to the cent."""
        return round(self.last - self.prices[0], 2)

    @property
    def changes(self) -> list[float]:
        """The change up to each price, in per cent."""
        return [round(100 * (price / self.prices[0] - 1), 4) for price in self.prices]


@dataclass(frozen=True, eq=False)
class Figures:
    """Everything that a viewer sees of a snapshot. Money in the trades' currency, shares as fractions of 1."""

    trades: pd.DataFrame
    filling: bool  # the window has room for more trades, whatever this viewer filters out
    lines: list[Line]  # in alphabetical order, so that none moves while someone reads it
    total_volume: int
    average_price: float | None  # each trade counts the same
    vwap: float | None
    buy_share: float | None  # of the volume
    most_active: str | None  # by volume


@shared
def figures(snapshot: Snapshot, tickers: tuple[str, ...] = (), side: str = "all") -> Figures:
    """Return what a viewer sees of a snapshot: only these tickers, or all if none are given, and only this side."""
    trades, filling = snapshot.trades, len(snapshot.trades) < WINDOW
    if tickers:
        trades = trades[trades["ticker"].isin(tickers)]
    if side != "all":
        trades = trades[trades["side"] == side]
    lines = [line_of(str(ticker), own) for ticker, own in trades[::-1].groupby("ticker", sort=True)]
    if not lines:
        return Figures(trades, filling, [], 0, None, None, None, None)
    volume = sum(line.volume for line in lines)
    return Figures(
        trades=trades,
        filling=filling,
        lines=lines,
        total_volume=volume,
        average_price=float(trades["price"].mean()),
        vwap=sum(line.vwap * line.volume for line in lines) / volume,
        buy_share=sum(line.bought for line in lines) / volume,
        most_active=max(lines, key=lambda line: line.volume).ticker,
    )


def line_of(ticker: str, trades: pd.DataFrame) -> Line:
    """Sum up the trades of one ticker, oldest first."""
    volumes, volume = trades["volume"], int(trades["volume"].sum())
    vwap = float((trades["price"] * volumes).sum()) / volume
    bought = int(volumes[trades["side"] == "buy"].sum())
    return Line(ticker, trades["timestamp"].astype(str).tolist(), trades["price"].tolist(), volume, bought, vwap)


def span_seconds(trades: pd.DataFrame) -> float:
    """Return the time from the oldest to the newest trade, in seconds."""
    if trades.empty:
        return 0.0
    return float((trades["timestamp"].iloc[0] - trades["timestamp"].iloc[-1]).total_seconds())


def long_pauses(times: Sequence[datetime]) -> tuple[list[tuple[datetime, datetime]], timedelta]:
    """Return the pauses so long that a chart would hardly show the trades, and how much time remains without them.

    `times` are oldest first.
    """
    gaps = sorted(pairwise(times), key=lambda gap: gap[0] - gap[1])  # longest first
    usual = median_high([after - before for before, after in gaps] or [timedelta(0)])
    found, active = [], times[-1] - times[0]
    for before, after in gaps:
        rest = active - (after - before)
        if after - before < max(SHORTEST_PAUSE, 10 * usual, rest / 3):
            break
        found.append((before, after))
        active = rest
    return found, active


@shared
def trades_per_second(snapshot: Snapshot) -> float | None:
    """Return the mean rate over the window without its long pauses, or None if that is no time at all."""
    times = snapshot.trades["timestamp"].tolist()[::-1]
    pauses, active = long_pauses(times) if times else ([], timedelta(0))
    return (len(times) - 1 - len(pauses)) / active.total_seconds() if active else None


def state(answer: Answer[Snapshot], trade_age: float | None, query_age: float | None, silent_after: float) -> str:
    """Return the status of a page that is not paused, in one word. Ages and `silent_after` are in seconds."""
    if answer.problem == MISSING_TABLE and answer.value.trades.empty:
        return EMPTY
    if answer.problem or query_age is None or query_age > silent_after:
        return DOWN
    if trade_age is None:
        return EMPTY
    return STALE if trade_age - query_age > STALE_AFTER else LIVE  # as of the answer: a trade may have come since


def as_csv(trades: pd.DataFrame) -> str:
    """Return trades as CSV with the table's columns, to the cent and the microsecond, oldest first.

    Text that a spreadsheet would take for a formula (=, +, - or @) gets an apostrophe in front, and so does text with
    apostrophes before such a sign: to restore the original, the reader of the file removes one apostrophe.
    """
    texts = {name: trades[name].str.replace(FORMULA, r"'\1", regex=True) for name in ("trade_id", "ticker", "side")}
    ready = trades.assign(**texts, timestamp=trades["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    return ready[::-1].to_csv(index=False, float_format="%.2f", lineterminator="\r\n")
