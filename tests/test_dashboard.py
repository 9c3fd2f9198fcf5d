"""The page without a browser, through Streamlit's AppTest: what it says in every state of the database."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from pipeline.dashboard.feed import Answer, Feed
from tests.live_page import ROOT, Market, insert, utc_now
from tests.services import Database, eventually, free_port

OpenPage = Callable[..., AppTest]


@pytest.fixture
def open_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Run the page as on a viewer's first visit; `open_page(side="buy")` puts that into the URL."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    latest = Feed.latest
    # A viewer would see the answer one tick later; nothing here ticks, and a busy machine may be slow.
    monkeypatch.setattr(Feed, "latest", lambda feed, max_age, patience: latest(feed, max_age, patience=20))

    def open_page(**view: str) -> AppTest:
        st.cache_resource.clear()
        page = AppTest.from_file(ROOT / "dashboard.py", default_timeout=30)
        for name, value in view.items():
            page.query_params[name] = value
        return page.run()

    yield open_page
    st.cache_resource.clear()


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def status(page: AppTest) -> dict[str, Any]:
    """Return the data sent to the status line."""
    (component,) = (c.proto for c in page.get("bidi_component") if c.proto.component_name == "status")
    told: dict[str, Any] = json.loads(component.json)
    return told


def told(page: AppTest, component: str) -> list[dict[str, Any]]:
    """Return the data sent to each component of that name."""
    protos = (c.proto for c in page.get("bidi_component"))
    return [json.loads(proto.bytes) for proto in protos if proto.component_name == component]


def chart(page: AppTest, title: str) -> dict[str, Any]:
    """Return the figure whose summary starts with these words."""
    return next(figure for figure in told(page, "chart") if figure["summary"].startswith(title))


def table(page: AppTest, name: str) -> list[list[Any]]:
    """Return a table's rows, each in the form that web/table.js expects."""
    rows: list[list[Any]] = next(table["rows"] for table in told(page, "table") if table["table"] == name)
    return rows


def test_a_full_window(open_page: OpenPage, database: Database) -> None:
    rows = Market().until_now(250, seconds=25)
    insert(database, rows)
    page = open_page()
    assert not page.exception
    newest = rows[50:]
    volume = sum(row[3] for row in newest)
    shown = metrics(page)
    assert shown["Trades (last 200)"] == "200"
    assert shown["Avg Price"] == f"{sum(row[2] for row in newest) / 200:,.2f}"
    assert shown["Total Volume"] == f"{volume:,}"
    by_ticker = {ticker: sum(row[3] for row in newest if row[1] == ticker) for ticker in {row[1] for row in newest}}
    assert shown["Most Active Ticker"] == max(by_ticker, key=lambda ticker: by_ticker[ticker])
    assert shown["VWAP"] == f"{sum(row[2] * row[3] for row in newest) / volume:,.2f}"
    headings = [heading.value for heading in page.header]
    for panel in ("Price trend (last 200 trades)", "Volume by ticker (last 200 trades)", "Most recent trades"):
        assert panel in headings
    assert status(page)["word"] == "LIVE"


def test_the_tape_has_all_six_columns_newest_first(open_page: OpenPage, database: Database) -> None:
    rows = Market().until_now(250, seconds=25)
    insert(database, rows)
    newest = [[f"{row[5]:%H:%M:%S.%f}"[:-3], row[1], row[4], row[2], row[3], row[0]] for row in rows[:49:-1]]
    assert table(open_page(), "tape") == newest


def test_the_tape_shows_dates_if_they_differ_so_that_it_sorts_by_time(open_page: OpenPage, database: Database) -> None:
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    insert(database, [(str(n), "AAPL", 1.0, 1, "buy", midnight - timedelta(seconds=n)) for n in range(3)])
    times = [row[0] for row in table(open_page(), "tape")]
    assert times == sorted(times, reverse=True)
    assert times[0] == f"{midnight}.000"


def test_charts_show_the_same_trades_as_the_table(open_page: OpenPage, database: Database) -> None:
    rows = Market().until_now(200, seconds=20)
    insert(database, rows)
    page = open_page(scale="price")
    price, volume = chart(page, "Price trend"), chart(page, "Volume")
    assert sorted(y for line in price["data"] for y in line["y"][:-1]) == sorted(row[2] for row in rows)
    assert all(line["y"][-1] == line["y"][-2] for line in price["data"])  # the last price holds until now
    assert all(line["line"]["shape"] == "hv" for line in price["data"])
    totals = {ticker: sum(row[3] for row in rows if row[1] == ticker) for ticker in {row[1] for row in rows}}
    shown = [sum(both) for both in zip(*(bar["y"] for bar in volume["data"]), strict=True)]
    assert dict(zip(volume["data"][0]["x"], shown, strict=True)) == totals
    assert shown == sorted(shown, reverse=True)  # most active first


