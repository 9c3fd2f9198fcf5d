"""What the page costs: its queries at 200 and at 20 million rows, a tick, and whether 50 viewers refresh on time.

    python -m benchmarks.dashboard                                  # about six minutes, most of it to fill the table
    python -m benchmarks.dashboard --rows 1000000 --seconds 10

It starts its own PostgreSQL and dashboard. The queries are the page's own, run through the page's own engine, at both
sizes in turn. The viewers are connections that speak Streamlit's protocol as its JavaScript does: every two seconds
they request the fragment and wait until it has finished. (Fifty browsers that really draw would measure how fast two
cores can draw.) PostgreSQL itself counts the queries (pg_stat_statements).
"""

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.command import machine, numbers, parser, run, say, show
from pipeline.dashboard.candles import History, candles_of, read_history
from pipeline.dashboard.feed import query, read_only_engine
from pipeline.dashboard.queries import LATEST_TRADES
from tests.live_page import Market, dashboard, insert, server_of, trades_arriving
from tests.services import Database, Postgres

INTERVAL = 2.0  # seconds, the page's default
FADE = 0.5  # seconds after which Streamlit fades elements that it waits for

# 5,000 trades a second, with keys like UUIDv7, which start with the time.
FILL = """
    INSERT INTO trades SELECT
        lpad(to_hex((1767225600000 + i / 5)::bigint), 12, '0') || '-7' || md5(i::text),
        (ARRAY['AAPL', 'MSFT', 'GOOGL', 'AMZN', 'TSLA', 'META', 'NVDA'])[1 + mod(i * 7919, 7)],
        100 + mod(i, 7) * 70 + round((sin(i / 1e6) * 20)::numeric, 2),
        1 + mod(i * 31, 900),
        CASE mod(i, 2) WHEN 0 THEN 'buy' ELSE 'sell' END,
        timestamp '2026-01-01' + i * interval '200 microseconds'
    FROM generate_series(%s::bigint, %s::bigint) AS i"""

ASKED = """
    SELECT coalesce(sum(calls) FILTER (WHERE query LIKE '%AS always%'), 0)::float8, coalesce(sum(calls), 0)::float8
    FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query LIKE '%trades%'
        AND query NOT LIKE 'INSERT%' AND query NOT LIKE '%pg_stat_statements%'"""


def measure(options: argparse.Namespace) -> None:
    """Measure, and print a line per figure."""
    with Postgres(shared_preload_libraries="pg_stat_statements") as postgres:
        small, large = postgres.fresh_database(), postgres.fresh_database()
        insert(small, Market().until_now(200, seconds=20))
        fill(large, options.rows)
        report_queries(small, large)
        report_candles(large)
        postgres.drop_database(large)
        small.query("CREATE EXTENSION pg_stat_statements")
        for viewers in options.viewers:
            report_viewers(small, viewers, options.seconds)


def fill(database: Database, rows: int) -> None:
    """Fill the table, a million rows at a time."""
    started, step = time.monotonic(), 1_000_000
    for done in range(0, rows, step):
        database.query(FILL, done + 1, min(done + step, rows))
        show(f"filling: {min(done + step, rows):,} of {rows:,} rows")
    connection = database.connect()
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE trades")
    connection.close()
    say(f"{rows:,} rows filled in {time.monotonic() - started:.0f} s; {machine()}")


def report_queries(small: Database, large: Database, rounds: int = 300) -> None:
    """Query the latest trades at both sizes in turn, so that both see the same load on the machine."""
    engines = [read_only_engine(database.url) for database in (small, large)]
    times: list[list[float]] = [[], []]
    for turn in range(rounds):
        for engine, taken in zip(engines, times, strict=True):
            start = time.perf_counter()
            query(engine, LATEST_TRADES)
            if turn >= rounds // 10:  # the first turns fill the caches
                taken.append(1000 * (time.perf_counter() - start))
    few, many = (statistics.median(taken) for taken in times)
    say(f"latest 200 trades, of 200 rows:      median {few:.2f} ms")
    say(f"latest 200 trades, of {large.count():,} rows: median {many:.2f} ms, {many / few:.2f} times as long")
    for engine in engines:
        engine.dispose()


def report_candles(large: Database) -> None:
    """Read the history from the last trade back to the first, then refresh it as a running page does."""
    engine, history, started = read_only_engine(large.url), History(), time.monotonic()
    while not history.complete:
        history = read_history(engine, history)
    whole = time.monotonic() - started
    turns = []
    for _ in range(50):
        start = time.perf_counter()
        history = read_history(engine, history)
        turns.append(1000 * (time.perf_counter() - start))
    step, candles = candles_of(history, "AAPL")
    shown = f"{len(candles)} candles of {step.total_seconds():.0f} s for AAPL"
    say(f"candles: first counted in {whole:.1f} s; then {statistics.median(turns):.1f} ms an interval; {shown}")
    engine.dispose()


