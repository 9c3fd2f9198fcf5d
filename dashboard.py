"""The page: the latest 200 trades, every two seconds, and the session so far.

    streamlit run dashboard.py

It reads the database that DATABASE_URL names and never writes to it. However many browsers look at it, the database
is asked once per interval. This file tells what is on the screen from top to bottom; the figures come from
pipeline/dashboard/snapshot.py and pipeline/dashboard/candles.py, the pictures from pipeline/dashboard/charts.py.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from functools import partial

import streamlit as st
from streamlit.components import v2
from streamlit.delta_generator import DeltaGenerator as Place

from pipeline.dashboard.candles import Session, candles_of, read_session
from pipeline.dashboard.charts import (
    BUY,
    BUY_DARK,
    SELL,
    SELL_DARK,
    WEB,
    candle_chart,
    live_chart,
    price_chart,
    volume_chart,
)
from pipeline.dashboard.feed import Feed, read_only_engine, read_snapshot
from pipeline.dashboard.snapshot import (
    DOWN,
    EMPTY,
    Figures,
    Snapshot,
    View,
    as_trades,
    figures,
    span_seconds,
    state,
    trades_per_second,
)
from pipeline.settings import read_settings
from pipeline.user_error import UsageError

INTERVALS = (1, 2, 5, 10, 30)  # seconds
DEFAULT_INTERVAL = 2
SAME_TICK = 0.96  # of an interval: an answer younger than that serves the next viewer too
ROW = 26  # pixels
KEY_FIGURES = ("Trades (last 200)", "Avg Price", "Total Volume", "Most Active Ticker", "VWAP", "Buy share")
NO_TRADES = "No trades yet. Start producer.py and consumer.py: the first trade appears here by itself."


def main() -> None:
    """Draw the page. From then on only `tick` is drawn, once per interval."""
    st.set_page_config("Live trades", page_icon=str(WEB / "icon.svg"), layout="wide")
    st.html(WEB / "page.css")
    try:
        feeds()
    except UsageError as error:
        st.error(str(error))
        return
    interval, paused = draw_header()
    # Redrawn without a timer, a paused page stands still but still answers its viewer.
    st.fragment(tick, run_every=None if paused else interval)(draw_layout(), interval, paused)


@st.cache_resource(show_spinner=False)
def feeds() -> tuple[Feed[Snapshot], Feed[Session]]:
    """Return what all viewers share: the newest trades and the session so far."""
    engine = read_only_engine(read_settings().database_url)
    unknown = Snapshot(as_trades(), problem="The database has not answered yet.")
    return Feed(partial(read_snapshot, engine), unknown), Feed(partial(read_session, engine), Session())


def draw_header() -> tuple[int, bool]:
    """Draw the title and the controls, which also live in the address bar; return the interval and the pause."""
    title, side, scale, every, pause = st.columns([7, 1.5, 1.7, 1, 1], vertical_alignment="center")
    title.title("Live trades", anchor=False)
    control = partial(st.segmented_control, required=True, bind="query-params", label_visibility="collapsed")
    with side:
        control("Side", ["all", "buy", "sell"], default="all", key="side")
    with scale:
        control("Price scale", ["price", "indexed"], default="price", key="scale")
    interval = every.selectbox(
        "Refresh every",
        INTERVALS,
        index=INTERVALS.index(DEFAULT_INTERVAL),
        format_func="{} s".format,
        key="every",
        bind="query-params",
        label_visibility="collapsed",
    )
    return interval, pause.toggle("Pause", key="paused", bind="query-params")


def draw_layout() -> dict[str, Place]:
    """Draw the titles of the panels, and keep a place for what is in them.

    What never changes is drawn here, once: every message to every viewer costs.
    """
    place: dict[str, Place] = {}
    place["status"], place["tickers"] = st.columns([3.6, 1], vertical_alignment="center")
    place["notice"] = st.container()
    place |= dict(zip(KEY_FIGURES, st.columns(len(KEY_FIGURES)), strict=True))
    left, right = st.columns([1, 1.04])
    with left:
        st.header("Price trend (last 200 trades)", anchor=False)
        place["price"] = st.container()
        st.header("Volume by ticker (last 200 trades)", anchor=False)
        place["volume"] = st.container()
    with right:
        st.header("Watchlist · change since the window’s first trade", anchor=False)
        place["watchlist"] = st.container()
        title, place["csv"] = st.columns([7, 1], vertical_alignment="bottom")
        title.header("Most recent trades", anchor=False)
        place["tape"] = st.container()
    place["session title"], place["session ticker"] = st.columns([6, 1], vertical_alignment="center")
    place["session"] = st.container()
    return place


def tick(place: dict[str, Place], interval: int, paused: bool) -> None:
    """Draw every panel from one snapshot; a fragment has to write to each place in its first run."""
    snapshot, session = current(interval, paused)
    with place["tickers"]:
        tickers = draw_ticker_choice(snapshot)
    with place["status"]:
        word = draw_status(snapshot, interval, paused)
    with place["notice"]:
        st.empty()
        if snapshot.trades.empty and word in (EMPTY, DOWN):
            (st.error if word == DOWN else st.info)(snapshot.problem or NO_TRADES)
    side = st.session_state.side
    seen = figures(snapshot, View(tuple(tickers), None if side == "all" else side))
    draw_key_figures(place, seen)
    with place["price"]:
        live_chart("price", price_chart(seen, st.session_state.scale == "indexed", 366), 366)
    with place["volume"]:
        live_chart("volume", volume_chart(seen, 240), 240)
    with place["watchlist"]:
        draw_watchlist(seen)
    with place["csv"]:
        draw_download(seen)
    with place["tape"]:
        draw_tape(seen)
    draw_session(place, session)


def current(interval: int, paused: bool) -> tuple[Snapshot, Session]:
    """Return what to draw; while the page is paused, always the same."""
    if not paused or "held" not in st.session_state:
        snapshots, sessions = feeds()
        # The session is below the fold: what is not counted yet may come with the next tick.
        st.session_state.held = snapshots.latest(SAME_TICK * interval), sessions.latest(SAME_TICK * interval, 0.05)
    held: tuple[Snapshot, Session] = st.session_state.held
    return held


# What viewers of the same figures see is worked out for the first of them, and only sent to the others.
draw_once = st.cache_data(show_spinner=False, max_entries=64, hash_funcs={Figures: lambda seen: seen.number})

_status = v2.component(
    "status",
    html='<div class="status"><b role="status"></b><span class="ages"></span><span class="facts"></span></div>',
    js=(WEB / "status.js").read_text(),
    isolate_styles=False,
)


def draw_status(snapshot: Snapshot, interval: int, paused: bool) -> str:
    """Draw the status line and return its word. The ages count on in the browser, unless the page is paused."""
    now = datetime.now(UTC).replace(tzinfo=None)
    trades = snapshot.trades
    newest = None if trades.empty else trades["timestamp"].iloc[0]
    trade_age = None if newest is None else (now - newest).total_seconds()
    query_age = None if snapshot.read_at is None else time.monotonic() - snapshot.read_at
    answered = None if query_age is None else now - timedelta(seconds=query_age)
    word = state(snapshot, trade_age, query_age, interval, paused)
    rate = trades_per_second(trades)
    facts = f"{rate:,.1f} trades/s" if rate else "– trades/s"
    if word == DOWN:
        facts = snapshot.problem or "The database does not answer."
    elif newest is not None:
        facts += f"  ·  window {span_seconds(trades):,.1f} s to {newest:%H:%M:%S} UTC"
    data = {
        "word": word,
        "moving": not paused,
        "ages": [
            {"name": "newest trade", "age": trade_age, "time": clock(newest)},
            {"name": "last good query", "age": query_age, "time": clock(answered)},
        ],
        "facts": facts,
    }
    _status(key="status", data=data)
    return word


def draw_ticker_choice(snapshot: Snapshot) -> list[str]:
    """Draw the choice of tickers; one that is in the address but not in the window keeps its place."""
    known = set(snapshot.trades["ticker"]) | set(st.session_state.get("tickers", ()))
    return st.multiselect(
        "Tickers",
        sorted(known),
        key="tickers",
        bind="query-params",
        accept_new_options=True,
        placeholder="All tickers",
        label_visibility="collapsed",
    )


def draw_key_figures(place: dict[str, Place], seen: Figures) -> None:
    """Draw the row of key figures."""
    values = (
        f"{seen.count:,}",
        amount(seen.average_price),
        f"{seen.total_volume:,}",
        literal(seen.most_active or "–"),
        amount(seen.vwap),
        "–" if seen.buy_share is None else f"{seen.buy_share:.1%}",
    )
    for label, value in zip(KEY_FIGURES, values, strict=True):
        place[label].metric(label, value)


@draw_once
def draw_watchlist(seen: Figures) -> None:
    """Draw a row per ticker."""
    watchlist = seen.watchlist
    rows = zip(watchlist["change"], watchlist["last"], strict=True)
    table = watchlist.assign(
        last=[f"{arrow(change)} {last:,.2f}" for change, last in rows], buy_share=watchlist["buy_share"] * 100
    )
    colour = [f"color: {BUY if change > 0 else SELL}" if change else "" for change in watchlist["change"]]
    styled = table.reset_index().style.apply(lambda column: colour, subset=["last", "change", "change_percent"])
    number, price = st.column_config.NumberColumn, partial(st.column_config.NumberColumn, format="%.2f", width=64)
    st.dataframe(
        styled,
        key="watchlist",
        hide_index=True,
        row_height=ROW,
        height=30 + 7 * ROW,
        alt="Watchlist: a row per ticker",
        column_config={
            "ticker": st.column_config.TextColumn("Ticker", width=64),
            "last": st.column_config.TextColumn("Last", width=86),
            "change": number("Chg", format="%+.2f", width=56),
            "change_percent": number("Chg %", format="%+.2f", width=56),
            "vwap": price("VWAP"),
            "high": price("High"),
            "low": price("Low"),
            "volume": number("Volume", format="localized", width=64),
            "buy_share": st.column_config.ProgressColumn(
                "Buy %", format="%.0f", min_value=0, max_value=100, width=76, color=BUY
            ),
            "prices": st.column_config.LineChartColumn("Window", color="auto", width=90),
        },
    )


def draw_download(seen: Figures) -> None:
    """Draw the button that takes the trades on the screen home; the file is made when somebody wants it."""
    st.download_button(
        "CSV",
        lambda: seen.trades.to_csv(index=False),
        "trades.csv",
        "text/csv",
        key="csv",
        on_click="ignore",
        width="stretch",
    )


@draw_once
def draw_tape(seen: Figures) -> None:
    """Draw the trades, newest first."""
    column = st.column_config
    several_days = span_seconds(seen.trades) > 86_400
    time_format = "YYYY-MM-DD HH:mm:ss.SSS" if several_days else "HH:mm:ss.SSS"
    st.dataframe(
        seen.trades,
        key="tape",
        hide_index=True,
        row_height=ROW,
        height=366,
        alt="Most recent trades, newest first",
        column_order=["timestamp", "ticker", "side", "price", "volume", "trade_id"],
        column_config={
            "timestamp": column.DatetimeColumn(
                "timestamp (UTC)", format=time_format, width=180 if several_days else 122
            ),
            "ticker": column.TextColumn("ticker", width=76),
            "side": column.MultiselectColumn("side", options=["buy", "sell"], color=[BUY_DARK, SELL_DARK], width=62),
            "price": column.NumberColumn("price", format="%.2f", width=78),
            "volume": column.NumberColumn("volume", format="localized", width=72),
            "trade_id": column.TextColumn("trade_id", width=290),
        },
    )


def draw_session(place: dict[str, Place], session: Session) -> None:
    """Draw the candles of one ticker since the session began."""
    if not session.tickers:
        place["session title"].header("Session so far", anchor=False)
        place["session ticker"].empty()
        place["session"].caption(session.problem or "Nothing has been counted yet.")
        return
    with place["session ticker"]:
        ticker = st.selectbox(
            "Ticker of the session", session.tickers, key="session", bind="query-params", label_visibility="collapsed"
        )
    step, candles = candles_of(session, ticker)
    since = session.chunks[0].times[0]
    reach = "since" if session.complete else "still reading back, so far to"
    title = f"Session so far · {literal(ticker)} in steps of {duration(step)} {reach} {since:%Y-%m-%d %H:%M:%S} UTC"
    place["session title"].header(f"{title} · {session.problem}" if session.problem else title, anchor=False)
    with place["session"]:
        live_chart("session_chart", candle_chart(ticker, tuple(candles), 360), 360)


def amount(value: float | None) -> str:
    """Return money as it is written, or a dash for none."""
    return "–" if value is None else f"{value:,.2f}"


def clock(moment: datetime | None) -> str:
    """Return a time of day, or a word for none."""
    return "never" if moment is None else f"{moment:%H:%M:%S} UTC"


def arrow(change: float) -> str:
    """Return the direction of a change, so that it is not told by colour alone."""
    return "▲" if change > 0 else "▼" if change < 0 else "＝"


def duration(step: timedelta) -> str:
    """Return a step of the session as people say it."""
    seconds = int(step.total_seconds())
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h"


def literal(text: str) -> str:
    """Return text so that Streamlit shows it as it is: no Markdown, and no :cat: or -> that becomes a picture."""
    return re.sub(r"([!-/:-@\[-`{-~])", "\\\\\\1\u2060", text)


if __name__ == "__main__":
    main()
