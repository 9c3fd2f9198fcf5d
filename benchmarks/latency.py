"""How long a trade takes to become a row: producer.py → Kafka → consumer.py → PostgreSQL, at a steady rate.

    python -m benchmarks.latency                        # 1,000 trades/s, then 20,000 trades/s, 20 s each
    python -m benchmarks.latency --rate 5000 --seconds 10
    python -m benchmarks.latency --screen               # how long until it is painted: 50 trades/s, in Chromium

It starts the servers of local_stack.py in a separate folder, and both scripts unchanged. Latency is measured from a
trade's own timestamp, which producer.py takes from the clock when it makes the trade, to the commit of the row's
transaction, which PostgreSQL records (track_commit_timestamp, same clock). It records that time just before it flushes
its WAL to disk, so other connections see the row one flush later: 0.15 ms where this was checked. The first seconds are
left out, while both scripts warm up.

With --screen, latency is measured to the moment dashboard.py's page has painted the trade in a browser (Chromium), at
two refresh intervals or those given. At more than 200 trades per interval the page shows only the newest 200, and only
these are counted.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil

from benchmarks.command import machine, numbers, parser, run, say, say_table, show
from tests.live_page import chromium, dashboard
from tests.script import Script, environment_of
from tests.services import Database, Kafka, Postgres, eventually

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
WARM_UP = 3  # seconds

# In milliseconds; a row's xmin is the transaction that stored it.
LATENCIES = f"""
    SELECT count(*), count(DISTINCT xmin), percentile_disc(%s) WITHIN GROUP (ORDER BY latency)
    FROM (
        SELECT xmin::text,
            1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin) - timestamp AT TIME ZONE 'UTC')::float8 AS latency
        FROM trades
        WHERE timestamp > (SELECT min(timestamp) + interval '{WARM_UP} seconds' FROM trades)
    ) AS rows
"""


# A row is new on the tape when its element is added. A task queued in a frame's callback runs after that frame's paint.
WATCH_TAPE = """() => {
    const rows = document.querySelector(".st-key-tape tbody").rows;
    const seen = new Set([...rows].map((row) => row.dataset.key));
    window.delays = [];
    new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
        for (const { dataset: { key } } of rows) {
            if (!seen.has(key)) delays.push(Date.now() - parseInt(key.slice(0, 8) + key.slice(9, 13), 16));  // UUIDv7
            seen.add(key);
        }
    }))).observe(rows[0].parentElement, { childList: true });
}"""


def measure(options: argparse.Namespace) -> None:
    """Measure at each rate, and print the table."""
    to, count = ("painted", "trades seen") if options.screen else ("committed", "trades a transaction")
    rows: list[list[str]] = []
    with Kafka() as broker, Postgres(track_commit_timestamp="on") as postgres:
        for rate in options.rate or ([50] if options.screen else [1_000, 20_000]):
            database = postgres.fresh_database()
            if options.screen:
                rows += measure_screen(broker, database, rate, options.seconds, options.screen)
            else:
                rows.append(measure_commits(broker, database, rate, options.seconds))
    say(f"{options.seconds} s each; {machine()}; milliseconds\n")
    say_table([f"produced → {to}", count, *PERCENTILES], rows)


def measure_commits(broker: Kafka, database: Database, rate: int, seconds: int) -> list[str]:
    """Run both scripts at that rate until every trade is stored; return a row of the table."""
    count = rate * (seconds + WARM_UP)
    with flowing(broker, database, rate, "--count", str(count)) as producer:
        show(f"{count:,} trades at {rate:,}/s ...")
        producer.wait(timeout=seconds + 60)
        eventually(lambda: database.count() == count, every=0.5)
    ((rows, transactions, latencies),) = database.query(LATENCIES, list(PERCENTILES.values()))
    return [f"{rate:,} trades/s", f"{rows / transactions:.1f}", *(f"{latency:.1f}" for latency in latencies)]


def measure_screen(
    broker: Kafka, database: Database, rate: int, seconds: int, intervals: list[int]
) -> Iterator[list[str]]:
    """Run both scripts at that rate and watch the page; yield a row of the table for each refresh interval."""
    with flowing(broker, database, rate), dashboard(database.url) as address, chromium() as browser:
        for interval in intervals:
            show(f"the page at {rate:,} trades/s, refreshed every {interval} s ...")
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(f"{address}/?every={interval}+s")
            page.locator(".st-key-tape tbody tr").first.wait_for(timeout=60_000)
            page.wait_for_timeout(1000 * WARM_UP)
            page.evaluate(WATCH_TAPE)
            page.wait_for_timeout(1000 * seconds)
            page.wait_for_function("() => window.delays.length > 0")
            delays = sorted(page.evaluate("() => window.delays"))
            page.close()
            figures = [f"{delays[ceil(share * len(delays)) - 1]:,}" for share in PERCENTILES.values()]
            yield [f"{rate:,} trades/s, refreshed every {interval} s", f"{len(delays):,}", *figures]


@contextmanager
def flowing(broker: Kafka, database: Database, rate: int, *options: str) -> Iterator[Script]:
    """Run consumer.py and then producer.py on a fresh topic; yield the producer."""
    topic = f"orders-{rate}"
    environment = environment_of(broker.bootstrap_servers, database.url, topic, topic)
    consumer = Script(["consumer.py"], environment)
    producer = None
    try:
        consumer.wait_for_line("Consumer started")
        eventually(lambda: broker.committed(topic, topic))  # it has its partition
        producer = Script(["producer.py", "--rate", str(rate), *options], environment)
        yield producer
    finally:
        if producer is not None:
            producer.kill()
        consumer.kill()


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--rate", type=numbers, help="trades per second, as 1000,20000")
    options.add_argument("--seconds", type=int, default=20)
    options.add_argument(
        "--screen", type=numbers, nargs="?", const=[2, 1], help="to the screen, refreshed every 2 s and every 1 s (2,1)"
    )
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
