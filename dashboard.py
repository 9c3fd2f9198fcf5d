"""The page: the latest 200 trades, every two seconds, and the candles since trading began.

    streamlit run dashboard.py

It reads the database that DATABASE_URL names and never writes to it. However many browsers are open, the database is
queried once per interval. This file draws the screen from top to bottom; in pipeline/dashboard/, the figures come from
snapshot.py and candles.py, the charts from charts.py and the SQL from queries.py.
"""

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator as Place

from pipeline.dashboard.candles import History, candles_of, read_history
from pipeline.dashboard.charts import candle_chart, price_chart, volume_chart
from pipeline.dashboard.feed import Answer, Feed, query, read_only_engine, shared
from pipeline.dashboard.queries import LATEST_TRADES, WINDOW
from pipeline.dashboard.snapshot import (
    DOWN,
    LIVE,
    PAUSED,
    SILENT_AFTER,
    STALE_AFTER,
    Figures,
    Snapshot,
    as_csv,
    as_snapshot,
    figures,
    span_seconds,
    state,
    trades_per_second,
)
from pipeline.dashboard.web import WEB, chart, status_line, table
from pipeline.dashboard.wording import amount, clock, duration, encoded, for_streamlit, frequency
from pipeline.settings import read_settings
from pipeline.user_error import UsageError

INTERVALS = (1, 2, 5, 10, 30)  # seconds
DEFAULT_INTERVAL = 2
PATIENCE, FIRST_PATIENCE = 0.3, 2.0  # seconds a tick waits for an answer; after 0.5 s Streamlit would fade the page
SAME_TICK = 0.96  # of an interval: an answer younger than this serves the next viewer, too
CONTROL: dict[str, Any] = {"bind": "query-params", "label_visibility": "collapsed"}  # its value is kept in the URL
KEY_FIGURES = (f"Trades (last {WINDOW})", "Avg Price", "Total Volume", "Most Active Ticker", "VWAP", "Buy share")
PICTURES = """<div class="pictures"><button data-chart="price">Price trend as PNG</button>
    <button data-chart="volume">Volume as PNG</button><button data-chart="candle_chart">Candles as PNG</button></div>"""
NO_ANSWER = "The database does not answer."
NO_TRADES = "No trades yet. Start producer.py and consumer.py: trades appear here by themselves."


def main() -> None:
    """Draw the page. From then on only `tick` runs, once per interval."""
    st.set_page_config("Live trades", page_icon=str(WEB / "icon.svg"), layout="wide")
    st.html(WEB / "page.css")
    try:
        feeds()
    except UsageError as error:
        st.error(str(error))
        return
    interval, paused = draw_header()
    # Without a timer, a paused page stands still, yet responds to its viewer.
    st.fragment(tick, run_every=None if paused else interval)(draw_layout(), interval, paused)


@st.cache_resource(show_spinner=False)
def feeds() -> tuple[Feed[Snapshot], Feed[History]]:
    """Return the feeds that all viewers share: the newest trades, and the candles."""
    engine = read_only_engine(read_settings().database_url)
    return (
        Feed(lambda _: as_snapshot(query(engine, LATEST_TRADES)), Snapshot()),
        Feed(partial(read_history, engine), History()),
    )


def draw_header() -> tuple[int, bool]:
    """Draw the title and the controls, kept in the URL; return the interval and whether the page is paused."""
    title, side, scale, every, pause, save = st.columns([5, 1.8, 1.8, 1, 1, 0.9], vertical_alignment="center")
    title.title("Live trades", anchor=False)
    side.segmented_control("Side", ["all", "buy", "sell"], default="all", required=True, key="side", **CONTROL)
    scale.segmented_control("Price scale", ["change", "price"], default="change", required=True, key="scale", **CONTROL)
    default = INTERVALS.index(DEFAULT_INTERVAL)
    interval = every.selectbox("Refresh every", INTERVALS, default, "{} s".format, key="every", **CONTROL)
    # The file is built on demand, outside this session, so the figures it needs are captured here.
    on_screen: dict[str, Figures] = st.session_state.setdefault("on_screen", {})
    with save.popover("Save", width="stretch"):
        file = partial(st.download_button, "Trades as CSV", file_name="trades.csv", mime="text/csv", key="csv")
        file(lambda: as_csv((on_screen.get("now") or figures(Snapshot())).trades), on_click="ignore", width="stretch")
        st.html(PICTURES)  # web/chart.js handles their clicks
    return interval, pause.toggle("Pause", key="paused", bind="query-params")


