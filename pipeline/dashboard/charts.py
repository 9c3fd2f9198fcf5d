"""The charts as Plotly figures; web/chart.js adds their common styling in the browser."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from typing import Any
from zlib import crc32

from pipeline.dashboard.candles import Candle
from pipeline.dashboard.feed import shared
from pipeline.dashboard.snapshot import Figures, Line, long_pauses
from pipeline.dashboard.wording import amount, duration, encoded, for_plotly, signed

Figure = dict[str, Any]  # what Plotly.js takes: {"data": [...], "layout": {...}}

# Okabe and Ito's palette, which colour-blind people can tell apart; black would not show, so white replaces it.
COLOURS = {
    "AAPL": "#56B4E9", "MSFT": "#E69F00", "GOOGL": "#009E73", "AMZN": "#F0E442",
    "TSLA": "#D55E00", "META": "#CC79A7", "NVDA": "#FFFFFF",
}  # fmt: skip
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")
MOST_LINES, MOST_BARS = 7, 30  # as many as one chart shows legibly; the viewer may choose more lines
SHORTEST_WINDOW = timedelta(seconds=30)


def figure(data: list[Figure], layout: Figure, summary: str) -> bytes:
    """Return the figure that the browser draws; `summary` says the same in words for those who cannot see it."""
    return encoded({"data": data, "layout": layout, "summary": summary})


@shared
def price_chart(seen: Figures, scale: str, every_ticker: bool) -> bytes:
    """Return prices, or their change in per cent since the ticker's first trade; each line ends at its last price.

    Shows the most active tickers, or all of them with `every_ticker`.
    """
    shown = sorted(seen.lines, key=lambda line: -line.volume)[: None if every_ticker else MOST_LINES]
    times = seen.trades["timestamp"].tolist()[::-1]
    lines = [price_line(line, scale, str(times[-1])) for line in sorted(shown)]
    axis = {"tickformat": ",.2f", "ticksuffix": "%" if scale == "change" else ""}
    drawn = f"the {MOST_LINES} most active of {len(seen.lines)} tickers" if len(shown) < len(seen.lines) else ""
    title = {"text": "  ·  ".join(filter(None, [moved_most(seen.lines), drawn]))}
    layout = {"uirevision": scale, "title": title, "yaxis": axis} | time_axis(times, seen.filling)
    said = "; ".join(f"{line.ticker} last {amount(line.last)}, {signed(line.changes[-1], '%')}" for line in seen.lines)
    return figure(lines, layout, f"Price trend: {said or 'no trades'}.")


def moved_most(lines: Sequence[Line]) -> str:
    """Return in words which of several tickers moved most since its first trade, in per cent."""
    line = max(lines, key=lambda line: abs(line.changes[-1]), default=None)
    if line is None or len(lines) == 1 or not round(line.changes[-1], 2):
        return ""
    return f"moved most: <b>{for_plotly(line.ticker)} {signed(line.changes[-1], '%')}</b>"


def price_line(line: Line, scale: str, until: str) -> Figure:
    """Return one ticker's line, stepped: a price holds until the next trade, the last one to the end of the chart."""
    values = line.changes if scale == "change" else line.prices
    told = [f"{amount(price)} {signed(change, '%')}" for price, change in zip(line.prices, line.changes, strict=True)]
    colour, symbol = mark(line.ticker)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": for_plotly(line.ticker),
        "x": [*line.times, until],
        "y": [*values, values[-1]],
        "customdata": [*told, told[-1]],
        "line": {"shape": "hv", "color": colour, "width": 1.5},
        "marker": {"symbol": symbol, "size": [5] * len(values) + [0], "color": colour, "line": {"width": 0}},
        "hovertemplate": "%{customdata}",
    }