def test_as_it_opens_every_line_starts_at_nothing_and_ends_in_its_price(
    open_page: OpenPage, database: Database
) -> None:
    rows = Market().until_now(200, seconds=20)
    insert(database, rows)
    lines = chart(open_page(), "Price trend")["data"]
    assert [line["y"][0] for line in lines] == [0] * 7
    last = {row[1]: f"{row[2]:,.2f}" for row in rows}
    assert [line["customdata"][-1].split()[0] for line in lines] == [last[line["name"]] for line in lines]


def test_of_many_tickers_the_most_active_are_drawn_and_the_rest_by_choice(
    open_page: OpenPage, database: Database
) -> None:
    insert(database, [(str(n), f"T{n % 30:02}", 10.0, 1 + n % 30, "buy", utc_now()) for n in range(90)])
    page = open_page()
    assert [line["name"] for line in chart(page, "Price trend")["data"]] == [f"T{n}" for n in range(23, 30)]
    assert chart(page, "Price trend")["layout"]["title"]["text"] == "the 7 most active of 30 tickers"
    insert(database, [("up", "T03", 10.5, 1, "buy", utc_now()), ("down", "T04", 9.25, 1, "buy", utc_now())])
    expected = "moved most: <b>T04 −7.50%</b>  ·  the 7 most active of 30 tickers"
    eventually(lambda: chart(page.run(), "Price trend")["layout"]["title"]["text"] == expected)
    assert len(table(page, "watchlist")) == 30
    page.multiselect(key="tickers").set_value([f"T{n:02}" for n in range(20)]).run()
    assert len(chart(page, "Price trend")["data"]) == 20
    assert chart(page, "Volume")["layout"]["title"]["text"] == ""


def test_of_very_many_tickers_the_volume_shows_the_most_active_and_says_so(
    open_page: OpenPage, database: Database
) -> None:
    insert(database, [(str(n), f"T{n:02}", 10.0, 1 + n, "buy", utc_now()) for n in range(40)])
    volume = chart(open_page(), "Volume")
    assert volume["data"][0]["x"] == [f"T{n:02}" for n in range(39, 9, -1)]
    assert volume["layout"]["title"]["text"] == "30 of 40 tickers"


def test_a_window_that_fills_says_so(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(12, seconds=12))
    page = open_page()
    assert metrics(page)["Trades (last 200)"] == "12 of 200"
    assert room_of(page) == timedelta(seconds=30)
    insert(database, Market(seed=2).until_now(200, seconds=2))
    eventually(lambda: metrics(page.run())["Trades (last 200)"] == "200")
    assert room_of(page) == timedelta(0)  # it is just as long as its trades


def room_of(page: AppTest) -> timedelta:
    """Return the least time span that the price chart shows."""
    price = chart(page, "Price trend")
    first = datetime.fromisoformat(min(line["x"][0] for line in price["data"]))
    included: str = price["layout"]["xaxis"]["autorangeoptions"]["include"]
    return datetime.fromisoformat(included) - first


def test_a_night_without_trades_is_cut_out_of_the_charts(open_page: OpenPage, database: Database) -> None:
    market, now = Market(), utc_now()
    yesterday = [market.trade(now - timedelta(hours=9, seconds=n)) for n in range(60, 0, -1)]
    insert(database, [*yesterday, *market.until_now(60, seconds=60)])
    page = open_page()
    layout = chart(page, "Price trend")["layout"]
    (cut,) = layout["xaxis"]["rangebreaks"]
    start, end = map(datetime.fromisoformat, cut["bounds"])
    assert timedelta(hours=8, minutes=58) < end - start < timedelta(hours=9)
    assert layout["annotations"][0]["text"] == "no trades for 9 h"
    assert status(page)["facts"].startswith("1.0 trades/s")


def test_the_window_is_told_as_people_tell_time(open_page: OpenPage, database: Database) -> None:
    start = utc_now() - timedelta(seconds=1335.8)
    insert(database, [("0", "AAPL", 50.0, 1, "buy", start), ("1", "AAPL", 50.0, 1, "sell", utc_now())])
    assert "window 22 min" in status(open_page())["facts"]


