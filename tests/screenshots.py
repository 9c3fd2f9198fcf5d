"""Takes the pictures of README.md in a real browser: the running page in each of its states, and the market.

    python -m tests.screenshots

It starts a PostgreSQL and a dashboard of its own, and needs Chromium (apt-get install chromium).
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from itertools import count
from pathlib import Path

import plotly.graph_objects as go
from faker import Faker
from PIL import Image
from playwright.sync_api import Page, expect

from pipeline.producer.tape import TradeProvider
from tests.live_page import CHROMIUM, NO_CHROMIUM, Market, chromium, dashboard, insert, trades_arriving
from tests.services import Database, Postgres

FOLDER = Path(__file__).parent.parent / "images"
HISTORY = timedelta(minutes=40)
TRADES_PER_SECOND = 6


def main() -> None:
    """Take all of them."""
    if CHROMIUM is None:
        sys.exit(NO_CHROMIUM)
    with Postgres() as postgres, dashboard(postgres.url) as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900}, device_scale_factor=2)
        page.goto(f"{address}/?every=1+s")
        take(page, "EMPTY", "empty")
        with market_open(postgres.database):
            page.goto(f"{address}/?every=1+s&scale=indexed")
            expect(page.get_by_text("200", exact=True)).to_be_visible()
            take(page, "LIVE", "dashboard")
            page.locator(".st-key-session_chart").scroll_into_view_if_needed()
            take(page, "LIVE", "session")
            page.goto(f"{address}/?every=1+s&tickers=NVDA&tickers=TSLA&paused=true")
            take(page, "PAUSED", "paused")
            phone = browser.new_page(viewport={"width": 400, "height": 860}, device_scale_factor=2)
            phone.goto(f"{address}/?every=1+s&scale=indexed")
            take(phone, "LIVE", "phone")
            phone.close()
            page.goto(f"{address}/?every=1+s")
            take(page, "LIVE", None)
        take(page, "STALE", "stale")
        postgres.stop()
        take(page, "DATABASE DOWN", "database-down")
        page.set_viewport_size({"width": 1440, "height": 420})
        page.set_content(market_chart("NVDA", minutes=10, rate=50, seed=1))
        page.add_style_tag(content="body { margin: 0 }")
        expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
        save(page, "market")


def take(page: Page, state: str, name: str | None) -> None:
    """Wait until the page is in that state with everything drawn, and take the picture."""
    expect(page.locator(".status [role=status]")).to_have_text(state, timeout=60_000)
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible(timeout=60_000)
    expect(page.locator(".stDataFrame >> nth=1 >> canvas").first).to_be_visible(timeout=60_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(2500)  # the grids draw on a canvas, which shows nobody when it is done
    if name:
        save(page, name)


def save(page: Page, name: str) -> None:
    """Write what the page shows."""
    picture = Image.open(BytesIO(page.screenshot()))
    picture.quantize(256).save(FOLDER / f"{name}.png", optimize=True)  # a third of the size
    print(f"images/{name}.png")


def market_chart(ticker: str, minutes: int, rate: int, seed: int) -> str:
    """Return a page with the prices of one ticker in a market of `rate` trades/s, as producer.py makes them."""
    fake = Faker()
    fake.seed_instance(seed)
    clock = count(time.time_ns(), 10**9 // rate)
    fake.add_provider(TradeProvider(fake, clock.__next__))
    trades = [trade for _ in range(60 * minutes * rate) if (trade := fake.trade()).ticker == ticker]
    figure = go.Figure(go.Scatter(x=[trade.timestamp for trade in trades], y=[trade.price for trade in trades]))
    figure.update_traces(line={"width": 1, "shape": "hv"})
    figure.update_layout(template="plotly_dark", margin={"l": 50, "r": 20, "t": 20, "b": 30})
    return str(figure.to_html())


@contextmanager
def market_open(database: Database) -> Iterator[None]:
    """Let trades have come in for a while, and go on coming in."""
    market = Market(seed=7)
    insert(database, market.until_now(int(HISTORY.total_seconds()) * TRADES_PER_SECOND, HISTORY.total_seconds()))
    with trades_arriving(database, market, TRADES_PER_SECOND):
        yield


if __name__ == "__main__":
    main()