def draw_layout() -> dict[str, Place]:
    """Draw the panels' titles, and reserve a place for each panel's content.

    Everything that never changes is drawn here, once, because every message to every viewer costs.
    """
    place: dict[str, Place] = {}
    place["status"], place["tickers"] = st.columns([3.6, 1], vertical_alignment="center")
    place["notice"] = st.container()
    place |= dict(zip(KEY_FIGURES, st.columns(len(KEY_FIGURES)), strict=True))
    left, right = st.columns([1, 1.04])
    with left:
        st.header(f"Price trend (last {WINDOW} trades)", anchor=False)
        place["price"] = st.container()
        st.header(f"Volume by ticker (last {WINDOW} trades)", anchor=False)
        place["volume"] = st.container()
    with right:
        st.header("Watchlist · change since the ticker’s first trade in the window", anchor=False)
        place["watchlist"] = st.container()
        st.header("Most recent trades", anchor=False)
        place["tape"] = st.container()
    place["candles title"], place["candles ticker"] = st.columns([6, 1], vertical_alignment="center")
    place["candles"] = st.container()
    return place


def tick(place: dict[str, Place], interval: int, paused: bool) -> None:
    """Draw every panel from one snapshot; a fragment must write to each place in its first run."""
    answer, counted = current(interval, paused)
    with place["tickers"]:
        draw_ticker_choice(answer.value)
    with place["status"]:
        word = draw_status(answer, interval, paused)
    with place["notice"]:
        st.empty()
        if answer.value.trades.empty:
            silent = word == DOWN or answer.read_at is None
            (st.error if word == DOWN else st.info)(answer.problem or (NO_ANSWER if silent else NO_TRADES))
    shown = figures(answer.value, tuple(st.session_state.tickers), st.session_state.side)
    st.session_state.on_screen["now"] = shown
    draw_key_figures(place, shown)
    with place["price"]:
        every_ticker = bool(st.session_state.tickers)
        chart(key="price", data=price_chart(shown, st.session_state.scale, every_ticker), height=366)
    with place["volume"]:
        chart(key="volume", data=volume_chart(shown), height=240)
    with place["watchlist"]:
        table(key="watchlist", data=watchlist(shown))
    with place["tape"]:
        table(key="tape", data=tape(shown))
    draw_candles(place, counted, shown.most_active)


def current(interval: int, paused: bool) -> tuple[Answer[Snapshot], Answer[History]]:
    """Return the answers to draw; while the page is paused, always the same ones, as soon as there are any."""
    snapshots, histories = feeds()
    snapshot, history = st.session_state.get("held", (None, None))
    patience = PATIENCE if snapshot else FIRST_PATIENCE
    if not (paused and snapshot and snapshot.read_at):
        snapshot = snapshots.latest(SAME_TICK * interval, patience)
    if not (paused and history and history.read_at):
        # The candles are below the fold: any that are not counted yet can come with the next tick, if there is one.
        history = histories.latest(SAME_TICK * interval, patience if paused else 0.05)
    st.session_state.held = snapshot, history
    return snapshot, history


def draw_status(answer: Answer[Snapshot], interval: int, paused: bool) -> str:
    """Draw the status line and return its word. The browser keeps the ages counting, unless the page is paused."""
    now, trades = datetime.now(UTC).replace(tzinfo=None), answer.value.trades
    newest = None if trades.empty else trades["timestamp"].iloc[0]
    trade_age = None if newest is None else (now - newest).total_seconds()
    query_age = None if answer.read_at is None else time.monotonic() - answer.read_at
    answered = None if query_age is None else now - timedelta(seconds=query_age)
    silent_after = SILENT_AFTER * interval
    word = PAUSED if paused else state(answer, trade_age, query_age, silent_after)
    old_after = STALE_AFTER + (silent_after if word == LIVE else 0)  # while LIVE, only the next answer can tell
    ages = [
        {"name": "newest trade", "age": trade_age, "time": clock(newest), "old_after": old_after},
        {"name": "last good query", "age": query_age, "time": clock(answered), "old_after": silent_after},
    ]
    facts = answer.problem or NO_ANSWER if word == DOWN else facts_about(answer.value, now, paused)
    line = {"word": word, "moving": not paused, "ages": ages, "facts": facts}
    status_line(key="status", data=line | {"tick": time.monotonic()})  # with equal data, status.js would not be called
    return word