def test_the_page_tells_how_long_a_trade_takes_to_the_screen(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(5, seconds=1))
    page = open_page(every="1 s")
    assert "to screen" not in status(page)["facts"]  # these may be hours old

    def told_after_a_new_trade() -> bool:
        insert(database, [Market().trade(utc_now())])
        return "trade to screen" in status(page.run())["facts"]

    eventually(told_after_a_new_trade)


def test_a_clock_that_is_ahead_gives_no_time_to_the_screen(open_page: OpenPage, database: Database) -> None:
    page = open_page(every="1 s")
    insert(database, [("1", "AAPL", 1.0, 1, "buy", utc_now())])
    eventually(lambda: len(table(page.run(), "tape")) == 1)
    insert(database, [("2", "AAPL", 1.0, 1, "buy", utc_now() + timedelta(seconds=40))])
    eventually(lambda: len(table(page.run(), "tape")) == 2)
    assert "to screen" not in status(page)["facts"]


def test_trades_from_the_future_are_named_and_do_not_pass_for_live(open_page: OpenPage, database: Database) -> None:
    insert(database, [("old", "AAPL", 1.0, 1, "buy", utc_now() - timedelta(minutes=5))])
    insert(database, [("new", "AAPL", 1.0, 1, "buy", utc_now() + timedelta(hours=2))])
    page = open_page()
    assert status(page)["word"] == "STALE"
    assert "trades dated in the future left out: 1" in status(page)["facts"]


def test_a_view_from_the_address_narrows_every_panel(open_page: OpenPage, database: Database) -> None:
    rows = Market().until_now(200, seconds=20)
    insert(database, rows)
    page = open_page(side="sell", tickers="TSLA")
    count = sum(row[1] == "TSLA" and row[4] == "sell" for row in rows)
    assert metrics(page)["Trades (last 200)"] == f"{count} of 200"
    assert metrics(page)["Buy share"] == "0.0%"
    assert len(table(page, "tape")) == count
    assert [row[0] for row in table(page, "watchlist")] == ["TSLA"]


def test_a_view_of_nothing_keeps_the_page_in_shape(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(20, seconds=2))
    page = open_page(tickers="NONE")
    assert not page.exception
    assert metrics(page)["Trades (last 200)"] == "0 of 200"
    assert metrics(page)["Avg Price"] == "–"
    assert chart(page, "Price trend")["data"] == []


@pytest.mark.parametrize("count", [1, 2])
def test_one_trade_and_two_in_the_same_microsecond(open_page: OpenPage, database: Database, count: int) -> None:
    moment = utc_now()
    insert(database, [(str(n), "AAPL", 12.5, 10, "buy", moment) for n in range(count)])
    page = open_page()
    assert not page.exception
    assert metrics(page)["Trades (last 200)"] == f"{count} of 200"
    assert metrics(page)["Avg Price"] == "12.50"
    assert status(page)["facts"].startswith("– trades/s")


def test_the_largest_price_and_an_invented_ticker(open_page: OpenPage, database: Database) -> None:
    insert(database, [("1", "<b>ÄÖ</b>", 99_999_999.99, 2_147_483_647, "buy", utc_now())])
    page = open_page()
    assert not page.exception
    shown = metrics(page)
    assert shown["Avg Price"] == shown["VWAP"] == "99,999,999.99"
    assert shown["Total Volume"] == "2,147,483,647"
    assert table(page, "tape")[0][1] == "<b>ÄÖ</b>"
    assert chart(page, "Price trend")["data"][0]["name"] == "&lt;b&gt;ÄÖ&lt;/b&gt;"


def test_an_empty_table_says_what_to_do(open_page: OpenPage) -> None:
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "EMPTY"
    assert "No trades yet" in page.info[0].value
    assert metrics(page)["Trades (last 200)"] == "0 of 200"


def test_a_missing_table_says_what_to_do(open_page: OpenPage, database: Database) -> None:
    database.query("DROP TABLE trades")
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "EMPTY"
    assert "start consumer.py" in page.info[0].value


def test_old_trades_are_stale(open_page: OpenPage, database: Database) -> None:
    insert(database, [("1", "AAPL", 1.0, 1, "buy", utc_now().replace(year=2020))])
    assert status(open_page())["word"] == "STALE"


