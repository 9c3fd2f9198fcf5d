"""The page: the latest 200 trades, every two seconds.

    streamlit run dashboard.py

It reads the database that DATABASE_URL names and never writes to it. All viewers share one query per interval. What
is on the screen is told from top to bottom; the figures come from pipeline/snapshot.py.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import streamlit as st
from streamlit.components import v2

from pipeline.charts import WEB, live_chart, price_figure, volume_figure
from pipeline.feed import Feed, read_only_engine
from pipeline.settings import SettingsError, read_settings
from pipeline.snapshot import (
    DOWN,
    PAUSED,
    WINDOW,
    Figures,
    Snapshot,
    View,
    figures,
    span_seconds,
    state,
    trades_per_second,
)

INTERVALS = [1, 2, 5, 10, 30]  # seconds
DEFAULT_INTERVAL = 2
SAME_TICK = 0.95  # of an interval: younger than this, a snapshot serves the next viewer too


def main() -> None:
    """Draw the page; only `tick` is drawn again at every interval."""
    st.set_page_config("Live trades", page_icon=str(WEB / "icon.svg"), layout="wide")
    st.html(WEB / "page.css")
    title, side, scale, interval, pause = st.columns([5, 2, 2, 1.3, 1.2], vertical_alignment="center")
    title.title("Live trades", anchor=False)
    with side:
        st.segmented_control(
            "Side",
            ["all", "buy", "sell"],
            default="all",
            required=True,
            key="side",
            bind="query-params",
            label_visibility="collapsed",
        )
    with scale:
        st.segmented_control(
            "Scale",
            ["price", "indexed"],
            default="price",
            required=True,
            key="scale",
            bind="query-params",
            label_visibility="collapsed",
        )
    with interval:
        seconds = st.selectbox(
            "Refresh",
            INTERVALS,
            index=INTERVALS.index(DEFAULT_INTERVAL),
            format_func="{} s".format,
            key="every",
            bind="query-params",
            label_visibility="collapsed",
        )
    with pause:
        paused = st.toggle("Pause", key="paused", bind="query-params")
    st.fragment(tick, run_every=None if paused else seconds)(seconds, paused)


@st.cache_resource(show_spinner=False)
def feed() -> Feed:
    return Feed(read_only_engine(read_settings().database_url))


def tick(interval: float, paused: bool) -> None:
    """Show one snapshot in every panel."""
    snapshot = current_snapshot(interval, paused)
    seen = figures(
        snapshot,
        View(
            tuple(st.session_state.get("tickers", ())),
            None if st.session_state.side == "all" else st.session_state.side,
        ),
    )
    draw_status(snapshot, interval, paused)
    draw_kpis(seen)
    left, right = st.columns([1, 1.02])
    with left:
        st.header("Price trend (last 200 trades)", anchor=False)
        live_chart("price", price_figure(seen.trades, st.session_state.scale == "indexed"), "…", 330)
        st.header("Volume by ticker (last 200 trades)", anchor=False)
        live_chart("volume", volume_figure(seen.trades), "…", 230)
    with right:
        st.header("Watchlist", anchor=False)
        draw_watchlist(seen)
        st.header("Most recent trades", anchor=False)
        draw_tape(seen)


def current_snapshot(interval: float, paused: bool) -> Snapshot:
    if not paused:
        st.session_state.pop("frozen", None)
        return feed().latest(SAME_TICK * interval)
    if "frozen" not in st.session_state:
        st.session_state.frozen = feed().latest(SAME_TICK * interval)
    return st.session_state.frozen


_status = v2.component(
    "status",
    html='<div class="status"><b role="status"></b><span class="ages"></span><span class="facts"></span></div>',
    js=(WEB / "status.js").read_text(),
    isolate_styles=False,
)


def draw_status(snapshot: Snapshot, interval: float, paused: bool) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    newest = None if snapshot.trades.empty else snapshot.trades["timestamp"].iloc[0]
    trade_age = None if newest is None else (now - newest).total_seconds()
    query_age = feed().age(snapshot)
    word = state(snapshot, trade_age, query_age, interval, paused)
    rate = trades_per_second(snapshot.trades)
    _status(
        key="status",
        data={
            "word": word,
            "moving": not paused,
            "ages": [
                {"name": "newest trade", "age": trade_age, "time": clock(newest)},
                {
                    "name": "last good query",
                    "age": query_age,
                    "time": clock(query_age is not None and now - timedelta(seconds=query_age)),
                },
            ],
            "facts": [
                f"{rate:,.1f} trades/s" if rate else "– trades/s",
                f"window {span_seconds(snapshot.trades):,.1f} s",
            ],
        },
    )


def clock(moment: Any) -> str:
    return f"{moment:%H:%M:%S} UTC" if moment else "never"


def draw_kpis(seen: Figures) -> None:
    cells = {
        "Trades (last 200)": f"{seen.count:,}",
        "Avg Price": money(seen.average_price),
        "Total Volume": f"{seen.total_volume:,}",
        "Most Active Ticker": seen.most_active or "–",
        "VWAP": money(seen.vwap),
        "Buy share": f"{seen.buy_share:.1%}" if seen.buy_share is not None else "–",
    }
    for column, (label, value) in zip(st.columns(6), cells.items()):
        column.metric(label, value)


def money(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:,.2f}"


def draw_watchlist(seen: Figures) -> None:
    number, column = st.column_config.NumberColumn, st.column_config
    table = seen.watchlist.reset_index()
    rises = table["change"].map(
        lambda change: "color: #2DD4BF" if change > 0 else "color: #FB923C" if change < 0 else ""
    )
    table["last"] = [
        f"{'▲' if c > 0 else '▼' if c < 0 else '='} {p:,.2f}" for c, p in zip(table["change"], table["last"])
    ]
    styled = (
        table.style.apply(lambda _: rises, subset=["last"])
        .apply(lambda _: rises, subset=["change"])
        .apply(lambda _: rises, subset=["change_percent"])
    )
    st.dataframe(
        styled,
        height=30 + 7 * 26,
        row_height=26,
        key="watchlist",
        hide_index=True,
        column_config={
            "ticker": column.TextColumn("Ticker", width=60),
            "last": column.TextColumn("Last", width=80),
            "change": number("Chg", format="%+.2f", width=55),
            "change_percent": number("Chg %", format="%+.2f %%", width=65),
            "vwap": number("VWAP", format="%.2f", width=65),
            "high": number("High", format="%.2f", width=65),
            "low": number("Low", format="%.2f", width=65),
            "volume": number("Volume", format="%,d", width=60),
            "buy_share": column.ProgressColumn(
                "Buy", format="percent", width=80, min_value=0, max_value=1, color="#2DD4BF"
            ),
            "prices": column.LineChartColumn("Window", color="auto", width=90),
        },
    )


def draw_tape(seen: Figures) -> None:
    st.dataframe(
        seen.trades,
        height=330,
        row_height=26,
        hide_index=True,
        key="tape",
        column_order=["timestamp", "ticker", "side", "price", "volume", "trade_id"],
        column_config={
            "timestamp": st.column_config.DatetimeColumn("time (UTC)", format="HH:mm:ss.SSS"),
            "price": st.column_config.NumberColumn(format="%.2f"),
            "side": st.column_config.MultiselectColumn("side", options=["buy", "sell"], color=["#0F766E", "#9A3412"]),
        },
    )


if __name__ == "__main__":
    main()