def facts_about(snapshot: Snapshot, now: datetime, paused: bool) -> str:
    """Return the facts about the window, in one line."""
    facts, trades = [frequency(trades_per_second(snapshot))], snapshot.trades
    if not trades.empty:
        facts.append(f"window {duration(span_seconds(trades))} to {clock(trades['timestamp'].iloc[0])}")
    if (delay := seconds_to_screen(snapshot, now, paused) or 0) > 0:  # not if the producer's clock is ahead
        facts.append(f"trade to screen {duration(delay)}")
    if snapshot.standby:
        facts.append("read from a standby")
    if snapshot.ahead:
        many = f"{snapshot.ahead} or more" if snapshot.ahead == WINDOW else snapshot.ahead
        facts.append(f"trades dated in the future left out: {many}")
    return "  ·  ".join(facts)


def seconds_to_screen(snapshot: Snapshot, now: datetime, paused: bool) -> float | None:
    """Return the median age (s) of the trades that are new to this viewer; if none are, the previous median."""
    times, known = snapshot.trades["timestamp"], st.session_state.get("seen_until")
    if known and not paused and (times > known).any():
        st.session_state.delay = (now - times[times > known]).median().total_seconds()
    st.session_state.seen_until = None if paused or times.empty else times.iloc[0]
    delay: float | None = st.session_state.get("delay")
    return delay


def draw_ticker_choice(snapshot: Snapshot) -> None:
    """Draw the ticker filter; a chosen ticker stays in the list even without a trade in the window."""
    known = set(snapshot.trades["ticker"]) | set(st.session_state.get("tickers", ()))
    hint = "All tickers: type to choose"
    st.multiselect("Tickers", sorted(known), key="tickers", placeholder=hint, accept_new_options=True, **CONTROL)


def draw_key_figures(place: dict[str, Place], shown: Figures) -> None:
    """Draw the row of key figures."""
    values = (
        f"{WINDOW}" if len(shown.trades) == WINDOW else f"{len(shown.trades)} of {WINDOW}",
        amount(shown.average_price),
        f"{shown.total_volume:,}",
        for_streamlit(shown.most_active or "–"),
        amount(shown.vwap),
        "–" if shown.buy_share is None else f"{shown.buy_share:.1%}",
    )
    for label, value in zip(KEY_FIGURES, values, strict=True):
        place[label].metric(label, value)


@shared
def watchlist(shown: Figures) -> bytes:
    """Return one row per ticker, as the browser's table takes it."""
    rows = []
    for line in shown.lines:
        prices = line.vwap, max(line.prices), min(line.prices)
        moved = line.last, line.change, line.changes[-1]
        rows.append([line.ticker, *moved, *prices, line.volume, line.bought / line.volume, line.prices])
    return encoded({"table": "watchlist", "rows": rows})


@shared
def tape(shown: Figures) -> bytes:
    """Return the trades, newest first."""
    times = shown.trades["timestamp"].dt
    several_days = times.date.nunique() > 1  # the browser sorts what is written
    written = times.strftime("%Y-%m-%d %H:%M:%S.%f" if several_days else "%H:%M:%S.%f").str[:-3]
    rows = shown.trades.assign(timestamp=written)[["timestamp", "ticker", "side", "price", "volume", "trade_id"]]
    return encoded({"table": "tape", "rows": rows.to_numpy().tolist()})


def draw_candles(place: dict[str, Place], counted: Answer[History], most_active: str | None) -> None:
    """Draw one ticker's candles since trading began: the chosen ticker's, or those of the one most active at first."""
    history, known = counted.value, counted.value.tickers
    first = st.session_state.get("first_ticker")
    if first not in known:
        first = most_active if most_active in known else next(iter(known), None)
    st.session_state.first_ticker = first
    chosen = st.session_state.get("candles", st.query_params.get("candles"))  # stays in the list without a candle, too
    with place["candles ticker"]:
        choice = partial(st.selectbox, "Ticker of the candles", key="candles", placeholder=first, required=True)
        ticker = choice(sorted({*known, chosen}) if chosen else known, None, **CONTROL) or first
    title = f"Candles · {for_streamlit(ticker)}" if ticker else "Candles"
    if ticker not in known:
        place["candles title"].header(title, anchor=False)
        place["candles"].caption(counted.problem or "No candles yet.")
        return
    step, candles = candles_of(history, ticker)
    reach = "since" if history.complete else "still reading back; so far since"
    title += f" in steps of {duration(step.total_seconds())} {reach} {candles[0].start} UTC"
    place["candles title"].header(f"{title} · {counted.problem}" if counted.problem else title, anchor=False)
    with place["candles"]:
        chart(key="candle_chart", data=candle_chart(ticker, tuple(candles)), height=360)


if __name__ == "__main__":
    main()
