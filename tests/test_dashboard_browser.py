"""The page in a real browser: what stays as the viewer left it while the figures move, and what it asks the network."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC
from itertools import pairwise
from typing import NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.live_page import CHROMIUM, NO_CHROMIUM, Market, Row, chromium, dashboard, insert, server_of, utc_now
from tests.services import Postgres, eventually

expect.set_options(timeout=60_000)  # milliseconds: the first page loads megabytes of scripts
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)

FAST = "/?every=1+s"
PRICE, VOLUME = ".st-key-price .js-plotly-plot", ".st-key-volume .js-plotly-plot"
WATCHLIST, TAPE = ".st-key-watchlist .table", ".st-key-tape .table"
AXE_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}


class Site(NamedTuple):
    """The running page, and the server that its trades are in."""

    address: str
    postgres: Postgres

    def store(self, *rows: Row) -> None:
        insert(self.postgres.database, rows)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Postgres() as postgres, dashboard(postgres.url, "--client.showErrorDetails=full") as address:
        yield Site(address, postgres)


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """One browser, whose cache spares every page but the first megabytes of scripts."""
    with chromium() as browser:
        yield browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)


@pytest.fixture
def market(site: Site) -> Market:
    """A market whose last 200 trades are all that the table holds."""
    site.postgres.database.query("TRUNCATE trades")
    market = Market()
    site.store(*market.until_now(200, seconds=20))
    return market


@pytest.fixture
def open_page(context: BrowserContext, site: Site) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []
    asked: set[str] = set()

    def open_page(view: str = FAST) -> Page:
        page = context.new_page()
        pages.append(page)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(site.address + view)
        expect(page.locator(".status [role=status]")).not_to_be_empty()
        return page

    yield open_page
    for page in pages:
        assert page.locator(".stException").all_inner_texts() == []
        page.close()
    assert not [url for url in asked if not url.startswith((site.address, "data:", "blob:"))], "another host was asked"


@pytest.fixture
def page(open_page: Callable[..., Page], market: Market) -> Page:
    page = open_page()
    expect(page.locator(f"{PRICE} .scatterlayer .trace")).to_have_count(7)
    expect(page.locator(f"{TAPE} tbody tr")).to_have_count(200)
    return page


@pytest.fixture
def next_tick(page: Page, site: Site, market: Market) -> Callable[[], None]:
    """Let a trade arrive, and wait until the page shows it."""

    def tick() -> None:
        newest = utc_now()
        site.store(market.trade(newest))
        wait_until_shown(page, newest.replace(tzinfo=UTC).timestamp())

    return tick


def wait_until_shown(page: Page, newest: float) -> None:
    """Wait until the price chart reaches a moment, in seconds since 1970."""
    page.wait_for_function(
        """([chart, newest]) => document.querySelector(chart)?.data.some(
            (line) => line.x.some((time) => Date.parse(time + "Z") >= newest))""",
        arg=[PRICE, int(newest * 1000)],
    )


def cells(page: Page, table: str, column: int) -> list[str]:
    """Return what a table shows in a column, the first of which is 1."""
    return page.locator(f"{table} tbody td:nth-child({column})").all_text_contents()


def wait_for_text(place: Locator, text: str) -> None:
    """Wait for a text, between whose characters the invisible U+2060 may stand."""
    eventually(lambda: text in place.inner_text().replace("\u2060", ""))


def test_charts_move_in_place_and_keep_zoom_legend_and_hover_and_nothing_fades(
    page: Page, next_tick: Callable[[], None], site: Site
) -> None:
    chart = page.locator(PRICE)
    chart.evaluate("(chart) => { chart.mark = 'the same element' }")
    page.locator(f"{VOLUME} .legendtoggle").first.click()
    expect(page.locator(f"{VOLUME} .traces").first).to_have_css("opacity", "0.5")
    area = page.locator(f"{PRICE} .nsewdrag").first.bounding_box()
    assert area
    page.mouse.move(area["x"] + area["width"] * 0.3, area["y"] + area["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.8, area["y"] + area["height"] * 0.8, steps=5)
    page.mouse.up()
    page.wait_for_function(
        """(chart) => { const { xaxis, yaxis } = document.querySelector(chart).layout;
            return xaxis.autorange === false && yaxis.autorange === false; }""",
        arg=PRICE,
    )
    zoom = chart.evaluate("(chart) => [chart.layout.xaxis.range, chart.layout.yaxis.range]")
    page.mouse.move(area["x"] + area["width"] * 0.5, area["y"] + area["height"] * 0.4)
    expect(page.locator(f"{PRICE} .hoverlayer .legend")).to_be_visible()

    page.evaluate(
        """() => {
            window.faded = 0;
            const look = () => {
                for (const element of document.querySelectorAll(".stElementContainer, .stVerticalBlock"))
                    window.faded += getComputedStyle(element).opacity !== "1";
                requestAnimationFrame(look);
            };
            look();
        }"""
    )
    site.store(("far off", "TSLA", 9999.0, 1, "buy", utc_now()))  # without the zoom, the axis would grow
    for _ in range(3):
        next_tick()

    assert chart.evaluate("(chart) => chart.mark") == "the same element"
    assert chart.evaluate("(chart) => [chart.layout.xaxis.range, chart.layout.yaxis.range]") == zoom
    shown = page.locator(VOLUME).evaluate("(chart) => chart._fullData.map((bar) => bar.visible)")
    assert sorted(map(str, shown)) == ["True", "legendonly"]
    expect(page.locator(f"{PRICE} .hoverlayer .legend")).to_be_visible()
    assert page.evaluate("() => window.faded") == 0


def test_a_table_keeps_its_place_and_its_order(page: Page, next_tick: Callable[[], None]) -> None:
    page.locator(f"{TAPE} th button", has_text="price").click()
    prices = eventually(lambda: sorted_prices(page))
    expect(page.locator(f"{TAPE} th", has_text="price")).to_have_attribute("aria-sort", "ascending")
    page.locator(TAPE).focus()
    page.keyboard.press("End")
    page.wait_for_function("(table) => document.querySelector(table).scrollTop > 1000", arg=TAPE)
    for _ in range(2):
        next_tick()
    assert page.locator(TAPE).evaluate("(table) => table.scrollTop") > 1000
    assert sorted_prices(page)
    page.locator(f"{TAPE} th button", has_text="price").click()
    eventually(lambda: sorted_prices(page, descending=True))
    page.locator(f"{TAPE} th button", has_text="price").click()
    times = cells(page, TAPE, 1)
    assert times == sorted(times, reverse=True)
    expect(page.locator(f"{WATCHLIST} th:not(:has(button))")).to_have_text(["Window"])  # pictures have no order
    assert prices


def sorted_prices(page: Page, descending: bool = False) -> list[float]:
    """Return the prices on the tape, if they are in order."""
    prices = [float(cell.replace(",", "")) for cell in cells(page, TAPE, 4)]
    return prices if prices == sorted(prices, reverse=descending) else []


def test_what_changed_is_marked_for_a_moment_and_nothing_else(page: Page, site: Site) -> None:
    page.evaluate(
        """() => {
            window.marked = [];
            const animate = Element.prototype.animate;
            Element.prototype.animate = function (frames, timing) {
                window.marked.push([this.closest("tr").dataset.key, this.cellIndex, timing.easing]);
                return animate.call(this, frames, timing);
            };
        }"""
    )
    assert store_and_see_marks(page, site, "one") == {"steps(8)"}  # not a frame after the other
    eventually(lambda: page.evaluate("() => document.getAnimations().length") == 0)  # gone by itself
    page.emulate_media(reduced_motion="reduce")
    assert store_and_see_marks(page, site, "another") == {"step-end"}


def store_and_see_marks(page: Page, site: Site, trade_id: str) -> set[str]:
    """Let a trade arrive, see that its new row is marked once, and return how the marks fade."""
    newest = utc_now()
    page.evaluate("() => { window.marked = [] }")
    site.store((trade_id, "NVDA", 999.0 + len(trade_id), 100, "buy", newest))
    wait_until_shown(page, newest.replace(tzinfo=UTC).timestamp())
    # The tables are drawn one after the other.
    page.wait_for_function(
        "(id) => [id, 'NVDA'].every((key) => window.marked.some((mark) => mark[0] === key))", arg=trade_id
    )
    marked = page.evaluate("() => window.marked")
    assert [cell for key, cell, _ in marked if key == trade_id] == [0]
    return {easing for *_, easing in marked}


def test_figures_are_written_as_people_write_them(open_page: Callable[..., Page], site: Site) -> None:
    now = utc_now()
    apple = [("0", "AAPL", 50.0, 1500, "buy", now), ("1", "AAPL", 50.0, 1, "sell", now)]
    tesla = [("2", "TSLA", 1234.50, 1, "buy", now), ("3", "TSLA", 1234.49, 3, "sell", now)]
    site.postgres.database.query("TRUNCATE trades")
    site.store(*apple, *tesla)
    rows = open_page().locator(f"{WATCHLIST} tbody tr")
    told = ["AAPL", "= 50.00", "0.00", "0.00", "50.00", "50.00", "50.00", "1,501", "100%", ""]
    expect(rows.nth(0).locator("td")).to_have_text(told)
    told = ["TSLA", "▼ 1,234.49", "−0.01", "0.00", "1,234.49", "1,234.50", "1,234.49", "4", "25%", ""]
    expect(rows.nth(1).locator("td")).to_have_text(told)


def test_the_page_is_legible_at_first_sight_on_a_screen_and_on_a_phone(page: Page) -> None:
    assert_what_matters_first_fits_the_window(page)
    assert_the_prices_at_the_lines_ends_are_readable(page)
    assert_charts_say_in_words_what_they_show(page)
    for width in (720, 400):
        assert_a_small_screen_shows_it_all_without_scrolling_sideways(page, width)


def assert_what_matters_first_fits_the_window(page: Page) -> None:
    for panel in (".status", ".stMetric", WATCHLIST, ".st-key-price", ".st-key-volume"):
        box = page.locator(panel).last.bounding_box()
        assert box
        assert box["y"] + box["height"] <= 900, panel
    tape = page.locator(TAPE).bounding_box()
    assert tape
    assert tape["y"] <= 700


def assert_the_prices_at_the_lines_ends_are_readable(page: Page) -> None:
    labels = page.locator(f"{PRICE} .annotation-text")
    expect(labels).to_have_count(7)
    boxes = sorted(
        (box["y"], box["height"], box["x"] + box["width"]) for box in map(Locator.bounding_box, labels.all()) if box
    )
    assert all(upper[0] + upper[1] <= lower[0] + 4 for upper, lower in pairwise(boxes))
    chart = page.locator(PRICE).bounding_box()
    assert chart
    assert all(right <= chart["x"] + chart["width"] for _, _, right in boxes)


def assert_charts_say_in_words_what_they_show(page: Page) -> None:
    expect(page.locator(".st-key-price figcaption")).to_contain_text(re.compile(r"TSLA last [\d,.]+, [+−]?[\d.]+%"))
    expect(page.locator(".st-key-volume figcaption")).to_contain_text(re.compile(r"TSLA [\d,]+, \d+% bought"))
    expect(page.locator(".st-key-candle_chart figcaption")).to_contain_text(re.compile(r"AAPL: open [\d,.]+"))


def assert_a_small_screen_shows_it_all_without_scrolling_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    chart = page.locator(PRICE).first
    room = chart.evaluate("(chart) => chart.clientWidth")
    expect(chart.locator(".main-svg").first).to_have_js_property("clientWidth", room)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    texts = page.locator(".stMetric *, .stButtonGroup *")
    cut = "(all) => all.filter(({ clientWidth, scrollWidth }) => clientWidth && scrollWidth > clientWidth + 1).length"
    assert texts.evaluate_all(cut) == 0
    for panel in page.locator(".stMetric, .st-key-price, .table").all():
        box = panel.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_pause_stops_everything_that_moves(page: Page, open_page: Callable[..., Page], site: Site) -> None:
    page.get_by_text("Pause", exact=True).click()
    status = page.locator(".status")
    expect(status).to_contain_text("PAUSED")
    before = status.inner_text(), cells(page, TAPE, 1)
    other, newest = open_page(), utc_now()
    site.store(Market(seed=2).trade(newest))
    wait_until_shown(other, newest.replace(tzinfo=UTC).timestamp())
    page.get_by_role("radio", name="price").click()  # a paused page still answers its viewer …
    page.wait_for_function("(chart) => document.querySelector(chart).data[0].y[0] > 100", arg=PRICE)
    assert (status.inner_text(), cells(page, TAPE, 1)) == before  # … about the same trades
    page.get_by_text("Pause", exact=True).click()
    wait_until_shown(page, newest.replace(tzinfo=UTC).timestamp())


def test_the_address_carries_the_view(page: Page, open_page: Callable[..., Page]) -> None:
    page.get_by_role("radio", name="sell").click()
    expect(page).to_have_url(re.compile("side=sell"))
    page.get_by_role("radio", name="price").click()
    expect(page).to_have_url(re.compile("scale=price"))
    page.get_by_label("Tickers").click()
    page.keyboard.type("tsl")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("tickers=TSLA"))
    view = page.url[page.url.index("/?") :]
    assert {"side=sell", "scale=price", "every=1+s"} < set(view[2:].split("&"))
    shared = open_page(view)
    expect(shared.locator(f"{PRICE} .scatterlayer .trace")).to_have_count(1)
    expect(shared.locator(".stMetric").last).to_contain_text("0.0%")  # bought
    eventually(lambda: set(cells(shared, TAPE, 2)) == {"TSLA"})


def test_a_server_that_stops_leaves_the_last_good_data_and_comes_back_by_itself(page: Page, site: Site) -> None:
    status, tape = page.locator(".status"), eventually(lambda: cells(page, TAPE, 1))
    server_of(site.address).suspend()
    try:
        expect(status).to_contain_text("NO ANSWER")  # not LIVE, although nobody is there to say so
    finally:
        server_of(site.address).resume()
    expect(status).to_contain_text(re.compile("LIVE|STALE"))
    site.postgres.stop()
    try:
        expect(status).to_contain_text("DATABASE DOWN")
        expect(status).to_contain_text("is it running")
        assert cells(page, TAPE, 1) == tape
        expect(page.locator(f"{PRICE} .scatterlayer .trace")).to_have_count(7)
        assert "kafka_password" not in page.content()
        assert "SELECT" not in page.content()
    finally:
        site.postgres.start()
    expect(status).to_contain_text(re.compile("LIVE|STALE"))
    newest = utc_now()
    site.store(Market(seed=2).trade(newest))
    wait_until_shown(page, newest.replace(tzinfo=UTC).timestamp())


def test_the_page_is_accessible(page: Page) -> None:
    """By the rules that a machine can check, in WCAG 2.2's levels A and AA."""
    page.get_by_label("Tickers").click()
    page.get_by_role("option", name="TSLA").click()
    page.keyboard.press("Escape")
    page.get_by_text("Pause", exact=True).click()
    expect(page.locator(".status")).to_contain_text("PAUSED")
    results = Axe().run(page, options=AXE_RULES)
    assert results.violations_count == 0, results.generate_report()


