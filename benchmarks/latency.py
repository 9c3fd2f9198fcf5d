"""How long after it was made a trade is a row: producer.py → Kafka → consumer.py → PostgreSQL, at a steady rate.

    python -m benchmarks.latency                        # 1,000 trades/s for 30 s
    python -m benchmarks.latency --rate 5000 --seconds 10

It starts a broker and a PostgreSQL of its own, with local_stack.py's settings, and both scripts as they are. Measured
is from a trade's own timestamp, which producer.py takes from the clock as it makes it, to the commit of the row's
transaction, which PostgreSQL keeps (track_commit_timestamp, same clock). It takes that time just before it flushes
its log to disk, so another connection sees the row one flush later: 0.15 ms where this was checked. The first second,
in which both scripts warm up, is left out.
"""

import argparse
import os
import platform
import signal
import sys
from datetime import UTC, datetime

from benchmarks.sink import processor
from tests.services import Database, Kafka, Postgres, Script, environment_of, eventually

PERCENTILES = (50, 90, 99, 99.9, 100)

# In milliseconds; a row's xmin is the transaction that stored it.
LATENCIES = """
    SELECT count(*), percentile_disc(%s) WITHIN GROUP (ORDER BY latency)
    FROM (
        SELECT 1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin) - timestamp AT TIME ZONE 'UTC')::float8
            AS latency
        FROM trades
        WHERE timestamp > (SELECT min(timestamp) + interval '1 second' FROM trades)
    ) AS rows
"""


def measure(options: argparse.Namespace) -> tuple[int, list[float], int]:
    """Run both scripts; return the number of rows, their latencies at `PERCENTILES` (ms), and the transactions."""
    count = options.rate * (options.seconds + 1)
    with Kafka() as broker, Postgres(track_commit_timestamp="on") as postgres:
        environment = environment_of(broker.bootstrap_servers, postgres.url, "orders", "latency")
        consumer = Script(["consumer.py"], environment)
        try:
            consumer.wait_for_line("Consumer started")
            eventually(lambda: broker.committed("orders", "latency"))  # it has its partition
            print(f"{count:,} trades at {options.rate:,}/s ...", file=sys.stderr, flush=True)
            producer = Script(["producer.py", "--rate", str(options.rate), "--count", str(count)], environment)
            try:
                producer.wait(timeout=options.seconds + 60)
            finally:
                producer.kill()
            database = Database(postgres.url)
            eventually(lambda: database.count() == count, every=0.5)
            ((rows, latencies),) = database.query(LATENCIES, [percentile / 100 for percentile in PERCENTILES])
            ((transactions,),) = database.query("SELECT count(DISTINCT xmin::text) FROM trades")
            return rows, latencies, transactions
        finally:
            consumer.stop()


def main() -> int:
    """Read the command line, measure, print."""
    summary, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=1000, help="trades per second")
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)  # pipeline.command, imported above, took them
    try:
        rows, latencies, transactions = measure(options)
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    print(
        f"{rows:,} trades at {options.rate:,}/s, {rows / transactions:.1f} a transaction; {Kafka.title}, "
        f"PostgreSQL 18.6, Python {platform.python_version()}, {os.cpu_count()} × {processor()}, "
        f"{datetime.now(UTC):%Y-%m-%d}\n"
    )
    print("| produced → committed | " + " | ".join(name(percentile) for percentile in PERCENTILES) + " |")
    print("|---|" + "---:|" * len(PERCENTILES))
    print("| milliseconds | " + " | ".join(f"{latency:.1f}" for latency in latencies) + " |")
    return 0


def name(percentile: float) -> str:
    """Return how a percentile is called."""
    return "max" if percentile == 100 else f"p{percentile:g}"


if __name__ == "__main__":
    sys.exit(main())
