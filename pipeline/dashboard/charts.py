"""The charts as plain Plotly figures, and the component that brings them up to date in place.

`st.plotly_chart` makes a new chart whenever the data change, and with it go zoom, legend choices and hover.
"""

import json
from functools import lru_cache
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

from streamlit.components import v1, v2

from pipeline.dashboard.candles import Candle
from pipeline.dashboard.snapshot import Figures

Figure = dict[str, Any]  # what Plotly.js takes: {"data": [...], "layout": {...}}

WEB = Path(__file__).parent / "web"
TEXT, FAINT, GRID = "#D6DEE8", "#93A1B2", "#1B2530"
BUY, SELL = "#2DD4BF", "#FB923C"
BUY_DARK, SELL_DARK = "#0F766E", "#9A3412"  # the same behind white letters
# Okabe and Ito's colours, which stay apart for colour-blind eyes; black would not show, so it is white.
COLOURS = {
    "AAPL": "#56B4E9", "MSFT": "#E69F00", "GOOGL": "#009E73", "AMZN": "#F0E442",
    "TSLA": "#D55E00", "META": "#CC79A7", "NVDA": "#FFFFFF",
}  # fmt: skip
HATCHING = {"fillmode": "overlay", "fgcolor": "#0B0F14", "size": 5, "solidity": 0.25}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")

# Serves Plotly's own folder: nothing is copied, and nothing comes from another host.
v1.declare_component("plotly", path=str(files("plotly") / "package_data"))
_live_chart = v2.component(
    "live_chart",
    html='<figure class="chart"><div></div><figcaption class="unseen"></figcaption></figure>',
    js=(WEB / "chart.js").read_text(),
    isolate_styles=False,
)


def live_chart(key: str, figure: bytes, height: int) -> None:
    """Show a figure from `encode`, or bring the one already shown under this key up to date. Height in pixels."""
    _live_chart(key=key, data=figure, height=height)


def encode(figure: Figure, height: int, summary: str) -> bytes:
    """Return what the browser draws: the figure, and in `summary` the same in words for those who cannot see it."""
    figure["layout"] |= {"height": height}
    if not figure["data"]:
        nothing = {"text": "no trades here", "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        hidden = {axis: {"visible": False} for axis in ("xaxis", "yaxis", "yaxis2")}
        figure["layout"] |= hidden | {"annotations": [nothing]}
    return json.dumps({"figure": figure, "summary": summary}, separators=(",", ":")).encode()


@lru_cache(maxsize=64)
def price_chart(seen: Figures, indexed: bool, height: int) -> bytes:
    """Price over time, a stepped line per ticker: a price holds until the next trade. Indexed: first trade = 100."""
    lines = []
    for ticker, own in seen.trades[::-1].groupby("ticker", sort=True):
        price = own["price"] / own["price"].iloc[0] * 100 if indexed else own["price"]
        colour, symbol = mark(str(ticker))
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(str(ticker)),
                "uid": str(ticker),  # a legend choice stays with its ticker when another one appears
                "x": own["timestamp"].astype(str).tolist(),
                "y": price.round(4).tolist(),
                "line": {"shape": "hv", "color": colour, "width": 1.5},
                "marker": {"symbol": symbol, "size": 5, "color": colour},
                "hovertemplate": "%{y:,.2f}",
            }
        )
    figure = {"data": lines, "layout": layout("indexed" if indexed else "price", yaxis={"tickformat": ",.2f"})}
    rows = seen.watchlist.itertuples()
    said = "; ".join(f"{row.Index} last {row.last:,.2f}, {row.change_percent:+.2f} %" for row in rows)
    return encode(figure, height, f"Price trend: {said or 'no trades'}.")


