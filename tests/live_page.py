"""The page as its viewers see it, for tests, screenshots and benchmarks: a server, a browser, trades."""

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

import psutil
from faker import Faker
from playwright.sync_api import Browser, sync_playwright
from psycopg2.extras import execute_values

from pipeline.producer.tape import TradeProvider
from tests.script import environment_of
from tests.services import Database, eventually, free_port

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


class Market:
    """The producer's market as rows of the table, at times of the caller's choice; one seed always gives one market."""

    def __init__(self, seed: int = 1) -> None:
        faker = Faker()
        faker.seed_instance(seed)
        self._moment = 0
        self._provider = TradeProvider(faker, clock=lambda: self._moment)

    def trade(self, moment: datetime) -> Row:
        """Return the next trade, as a row of the table."""
        self._moment = (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1) * 1000
        trade = self._provider.trade()
        return trade.trade_id, trade.ticker, trade.price, trade.volume, trade.side, moment

    def until_now(self, count: int, seconds: float) -> list[Row]:
        """Return `count` trades, spread evenly over the last `seconds`."""
        now = utc_now()
        return [self.trade(now - timedelta(seconds=seconds * (1 - n / count))) for n in range(1, count + 1)]


def utc_now() -> datetime:
    """Return the current time as the table stores it."""
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
    """Store `rate` trades a second while the block runs."""
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
    """Run `streamlit run dashboard.py` on a free port, as a user does; yield the page's address."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "dashboard.py", f"--server.port={port}", *options]
    environment = environment_of("127.0.0.1:9", database_url, "orders", "nobody")
    with tempfile.TemporaryFile() as log:
        # In its own session, to which Linux gives its own share of the processors; ours has all of the test's workers.
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            eventually(lambda: healthy(address))
            yield address
        finally:
            process.terminate()
            process.wait(timeout=10)


def server_of(address: str) -> psutil.Process:
    """Return the page's server process."""
    option = f"--server.port={address.rsplit(':', 1)[1]}"
    return next(child for child in psutil.Process().children() if option in child.cmdline())


def healthy(address: str) -> bool:
    """Return whether the page's server answers."""
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium installed on this machine, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()
