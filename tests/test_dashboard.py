"""The page without a browser, through Streamlit's AppTest: what it says in every state of the database."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from tests.live_page import ROOT, Market, insert, utc_now
from tests.services import Database, free_port

OpenPage = Callable[..., AppTest]


@pytest.fixture
def open_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Run the page as a viewer's first visit does; `open_page(side="buy")` with that in the address."""
    monkeypatch.setenv("DATABASE_URL", database.url)

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
    """Return what the status line is told."""
    (component,) = (c.proto for c in page.get("bidi_component") if c.proto.component_name == "status")
    told: dict[str, Any] = json.loads(component.json)
    return told


def chart(page: AppTest, title: str) -> dict[str, Any]:
    """Return the figure whose summary starts with these words."""
    figures = (json.loads(c.proto.bytes) for c in page.get("bidi_component") if c.proto.component_name == "live_chart")
    figure: dict[str, Any] = next(figure for figure in figures if figure["summary"].startswith(title))
    return figure


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
    tape = open_page().dataframe[1].value
    assert set(tape.columns) == {"trade_id", "ticker", "price", "volume", "side", "timestamp"}
    assert list(tape["trade_id"]) == [row[0] for row in rows[:49:-1]]
    assert tape["timestamp"].is_monotonic_decreasing


def test_charts_show_the_same_trades_as_the_table(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(200, seconds=20))
    page = open_page()
    tape = page.dataframe[1].value
    price, volume = chart(page, "Price trend")["figure"], chart(page, "Volume")["figure"]
    assert sorted(y for line in price["data"] for y in line["y"]) == sorted(tape["price"])
    assert all(line["line"]["shape"] == "hv" for line in price["data"])
    totals = tape.groupby("ticker")["volume"].sum().sort_values(ascending=False)
    assert volume["data"][0]["x"] == list(totals.index)  # most active first
    assert [sum(both) for both in zip(*(bar["y"] for bar in volume["data"]), strict=True)] == list(totals)


def test_an_indexed_view_starts_every_ticker_at_100(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(200, seconds=20))
    figure = chart(open_page(scale="indexed"), "Price trend")["figure"]
    assert [line["y"][0] for line in figure["data"]] == [100] * 7


def test_a_view_from_the_address_narrows_every_panel(open_page: OpenPage, database: Database) -> None:
    rows = Market().until_now(200, seconds=20)
    insert(database, rows)
    page = open_page(side="sell", tickers="TSLA")
    count = sum(row[1] == "TSLA" and row[4] == "sell" for row in rows)
    assert metrics(page)["Trades (last 200)"] == str(count)
    assert metrics(page)["Buy share"] == "0.0%"
    assert len(page.dataframe[1].value) == count
    assert list(page.dataframe[0].value["ticker"]) == ["TSLA"]


def test_a_view_of_nothing_keeps_the_page_in_shape(open_page: OpenPage, database: Database) -> None:
    insert(database, Market().until_now(20, seconds=2))
    page = open_page(tickers="NONE")
    assert not page.exception
    assert metrics(page)["Trades (last 200)"] == "0"
    assert metrics(page)["Avg Price"] == "–"
    assert chart(page, "Price trend")["figure"]["layout"]["annotations"][0]["text"] == "no trades here"


@pytest.mark.parametrize("count", [1, 2])
def test_one_trade_and_two_in_the_same_microsecond(open_page: OpenPage, database: Database, count: int) -> None:
    moment = utc_now()
    insert(database, [(str(n), "AAPL", 12.5, 10, "buy", moment) for n in range(count)])
    page = open_page()
    assert not page.exception
    assert metrics(page)["Trades (last 200)"] == str(count)
    assert metrics(page)["Avg Price"] == "12.50"
    assert status(page)["facts"].startswith("– trades/s")


def test_the_largest_price_and_an_invented_ticker(open_page: OpenPage, database: Database) -> None:
    insert(database, [("1", "<b>ÄÖ</b>", 99_999_999.99, 2_147_483_647, "buy", utc_now())])
    page = open_page()
    assert not page.exception
    shown = metrics(page)
    assert shown["Avg Price"] == shown["VWAP"] == "99,999,999.99"
    assert shown["Total Volume"] == "2,147,483,647"
    assert page.dataframe[1].value["ticker"].iloc[0] == "<b>ÄÖ</b>"
    assert chart(page, "Price trend")["figure"]["data"][0]["name"] == "&lt;b&gt;ÄÖ&lt;/b&gt;"


def test_an_empty_table_says_what_to_do(open_page: OpenPage) -> None:
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "EMPTY"
    assert "No trades yet" in page.info[0].value
    assert metrics(page)["Trades (last 200)"] == "0"


def test_a_missing_table_says_what_to_do(open_page: OpenPage, database: Database) -> None:
    database.query("DROP TABLE trades")
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "EMPTY"
    assert "start consumer.py" in page.info[0].value


def test_old_trades_are_stale(open_page: OpenPage, database: Database) -> None:
    insert(database, [("1", "AAPL", 1.0, 1, "buy", utc_now().replace(year=2020))])
    assert status(open_page())["word"] == "STALE"


def test_a_dead_database_says_so_without_its_secrets(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://someone:secret@127.0.0.1:{free_port()}/nowhere")
    page = open_page()
    assert not page.exception
    assert status(page)["word"] == "DATABASE DOWN"
    assert "cannot be reached" in page.error[0].value
    assert "secret" not in str(page)
    assert "SELECT" not in str(page)


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
    assert (status(page)["word"], metrics(page)["Trades (last 200)"]) == ("PAUSED", "5")


def test_the_session_so_far(open_page: OpenPage, database: Database) -> None:
    rows = [row for row in Market().until_now(400, seconds=40) if row[1] == "AAPL"]
    insert(database, rows)
    page = open_page()
    for _ in range(20):  # the session may come a tick later
        if any("Session so far · AAPL" in heading.value for heading in page.header):
            break
        page.run()
    figure = chart(page, "Session of AAPL")["figure"]
    assert figure["data"][0]["open"][0] == rows[0][2]
    assert figure["data"][0]["close"][-1] == rows[-1][2]
    assert sum(figure["data"][2]["y"]) == sum(row[3] for row in rows)
