"""The charts as plain Plotly figures, and the component that brings them up to date in place.

`st.plotly_chart` makes a new chart whenever the data change, and with it go zoom, legend choices and hover.
"""

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
import streamlit as st
from streamlit.components import v1, v2

Figure = dict[str, Any]  # what Plotly.js takes: {"data": [...], "layout": {...}}

WEB = Path(__file__).parent / "web"
TEXT, FAINT, GRID = "#D6DEE8", "#93A1B2", "#1B2530"
BUY, SELL = "#2DD4BF", "#FB923C"
# Okabe and Ito's colours, which stay apart for colour-blind eyes; black would not show, so it is white.
COLOURS = {
    "AAPL": "#56B4E9", "MSFT": "#E69F00", "GOOGL": "#009E73", "AMZN": "#F0E442",
    "TSLA": "#D55E00", "META": "#CC79A7", "NVDA": "#FFFFFF",
}  # fmt: skip
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x")

# Serves Plotly's own folder: nothing is copied, and nothing comes from another host.
v1.declare_component("plotly", path=str(files("plotly") / "package_data"))
_live_chart = v2.component(
    "live_chart",
    html='<figure class="chart"><div></div><figcaption class="unseen"></figcaption></figure>',
    js=(WEB / "chart.js").read_text(),
    isolate_styles=False,
)


def live_chart(key: str, figure: Figure, summary: str, height: int) -> None:
    """Show a figure, or bring the one already shown under this key up to date; `summary` says in words what it shows."""
    figure["layout"]["height"] = height
    _live_chart(key=key, data=as_bytes(figure, summary), height=height)


def as_bytes(figure: Figure, summary: str) -> bytes:
    return json.dumps({"figure": figure, "summary": summary}, separators=(",", ":")).encode()


def price_figure(trades: pd.DataFrame, indexed: bool) -> Figure:
    """Price over time, a stepped line per ticker: a price holds until the next trade. Indexed: first trade = 100."""
    lines = []
    for ticker, own in trades[::-1].groupby("ticker", sort=True):
        price = own["price"] / own["price"].iloc[0] * 100 if indexed else own["price"]
        colour, symbol = mark(str(ticker))
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plain(str(ticker)),
                "uid": str(ticker),
                "x": timestamps(own["timestamp"]),
                "y": price.round(4).tolist(),
                "line": {"shape": "hv", "color": colour, "width": 1.5},
                "marker": {"symbol": symbol, "size": 5, "color": colour},
                "hovertemplate": "%{y:,.2f}",
            }
        )
    axis = {"hoverformat": ",.2f", "tickformat": ",.2f"}
    return {"data": lines, "layout": layout("indexed" if indexed else "price", yaxis=axis, hovermode="x unified")}


def volume_figure(trades: pd.DataFrame) -> Figure:
    """Volume by ticker, most active first, bought and sold on top of each other."""
    volume = trades.groupby(["ticker", "side"])["volume"].sum().unstack(fill_value=0)
    order = volume.sum(axis=1).sort_values(ascending=False, kind="stable").index
    names = [plain(str(ticker)) for ticker in order]
    bars = [
        {
            "type": "bar",
            "name": side,
            "x": names,
            "y": volume[side].reindex(order).tolist() if side in volume else [0] * len(names),
            "marker": {
                "color": colour,
                "pattern": {"shape": pattern, "fillmode": "overlay", "fgcolor": "#0B0F14", "size": 5, "solidity": 0.25},
            },
            "hovertemplate": "%{y:,d}",
        }
        for side, colour, pattern in (("buy", BUY, ""), ("sell", SELL, "/"))
    ]
    axes = {"xaxis": {"type": "category", "gridcolor": GRID, "fixedrange": True}, "yaxis": {"tickformat": "~s"}}
    return {"data": bars, "layout": layout("volume", barmode="stack", bargap=0.35, hovermode="x unified", **axes)}


def layout(view: str, **own: Any) -> Figure:
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
        "dragmode": "zoom",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": TEXT},
        **own,
        "xaxis": axis | own.get("xaxis", {}),
        "yaxis": axis | own.get("yaxis", {}),
    }


@lru_cache(maxsize=1024)
def mark(ticker: str) -> tuple[str, str]:
    """Return the colour and the marker of a ticker; one that a user invented gets its own by its name, for good."""
    own = [*COLOURS].index(ticker) if ticker in COLOURS else crc32(ticker.encode())
    return [*COLOURS.values()][own % 7], SYMBOLS[(own if ticker in COLOURS else own // 7) % 7]


def plain(text: str) -> str:
    """Return text so that Plotly, which reads some HTML, shows it as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def timestamps(times: pd.Series) -> list[str]:
    """Return times as Plotly reads them, to the microsecond."""
    return [time.isoformat(sep=" ", timespec="microseconds") for time in times]
