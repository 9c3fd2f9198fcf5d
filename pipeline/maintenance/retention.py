"""Delete the trades that are older than TRADES_RETENTION, a few at a time, oldest first.

    TRADES_RETENTION=30d python -m pipeline.maintenance.retention          # for ever, a pass a minute
    TRADES_RETENTION=30d python -m pipeline.maintenance.retention --once   # one pass, for cron

Each statement deletes at most a thousand trades, which it finds at the old end of the index on timestamp, and rests as
long as it took: inserts and the page go on beside it. It starts each time where the last one ended, because what is
deleted stays in the index until PostgreSQL's autovacuum comes by. Autovacuum also makes the space reusable; the table's
files stop growing, they do not shrink.
"""

# isort: off
from pipeline.command import stop_requested, wait_for_stop  # first: from here on Ctrl-C is an orderly end
# isort: on

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import psycopg2
from psycopg2.extensions import connection as Connection

from pipeline.consumer.table import connect, first_line, prepare_table
from pipeline.outage import Outage
from pipeline.settings import SettingsError, read_settings

BATCH_SIZE = 1000  # trades
SECONDS_BETWEEN_PASSES = 60.0
SECONDS_BETWEEN_ATTEMPTS = 1.0

# A crash may undo the last of them: the next pass deletes those trades again.
SESSION = "SET synchronous_commit = off; SET statement_timeout = '5s'"

DELETE_OLDEST = f"""
    WITH deleted AS (
        DELETE FROM trades WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM trades
            WHERE timestamp >= %s AND timestamp < (now() AT TIME ZONE 'UTC') - %s
            ORDER BY timestamp LIMIT {BATCH_SIZE}
        )) RETURNING timestamp
    ) SELECT count(*), max(timestamp) FROM deleted
"""


def prune(connection: Connection, retention: timedelta) -> Iterator[int]:
    """Delete what is older than the retention; yield how many, transaction by transaction. Raises `psycopg2.Error`."""
    start: object = "-infinity"
    while not stop_requested():
        with connection, connection.cursor() as cursor:
            cursor.execute(DELETE_OLDEST, [start, retention])
            [(count, newest)] = cursor.fetchall()
        if not count:
            return
        yield count
        start = newest


def prune_gently(database_url: str, retention: timedelta) -> int:
    """Make one pass that leaves the database at least half of the time to others; return how many trades went."""
    total = 0
    with closing(connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(SESSION)
        began = time.monotonic()
        for count in prune(connection, retention):
            total += count
            wait_for_stop(time.monotonic() - began)
            began = time.monotonic()
    return total


def prune_for_ever(database_url: str, retention: timedelta) -> int:
    """Make a pass a minute until the user asks to stop, whatever happens to the database; return the trades deleted."""
    total = 0
    outage = Outage("PostgreSQL")
    while not stop_requested():
        try:
            count = prune_gently(database_url, retention)
        except psycopg2.Error as error:
            outage.report(first_line(error))
            wait_for_stop(SECONDS_BETWEEN_ATTEMPTS)
            continue
        outage.end()
        total += count
        if count:
            print(f"🧹 {count:,} trades older than {retention} deleted", flush=True)
        wait_for_stop(SECONDS_BETWEEN_PASSES)
    return total


def arguments() -> argparse.Namespace:
    """Read the command line; what is wrong with it is one line, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.maintenance.retention",
        usage=argparse.SUPPRESS,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end after one pass")
    return parser.parse_args()


def main() -> int:
    """Prune; return the exit code."""
    options = arguments()
    try:
        settings = read_settings()
        logging.basicConfig(level=settings.log_level, format="%(message)s")
        if settings.retention is None:
            raise SettingsError("TRADES_RETENTION is not set, so trades are kept for ever: set it, such as to 30d")
        prepare_table(settings.database_url)
        work = prune_gently if options.once else prune_for_ever
        total = 0 if stop_requested() else work(settings.database_url, settings.retention)
    except (SettingsError, psycopg2.Error) as error:
        print(f"pipeline.maintenance.retention: {first_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print(f"Retention stopped: {total:,} trades deleted.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