@dataclass
class Viewer:
    """The requests of one browser, and how long each tick took."""

    address: str
    ticks: list[float] = field(default_factory=list)  # seconds from when a tick was due until it ended

    async def look(self, since: float, until: float) -> None:
        """Open the page and refresh it until `until`; record ticks due after `since` (both on the monotonic clock)."""
        url = f"{self.address.replace('http', 'ws')}/_stcore/stream"
        async with connect(url, subprotocols=["streamlit"], max_size=None, origin=self.address) as socket:  # type: ignore[list-item,arg-type]
            fragment = await self.run(socket, BackMsg(rerun_script=ClientState()))
            due = time.monotonic() + INTERVAL
            while due < until:
                await asyncio.sleep(max(0, due - time.monotonic()))
                await self.run(socket, BackMsg(rerun_script=ClientState(fragment_id=fragment, is_auto_rerun=True)))
                if due >= since:
                    self.ticks.append(time.monotonic() - due)
                due += INTERVAL

    async def run(self, socket: ClientConnection, request: BackMsg) -> str:
        """Request a run and wait until it ends; return the id of the fragment that refreshes itself."""
        await socket.send(request.SerializeToString())
        fragment = ""
        while True:
            raw = await socket.recv()
            assert isinstance(raw, bytes)
            message = ForwardMsg.FromString(raw)
            if message.HasField("auto_rerun"):
                fragment = message.auto_rerun.fragment_id
            if message.WhichOneof("type") == "script_finished":
                return fragment


def report_viewers(database: Database, count: int, seconds: int) -> None:
    """Let `count` viewers watch a fresh dashboard while ten trades a second arrive."""
    with dashboard(database.url) as address, trades_arriving(database, Market(seed=3), 10):
        server, viewers = server_of(address), [Viewer(address) for _ in range(count)]
        cpu, asked, counted = asyncio.run(together(viewers, seconds, server, database))
        memory = server.memory_info().rss / 1e6
    ticks = sorted(tick for viewer in viewers for tick in viewer.ticks)
    on_time = sum(tick < FADE for tick in ticks) / len(ticks)
    p99 = ticks[int(0.99 * (len(ticks) - 1))]
    intervals = seconds / INTERVAL
    say(
        f"{count:2} viewers: {len(ticks)} ticks, {1000 * statistics.median(ticks):.0f} ms median, {1000 * p99:.0f} ms "
        f"p99, {on_time:.1%} within {FADE} s of when they were due; {1000 * cpu / len(ticks):.1f} ms CPU a tick; "
        f"per interval {asked / intervals:.2f} queries for the latest trades and {counted / intervals:.2f} for the "
        f"candles; server {memory:.0f} MB"
    )


async def together(
    viewers: list[Viewer], seconds: float, server: psutil.Process, database: Database
) -> tuple[float, float, float]:
    """Let the viewers arrive, at most 20 a second, then measure for `seconds`.

    Returns the server's CPU seconds, and how often the latest trades and the candles were queried.
    """
    since = time.monotonic() + 3 * INTERVAL + len(viewers) / 20
    until = since + seconds

    async def arrive(viewer: Viewer, after: float) -> None:
        await asyncio.sleep(after)
        await viewer.look(since, until)

    async def watch() -> tuple[float, float, float]:
        await asyncio.sleep(since - time.monotonic())
        await asyncio.to_thread(database.query, "SELECT pg_stat_statements_reset()")
        before = server.cpu_times()
        await asyncio.sleep(until - time.monotonic())
        after = server.cpu_times()
        ((asked, in_all),) = await asyncio.to_thread(database.query, ASKED)
        return after.user + after.system - before.user - before.system, asked, in_all - asked

    # Spread over an interval, as independent viewers would be.
    arrivals = [n / 20 + INTERVAL * n / len(viewers) for n in range(len(viewers))]
    watched = asyncio.create_task(watch())
    await asyncio.gather(*map(arrive, viewers, arrivals))
    return await watched


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=20_000_000, help="rows in the large table (20000000)")
    options.add_argument("--seconds", type=int, default=30, help="how long each number of viewers looks (30)")
    options.add_argument("--viewers", type=numbers, default=[1, 10, 50], metavar="N,N,...", help="how many look")
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
