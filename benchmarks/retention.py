"""What retention costs concurrent writes and reads, on a table of 20 million rows.

    python -m benchmarks.retention
    python -m benchmarks.retention --rows 2000000 --rounds 1 --seconds 3

It starts its own PostgreSQL with local_stack.py's settings, autovacuum included, and fills the table with trades of the
last twenty days. In each round it stores 1,000 trades/s as consumer.py does and queries the latest 200 twenty times a
second as the page does: first alone, then alongside a retention of ten days. At the end it does so once more, alongside
the vacuum that the deletions cause, at autovacuum's pace.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from statistics import median
from uuid import uuid4

import psycopg2

from benchmarks.command import machine, parser, run, say, say_table, show
from pipeline.consumer.table import TradesTable
from pipeline.dashboard.queries import LATEST_TRADES
from pipeline.trade import Trade, copy_rows, encode
from tests.script import Script
from tests.services import Database, Postgres

FILL = """
    ALTER TABLE trades DROP CONSTRAINT trades_pkey;
    DROP INDEX trades_timestamp_idx;
    INSERT INTO trades
        SELECT uuidv7(-age), 'AAPL', 187.25, 100, 'buy', now() AT TIME ZONE 'UTC' - age
        FROM (SELECT (%(rows)s - n) * interval '20 days' / %(rows)s AS age FROM generate_series(1, %(rows)s) AS n) AS o;
    ALTER TABLE trades ADD PRIMARY KEY (trade_id);
    CREATE INDEX trades_timestamp_idx ON trades (timestamp)
"""
BATCH = 20  # trades, every 20 ms: 1,000/s
ALONE, PRUNING, VACUUM = "alone", "during pruning", "during the vacuum after it"
PERCENTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}

Milliseconds = list[float]
Times = tuple[Milliseconds, Milliseconds]  # of each batch stored, of each query


@contextmanager
def repeating(every: float, work: Callable[[], object]) -> Iterator[Milliseconds]:
    """Repeat the work in a thread, pausing `every` seconds, until the block ends; yield the list of its durations."""
    taken: Milliseconds = []
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(every):
            began = time.perf_counter()
            work()
            taken.append(1000 * (time.perf_counter() - began))

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield taken
    finally:
        end.set()
        thread.join()


def load(database: Database, seconds: float) -> Times:
    """Store and query for `seconds`; return how long each batch and each query took."""
    table = TradesTable(database.url)

    def store() -> None:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        table.store(copy_rows([encode(Trade(str(uuid4()), "MSFT", 1.5, 1, "sell", moment)) for _ in range(BATCH)]))

    with closing(database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True

        def ask() -> None:
            cursor.execute(str(LATEST_TRADES))
            cursor.fetchall()

        store()  # connects
        ask()
        with repeating(0.02, store) as stores, repeating(0.05, ask) as asks:
            time.sleep(seconds)
    table.disconnect()
    return stores, asks


def load_beside_pruning(database: Database, seconds: float) -> tuple[Times, float]:
    """Do the same while the real retention process runs; also return the trades that it pruned per second."""
    began = time.monotonic()
    variables = {"DATABASE_URL": database.url, "TRADES_RETENTION": "10d"}
    script = Script(["-m", "pipeline.maintenance.retention"], dict(os.environ) | variables)
    try:
        times = load(database, seconds)
        assert script.stop() == 0, script.stderr
    finally:
        script.kill()
    return times, int(script.stdout.split()[-3].replace(",", "")) / (time.monotonic() - began)


def load_beside_vacuum(database: Database, seconds: float) -> Times:
    """Do the same while the table is vacuumed as by autovacuum; the vacuum is cancelled at the end."""
    with closing(database.connect()) as connection:
        connection.autocommit = True
        connection.cursor().execute("SET vacuum_cost_delay = '2ms'")  # autovacuum's default

        def vacuum() -> None:
            with suppress(psycopg2.errors.QueryCanceled):
                connection.cursor().execute("VACUUM trades")

        thread = threading.Thread(target=vacuum)
        thread.start()
        times = load(database, seconds)
        connection.cancel()
        thread.join()
        return times


def measure(options: argparse.Namespace) -> tuple[dict[str, Times], list[float]]:
    """Run all rounds; return the times by what ran alongside, and the trades pruned per second in each round."""
    times: dict[str, Times] = {beside: ([], []) for beside in (ALONE, PRUNING, VACUUM)}
    rates = []

    def add(beside: str, taken: Times) -> None:
        for known, new in zip(times[beside], taken, strict=True):
            known.extend(new)

    with Postgres() as postgres:
        database = postgres.database
        show(f"Filling a table with {options.rows:,} trades ...")
        database.query(FILL % {"rows": options.rows})
        with closing(database.connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute("VACUUM (ANALYZE) trades")
            connection.cursor().execute("CHECKPOINT")
        for number in range(options.rounds):
            show(f"Round {number + 1} of {options.rounds} ...")
            add(ALONE, load(database, options.seconds))
            taken, rate = load_beside_pruning(database, options.seconds)
            add(PRUNING, taken)
            rates.append(rate)
        show("Vacuum ...")
        add(VACUUM, load_beside_vacuum(database, options.seconds))
    return times, rates


def main(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    times, rates = measure(options)
    say(
        f"{options.rows:,} rows, {options.rounds} rounds; {median(rates):,.0f} trades/s pruned; {machine()}; "
        "milliseconds\n"
    )
    headings = [f"{what}, {name}" for what in (f"storing {BATCH} trades", "the latest 200") for name in PERCENTILES]
    rows = [
        [beside, *(f"{at(taken, share):.1f}" for taken in both for share in PERCENTILES.values())]
        for beside, both in times.items()
    ]
    say_table(["beside", *headings], rows)


def at(times: Milliseconds, share: float) -> float:
    """Return the percentile at `share`."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=20_000_000, help="trades in the table, half of them expired")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=int, default=5, help="of each half of a round")
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), main))