def test_text_is_shown_as_text(open_page: Callable[..., Page], site: Site) -> None:
    """No HTML, Markdown, emoji or entity in a ticker does anything."""
    names = ["<b>x</b>", "**x**", "$x$ :cat:", "a & b", "&lt;", "[x](y)"]
    site.postgres.database.query("TRUNCATE trades")
    site.store(*((f"id {name}", name, 12.5, 10, "buy", utc_now()) for name in names))
    page = open_page()
    expect(page.locator(".st-key-volume .xtick text")).to_have_text(sorted(names))
    eventually(lambda: sorted(cells(page, TAPE, 2)) == sorted(names))
    for name in names:
        site.store((f"more {name}", name, 12.5, 1000, "buy", utc_now()))
        wait_for_text(page.locator(".stMetric").nth(3), name)
        site.postgres.database.query("DELETE FROM trades WHERE volume = 1000")
        page.get_by_label("Ticker of the candles").click()
        page.get_by_role("option", name=name, exact=True).click()
        wait_for_text(page.locator(".stHeading").last, name)


def test_trades_and_charts_are_saved_in_one_place(page: Page) -> None:
    page.get_by_role("radio", name="sell").click()
    expect(page).to_have_url(re.compile("side=sell"))
    eventually(lambda: set(cells(page, TAPE, 3)) == {"sell"})
    lines = saved(page, "Trades as CSV").decode().splitlines()
    assert lines[0] == "trade_id,ticker,price,volume,side,timestamp"
    assert len(lines) > 20
    assert all(",sell," in line for line in lines[1:])
    for name in ("Price trend", "Volume", "Candles"):
        assert saved(page, f"{name} as PNG").startswith(b"\x89PNG")


