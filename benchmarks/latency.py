"""How long after it was made a trade is a row: producer.py → Kafka → consumer.py → PostgreSQL, at a steady rate.

    python -m benchmarks.latency                        # 1,000 trades/s, then 20,000 trades/s, 20 s each
    python -m benchmarks.latency --rate 5000 --seconds 10

It starts the servers of local_stack.py in a folder of their own, and both scripts as they are. Measured is from a
trade's own timestamp, which producer.py takes from the clock as it makes it, to the commit of the row's transaction,
which PostgreSQL keeps (track_commit_timestamp, same clock). It takes that time just before it flushes its log to disk,
so another connection sees the row one flush later: 0.15 ms where this was checked. The first seconds, in which both
scripts warm up, are left out.
"""

import argparse
import sys

from benchmarks.command import machine, numbers, parser, run, say, say_table, show
from tests.services import Database, Kafka, Postgres, Script, environment_of, eventually

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


def measure(options: argparse.Namespace) -> None:
    """Measure each rate, and print the table."""
    with Kafka() as broker, Postgres(track_commit_timestamp="on") as postgres:
        rows = [measure_rate(broker, postgres.fresh_database(), rate, options.seconds) for rate in options.rate]
    say(f"{options.seconds} s each; {machine()}; milliseconds\n")
    say_table(["produced → committed", "trades a transaction", *PERCENTILES], rows)


def measure_rate(broker: Kafka, database: Database, rate: int, seconds: int) -> list[str]:
    """Run both scripts at that rate; return the table's row."""
    topic, count = f"orders-{rate}", rate * (seconds + WARM_UP)
    environment = environment_of(broker.bootstrap_servers, database.url, topic, topic)
    consumer = Script(["consumer.py"], environment)
    producer = None
    try:
        consumer.wait_for_line("Consumer started")
        eventually(lambda: broker.committed(topic, topic))  # it has its partition
        show(f"{count:,} trades at {rate:,}/s ...")
        producer = Script(["producer.py", "--rate", str(rate), "--count", str(count)], environment)
        producer.wait(timeout=seconds + 60)
        eventually(lambda: database.count() == count, every=0.5)
    finally:
        if producer is not None:
            producer.kill()
        consumer.kill()
    ((rows, transactions, latencies),) = database.query(LATENCIES, list(PERCENTILES.values()))
    return [f"{rate:,} trades/s", f"{rows / transactions:.1f}", *(f"{latency:.1f}" for latency in latencies)]


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--rate", type=numbers, default=[1_000, 20_000], help="trades per second, as 1000,20000")
    options.add_argument("--seconds", type=int, default=20)
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
