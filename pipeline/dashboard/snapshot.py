"""From the 200 newest trades to the figures on the screen. Pure: no clock, no database, no browser in here.

A `Snapshot` is what the database said last, and when; a `View` is what one viewer chose to see of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count

import pandas as pd

from pipeline.trade import COLUMNS

WINDOW = 200  # trades
STALE_AFTER = 10.0  # seconds without a new trade
SILENT_AFTER = 3  # refresh intervals without an answer from the database

NUMBERS = count()

LIVE, STALE, PAUSED, EMPTY, DOWN = "LIVE", "STALE", "PAUSED", "EMPTY", "DATABASE DOWN"


def as_trades(rows: Iterable[Sequence[object]] = ()) -> pd.DataFrame:
    """Make the frame that everything here works on from rows of the six columns, newest first.

    Prices become floats (exact to the cent below 10^13) and times naive UTC to the microsecond. A row with a NULL,
    which only a table made by hand can hold, is no trade and left out.
    """
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS)).dropna()
    texts = dict.fromkeys(("trade_id", "ticker", "side"), "str")
    return frame.astype(texts | {"price": "float64", "volume": "int64", "timestamp": "datetime64[us]"})


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The last good answer of the database, and what has gone wrong since."""

    trades: pd.DataFrame  # as `as_trades` makes it
    read_at: float | None = None  # seconds, monotonic clock; None before the first good answer
    problem: str | None = None  # one line for the viewer, when the newest attempt failed
    missing: bool = False  # … because there is no table yet


@dataclass(frozen=True)
class View:
    """What one viewer chose: no tickers means all of them, no side both."""

    tickers: tuple[str, ...] = ()
    side: str | None = None


@dataclass(frozen=True, eq=False)
class Figures:
    """Everything a view of a snapshot shows. Money in the trades' currency, shares as fractions of 1."""

    trades: pd.DataFrame
    watchlist: pd.DataFrame  # index ticker; see `watchlist`
    count: int
    total_volume: int
    average_price: float | None  # each trade counts the same
    vwap: float | None  # volume-weighted average price: Σ price·volume / Σ volume
    buy_share: float | None  # of the volume
    most_active: str | None  # by volume
    number: int = field(default_factory=NUMBERS.__next__)  # names these figures, and never again others


@lru_cache(maxsize=64)  # viewers who look at the same view of a snapshot share the work
def figures(snapshot: Snapshot, view: View) -> Figures:
    """Work out one view of a snapshot."""
    trades = select(snapshot.trades, view)
    table = watchlist(trades)
    volume = int(trades["volume"].sum())
    bought = int(trades.loc[trades["side"] == "buy", "volume"].sum())
    return Figures(
        trades=trades,
        watchlist=table,
        count=len(trades),
        total_volume=volume,
        average_price=float(trades["price"].mean()) if volume else None,
        vwap=float((trades["price"] * trades["volume"]).sum() / volume) if volume else None,
        buy_share=bought / volume if volume else None,
        most_active=str(table["volume"].idxmax()) if volume else None,
    )


def select(trades: pd.DataFrame, view: View) -> pd.DataFrame:
    """Return the trades that belong to a view."""
    if view.tickers:
        trades = trades[trades["ticker"].isin(view.tickers)]
    return trades[trades["side"] == view.side] if view.side else trades


def watchlist(trades: pd.DataFrame) -> pd.DataFrame:
    """Return a row per ticker, in alphabetical order so that none of them moves while it is read.

    Columns: last, change and change_percent (against the ticker's first trade in the window), vwap, high, low,
    volume, buy_share, and prices (oldest first, for a sparkline).
    """
    by_time = trades[::-1].assign(
        notional=trades["price"] * trades["volume"], bought=trades["volume"].where(trades["side"] == "buy", 0)
    )
    groups = by_time.groupby("ticker", sort=True)
    first, last, volume = groups["price"].first(), groups["price"].last(), groups["volume"].sum()
    return pd.DataFrame(
        {
            "last": last,
            "change": last - first,
            "change_percent": (last / first - 1) * 100,
            "vwap": groups["notional"].sum() / volume,
            "high": groups["price"].max(),
            "low": groups["price"].min(),
            "volume": volume,
            "buy_share": groups["bought"].sum() / volume,
            "prices": groups["price"].agg(list),
        }
    )


def span_seconds(trades: pd.DataFrame) -> float:
    """Return the time from the oldest to the newest trade, in seconds."""
    if trades.empty:
        return 0.0
    return float((trades["timestamp"].iloc[0] - trades["timestamp"].iloc[-1]).total_seconds())


def trades_per_second(trades: pd.DataFrame) -> float | None:
    """Return the mean rate over the window, or None where one moment holds all of it."""
    span = span_seconds(trades)
    return (len(trades) - 1) / span if span > 0 else None


def state(snapshot: Snapshot, trade_age: float | None, query_age: float | None, interval: float, paused: bool) -> str:
    """Return the one word that is true of the page. Ages and the refresh interval in seconds."""
    silent = query_age is not None and query_age > SILENT_AFTER * interval
    if paused:
        return PAUSED
    if snapshot.missing and snapshot.trades.empty:
        return EMPTY
    if snapshot.problem or query_age is None or silent:
        return DOWN
    if trade_age is None:
        return EMPTY
    return STALE if trade_age > STALE_AFTER else LIVE
