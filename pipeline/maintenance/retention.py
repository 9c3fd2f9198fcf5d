"""Delete trades older than TRADES_RETENTION, a few at a time, oldest first.

    TRADES_RETENTION=30d python -m pipeline.maintenance.retention          # one pass a minute, until stopped
    TRADES_RETENTION=30d python -m pipeline.maintenance.retention --once   # one pass, for cron

Each statement deletes at most a thousand trades, found at the old end of the index on timestamp, and is followed by a
pause as long as it took, so inserts and the page are not held up. The next one starts where it ended, because deleted
rows stay in the index until PostgreSQL's autovacuum removes them. Autovacuum also makes their space reusable: the
table's files stop growing, but they do not shrink.
"""

from pipeline.stop import stop_requested, take_signals, wait_for_stop

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import psycopg2
from psycopg2.extensions import connection as Connection

from pipeline.command import first_line, parser, run
from pipeline.outage import Outage
from pipeline.postgres import Watchdog, connect, prepare_table
from pipeline.settings import Settings
from pipeline.user_error import UsageError, UserError

BATCH_SIZE = 1000  # trades
SECONDS_BETWEEN_PASSES = 60.0
SECONDS_BETWEEN_ATTEMPTS = 1.0

# A crash of PostgreSQL may undo the latest deletions; the next pass repeats them.
CONNECTION_SETTINGS = "SET synchronous_commit = off; SET statement_timeout = '5s'"

# By key rather than ctid, which is unique only within one partition.
DELETE_OLDEST = f"""
    WITH deleted AS (
        DELETE FROM trades WHERE trade_id = ANY (ARRAY(
            SELECT trade_id FROM trades
            WHERE timestamp >= %s AND timestamp < (now() AT TIME ZONE 'UTC') - %s
            ORDER BY timestamp LIMIT {BATCH_SIZE}
        )) RETURNING timestamp
    ) SELECT count(*), max(timestamp)::text FROM deleted
"""


def prune(connection: Connection, retention: timedelta) -> Iterator[int]:
    """Delete trades older than the retention; yield the count of each transaction. Raises `psycopg2.Error`.

    Leaves the database to others for at least half of the time.
    """
    start: object = "-infinity"
    while not stop_requested():
        began = time.monotonic()
        with connection, connection.cursor() as cursor:
            cursor.execute(DELETE_OLDEST, [start, retention])
            [(count, start)] = cursor.fetchall()
        if not count:
            return
        yield count
        wait_for_stop(time.monotonic() - began)


def prune_once(database_url: str, retention: timedelta, watchdog: Watchdog) -> Iterator[int]:
    """Make one pass over a new connection; yield as `prune` does. Raises `psycopg2.Error`."""
    with closing(connect(database_url)) as connection, watchdog.watching(connection):
        with connection, connection.cursor() as cursor:
            cursor.execute(CONNECTION_SETTINGS)
        yield from prune(connection, retention)


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Make one pass, or one a minute until the user asks to stop, even through database outages."""
    if settings.retention is None:
        raise UsageError("TRADES_RETENTION is not set, so trades are kept forever: set it, for example to 30d")
    prepare_table(settings.database_url)
    total, outage, watchdog = 0, Outage("PostgreSQL"), Watchdog(settings.database_url)
    while not stop_requested():
        before = total
        try:
            for count in prune_once(settings.database_url, settings.retention, watchdog):
                total += count
        except psycopg2.Error as error:
            if options.once:
                raise UserError(first_line(error)) from None
            outage.report(first_line(error))
            wait_for_stop(SECONDS_BETWEEN_ATTEMPTS)
            continue
        outage.end()
        if options.once:
            break
        if total > before:
            print(f"🧹 {total - before:,} trades older than {settings.retention} deleted", flush=True)
        wait_for_stop(SECONDS_BETWEEN_PASSES)
    print(f"Retention stopped: {total:,} trades deleted.")


def options() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    known = parser(__doc__)
    known.add_argument("--once", action="store_true", help="end after one pass")
    return known


if __name__ == "__main__":
    sys.exit(run(options(), main))