def test_a_shared_answer_is_no_reason_for_an_alarm(
    open_page: OpenPage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 30 s, a viewer may get an answer that is almost that old, and keeps it for as long again."""
    insert(database, [("1", "AAPL", 1.0, 1, "buy", utc_now() - timedelta(seconds=25))])
    latest = Feed.latest

    def earlier(feed: Feed[Any], max_age: float, patience: float) -> Answer[Any]:
        answer = latest(feed, max_age, patience)
        return replace(answer, read_at=(answer.read_at or 0) - 24)

    monkeypatch.setattr(Feed, "latest", earlier)
    line = status(open_page(every="30 s"))
    trade, query = line["ages"]
    assert line["word"] == "LIVE"
    assert trade["old_after"] > trade["age"] + 30
    assert query["old_after"] > query["age"] + 30


def test_a_dead_database_says_so_without_its_secrets(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://someone:secret@127.0.0.1:{free_port()}/nowhere")
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "DATABASE DOWN"
    assert "cannot be reached" in page.error[0].value
    assert "secret" not in str(page)
    assert "SELECT" not in str(page)
    assert status(page) != status(page.run())  # given the same data again, the browser would take the page for dead


def test_a_wrong_setting_is_named(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_TOPIC_PARTITIONS", "many")
    page = open_page()
    assert not page.exception
    assert "KAFKA_TOPIC_PARTITIONS" in page.error[0].value


def test_pausing_holds_the_trades(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(5, seconds=1))
    page = open_page()
    page.toggle(key="paused").set_value(True).run()
    insert(database, Market(seed=2).until_now(5, seconds=1))
    page.segmented_control(key="side").set_value("buy").run()
    page.segmented_control(key="side").set_value("all").run()
    assert (status(page)["word"], metrics(page)["Trades (last 200)"]) == ("PAUSED", "5 of 200")


def test_a_link_to_a_paused_page_waits_for_what_it_holds(
    open_page: OpenPage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tick follows, so whatever is not there yet would stay away."""
    insert(database, Market().until_now(5, seconds=1))
    latest = Feed.latest
    monkeypatch.setattr(Feed, "latest", lambda feed, max_age, patience: feed._answer)
    page = open_page(paused="true")
    assert (status(page)["word"], page.info[0].value) == ("PAUSED", "The database does not answer.")
    # The first answer may take a second; what a viewer is not patient for does not come.
    monkeypatch.setattr(Feed, "latest", lambda feed, max_age, patience: latest(feed, max_age, 20 * (patience >= 1)))
    page = open_page(paused="true")
    assert (status(page)["word"], metrics(page)["Trades (last 200)"]) == ("PAUSED", "5 of 200")
    assert chart(page, "Candles of")
    insert(database, Market(seed=2).until_now(5, seconds=1))
    assert metrics(page.run())["Trades (last 200)"] == "5 of 200"


def test_the_candles_are_at_first_those_of_the_most_active_ticker(open_page: OpenPage, database: Database) -> None:
    insert(database, [(str(n), f"T{n}", 10.0, 1 + n % 3, "buy", utc_now()) for n in range(5)])
    page = open_page()
    eventually(lambda: any("Candles · T2" in heading.value for heading in page.run().header))


def test_the_chosen_ticker_of_the_candles_stays(open_page: OpenPage, database: Database) -> None:
    """Even while it has no candles, and while it is the one that would be shown anyway."""

    def shown() -> tuple[str, bool]:
        """Return the start of the candles' title, and whether there are any."""
        page.run()
        return page.header[-1].value.partition(" in ")[0], not page.caption

    insert(database, [("1", "AAPL", 10.0, 1, "buy", utc_now())])
    page = open_page(candles="NEW", every="1 s")
    eventually(lambda: shown() == ("Candles · NEW", False))
    database.query("UPDATE trades SET ticker = 'NEW'")
    eventually(lambda: shown() == ("Candles · NEW", True))
    database.query("TRUNCATE trades")
    eventually(lambda: shown() == ("Candles · NEW", False))
    insert(database, [("2", "AAPL", 10.0, 1, "buy", utc_now())])
    eventually(lambda: shown() and page.selectbox(key="candles").options == ["AAPL", "NEW"])
    assert shown() == ("Candles · NEW", False)
    assert "NEW" in page.query_params["candles"]


def test_candles_since_trading_began(open_page: OpenPage, database: Database) -> None:
    rows = [row for row in Market().until_now(400, seconds=40) if row[1] == "AAPL"]
    insert(database, rows)
    page = open_page()
    eventually(lambda: any("Candles · AAPL" in heading.value for heading in page.run().header))
    figure = chart(page, "Candles of AAPL")
    assert figure["data"][0]["open"][0] == rows[0][2]
    assert figure["data"][0]["close"][-1] == rows[-1][2]
    assert sum(figure["data"][2]["y"]) == sum(row[3] for row in rows)