def saved(page: Page, name: str) -> bytes:
    """Choose something from the menu, and return the file that comes."""
    choice = page.get_by_role("button", name=name)

    def menu_is_open() -> bool:  # a save may leave it open
        if not choice.is_visible():
            page.get_by_role("button", name="Save").click()
            page.wait_for_timeout(300)
        return choice.is_visible()

    eventually(menu_is_open)
    with page.expect_download(timeout=60_000) as download:
        choice.click()
    return download.value.path().read_bytes()


def test_an_empty_table_and_a_missing_one_say_so(open_page: Callable[..., Page], site: Site) -> None:
    site.postgres.database.query("TRUNCATE trades")
    page = open_page()
    expect(page.locator(".status")).to_contain_text("EMPTY")
    expect(page.locator(".stAlert")).to_contain_text("No trades yet")
    site.postgres.database.query("ALTER TABLE trades RENAME TO elsewhere")
    try:
        expect(page.locator(".stAlert")).to_contain_text("There is no table")
    finally:
        site.postgres.database.query("ALTER TABLE elsewhere RENAME TO trades")
    site.store(Market().trade(utc_now()))
    expect(page.locator(".status")).to_contain_text("LIVE")
    expect(page.locator(f"{PRICE} .scatterlayer .trace")).to_have_count(1)
