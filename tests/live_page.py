"""The page as its viewers meet it, for the tests, the screenshots and the benchmark: a server, a browser, trades."""

import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import uuid4

from playwright.sync_api import Browser, sync_playwright
from psycopg2.extras import execute_values

from tests.services import Database, environment_of, eventually, free_port

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium on this machine: apt-get install chromium"
CHROMIUM_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

Row = tuple[str, str, float, int, str, datetime]
PRICES = {"AAPL": 232.4, "MSFT": 428.1, "GOOGL": 178.3, "AMZN": 205.7, "TSLA": 341.2, "META": 585.6, "NVDA": 138.9}


class Market:
    """A random walk per ticker, the same for the same seed; only the ids differ."""

    def __init__(self, seed: int = 1) -> None:
        self._random = Random(seed)
        self._prices = dict(PRICES)

    def trade(self, moment: datetime) -> Row:
        """Return the next trade, as a row of the table."""
        ticker = self._random.choices([*PRICES], weights=[5, 4, 3, 4, 6, 3, 8])[0]
        self._prices[ticker] *= 1 + self._random.gauss(0, 0.0007)
        volume = max(1, int(self._random.lognormvariate(4.5, 1)))
        side = self._random.choice(["buy", "sell"])
        trade_id = str(uuid4())
        return trade_id, ticker, round(self._prices[ticker], 2), volume, side, moment

    def until_now(self, count: int, seconds: float) -> list[Row]:
        """Return that many trades, evenly over the last seconds."""
        now = utc_now()
        return [self.trade(now - timedelta(seconds=seconds * (1 - n / count))) for n in range(1, count + 1)]


def utc_now() -> datetime:
    """Return the time as the table stores it."""
    return datetime.now(UTC).replace(tzinfo=None)


def insert(database: Database, rows: Iterable[Row]) -> None:
    """Store trades."""
    connection = database.connect()
    try:
        with connection, connection.cursor() as cursor:
            execute_values(cursor, "INSERT INTO trades VALUES %s", list(rows))
    finally:
        connection.close()


@contextmanager
def trades_arriving(database: Database, market: Market, rate: float) -> Iterator[None]:
    """Store so many trades a second meanwhile."""
    over = threading.Event()

    def store() -> None:
        while not over.wait(1 / rate):
            insert(database, [market.trade(utc_now())])

    thread = threading.Thread(target=store)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def dashboard(database_url: str, *options: str) -> Iterator[str]:
    """Run `streamlit run dashboard.py` on a free port, as a user does; the address of the page."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "dashboard.py", f"--server.port={port}", *options]
    environment = environment_of("127.0.0.1:9", database_url, "orders", "nobody")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            eventually(lambda: healthy(address))
            yield address
        finally:
            process.terminate()
            process.wait(timeout=10)


def healthy(address: str) -> bool:
    """Tell whether the page's server answers."""
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the machine's own Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()