def time_axis(times: Sequence[datetime], filling: bool) -> Figure:
    """Return the layout of a time axis, with long pauses cut out; `times` are oldest first.

    While the window is `filling`, the axis spans at least 30 s, so that the first trades do not stretch across it.
    """
    if not times:
        return {}
    pauses, active = long_pauses(times)
    edge = active / 50  # how much of a pause stays visible on either side of the cut
    cuts = [(str(before + edge), str(after - edge)) for before, after in pauses]
    said = [f"no trades for {duration((after - before).total_seconds())}" for before, after in pauses]
    return {
        "xaxis": {
            "type": "date",
            "tickangle": 0,
            "autorangeoptions": {"include": str(times[0] + (SHORTEST_WINDOW if filling else timedelta(0)))},
            "rangebreaks": [{"bounds": cut} for cut in cuts],
        },
        "shapes": [{"type": "line", "x0": cut, "x1": cut, "yref": "paper", "y0": 0, "y1": 1} for cut, _ in cuts],
        "annotations": [
            {"text": text, "x": cut, "yref": "paper", "y": 0} for text, (cut, _) in zip(said, cuts, strict=True)
        ],
    }


@shared
def volume_chart(seen: Figures) -> bytes:
    """Return volume by ticker, most active first, with sold stacked on bought."""
    lines = sorted(seen.lines, key=lambda line: -line.volume)[:MOST_BARS]
    bought, sold = [line.bought for line in lines], [line.volume - line.bought for line in lines]
    names = [for_plotly(line.ticker) for line in lines]
    bars = [{"type": "bar", "name": side, "x": names, "y": y} for side, y in (("buy", bought), ("sell", sold)) if lines]
    drawn = f"{MOST_BARS} of {len(seen.lines)} tickers" if len(lines) < len(seen.lines) else ""
    title = {"text": drawn, "x": 1}  # to the right of the legend
    layout = {"uirevision": "volume", "title": title, "barmode": "stack", "bargap": 0.35, "xaxis": {"type": "category"}}
    said = "; ".join(f"{line.ticker} {line.volume:,}, {line.bought / line.volume:.0%} bought" for line in lines)
    return figure(bars, layout | {"yaxis": {"tickformat": "~s"}}, f"Volume by ticker: {said or 'no trades'}.")


@shared
def candle_chart(ticker: str, candles: tuple[Candle, ...]) -> bytes:
    """Return open, high, low and close per step, the volume below, and the VWAP up to each moment."""
    times, volumes = [str(candle.start) for candle in candles], [candle.volume for candle in candles]
    notionals = accumulate(candle.notional for candle in candles)
    vwap = [round(notional / volume, 4) for notional, volume in zip(notionals, accumulate(volumes), strict=True)]
    prices = {part: [getattr(candle, part) for candle in candles] for part in ("open", "high", "low", "close")}
    data: list[Figure] = [
        {"type": "candlestick", "name": for_plotly(ticker), "x": times, **prices},
        {"type": "scatter", "mode": "lines", "name": "VWAP", "x": times, "y": vwap},
        {"type": "bar", "name": "volume", "x": times, "y": volumes, "yaxis": "y2"},
    ]
    layout = time_axis([candle.start for candle in candles], filling=True) | {"uirevision": ticker}
    layout["xaxis"] |= {"rangeslider": {"visible": False}, "anchor": "y2"}
    layout["yaxis"] = {"domain": [0.26, 1], "tickformat": ",.2f"}
    layout["yaxis2"] = {"domain": [0, 0.2], "tickformat": "~s", "nticks": 3}
    low, high = min(prices["low"]), max(prices["high"])
    said = f"open {amount(candles[0].open)}, high {amount(high)}, low {amount(low)}, last {amount(candles[-1].close)}"
    return figure(data, layout, f"Candles of {ticker}: {said}.")


@lru_cache(maxsize=1024)
def mark(ticker: str) -> tuple[str, str]:
    """Return a ticker's colour and marker; those of an unknown ticker derive from its name, so they never change."""
    own = [*COLOURS].index(ticker) if ticker in COLOURS else crc32(ticker.encode())
    return [*COLOURS.values()][own % 7], SYMBOLS[(own if ticker in COLOURS else own // 7) % 7]