@lru_cache(maxsize=64)
def volume_chart(seen: Figures, height: int) -> bytes:
    """Volume by ticker, most active first; sold on top of bought, told apart by colour and by hatching."""
    table = seen.watchlist.sort_values("volume", ascending=False, kind="stable")
    bought = seen.trades[seen.trades["side"] == "buy"].groupby("ticker")["volume"].sum()
    bought = bought.reindex(table.index, fill_value=0)
    bars = [
        {
            "type": "bar",
            "name": side,
            "x": [plain(ticker) for ticker in table.index],
            "y": volume.tolist(),
            "marker": {"color": colour, "pattern": HATCHING | {"shape": shape}},
            "hovertemplate": "%{y:,d}",
        }
        for side, volume, colour, shape in (("buy", bought, BUY, ""), ("sell", table["volume"] - bought, SELL, "/"))
        if len(table)
    ]
    axes = {"xaxis": {"type": "category"}, "yaxis": {"tickformat": "~s"}}
    said = "; ".join(f"{row.Index} {row.volume:,}, {row.buy_share:.0%} bought" for row in table.itertuples())
    figure = {"data": bars, "layout": layout("volume", barmode="stack", bargap=0.35, **axes)}
    return encode(figure, height, f"Volume by ticker: {said or 'no trades'}.")


@lru_cache(maxsize=32)
def candle_chart(ticker: str, candles: tuple[Candle, ...], height: int) -> bytes:
    """Open, high, low and close per step, the volume under it, and the session's VWAP up to each moment."""
    times = [str(candle.start) for candle in candles]
    volumes = [candle.volume for candle in candles]
    notionals = accumulate(candle.notional for candle in candles)
    vwap = [round(notional / volume, 4) for notional, volume in zip(notionals, accumulate(volumes), strict=True)]
    data = [
        {
            "type": "candlestick",
            "name": plain(ticker),
            "x": times,
            **{part: [getattr(candle, part) for candle in candles] for part in ("open", "high", "low", "close")},
            "increasing": {"line": {"color": BUY, "width": 1}, "fillcolor": "#0B0F14"},  # hollow: not by colour alone
            "decreasing": {"line": {"color": SELL, "width": 1}, "fillcolor": SELL},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "VWAP",
            "x": times,
            "y": vwap,
            "line": {"color": TEXT, "width": 1},
        },
        {"type": "bar", "name": "volume", "x": times, "y": volumes, "yaxis": "y2", "marker": {"color": "#3B4A5C"}},
    ]
    axes = {
        "xaxis": {"rangeslider": {"visible": False}, "anchor": "y2"},
        "yaxis": {"domain": [0.26, 1], "tickformat": ",.2f"},
        "yaxis2": {"domain": [0, 0.2], "tickformat": "~s", "nticks": 3},
    }
    said = "no trades"
    if candles:
        low, high = min(candle.low for candle in candles), max(candle.high for candle in candles)
        said = f"open {candles[0].open:,.2f}, high {high:,.2f}, low {low:,.2f}, last {candles[-1].close:,.2f}"
    figure = {"data": data if candles else [], "layout": layout(f"session {ticker}", **axes)}
    return encode(figure, height, f"Session of {ticker}: {said}.")


def layout(view: str, **own: Any) -> Figure:  # noqa: ANN401 - Plotly's own words, of any shape
    """Return the look that all charts share; as long as `view` stays the same, so does what the viewer did to it."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    return {
        "uirevision": view,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 11, "color": FAINT},
        "margin": {"l": 8, "r": 8, "t": 26, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"color": TEXT}},
        "hoverlabel": {"bgcolor": "#121922", "bordercolor": "#263241", "font": {"color": TEXT}},
        "hovermode": "x unified",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": TEXT},
        **own,
        **{name: axis | own.get(name, {}) for name in {"xaxis", "yaxis"} | {n for n in own if "axis" in n}},
    }


@lru_cache(maxsize=1024)
def mark(ticker: str) -> tuple[str, str]:
    """Return the colour and the marker of a ticker; one that a user invented gets its own by its name, for good."""
    own = [*COLOURS].index(ticker) if ticker in COLOURS else crc32(ticker.encode())
    return [*COLOURS.values()][own % 7], SYMBOLS[(own if ticker in COLOURS else own // 7) % 7]


def plain(text: str) -> str:
    """Return text so that Plotly, which reads some HTML, shows it as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
