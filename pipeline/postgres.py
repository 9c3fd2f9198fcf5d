"""PostgreSQL before the first row: connect, create the table if it is missing, check that it matches `sql/`."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn, parse_dsn

from pipeline.command import first_line
from pipeline.stop import stop_requested, wait_for_stop
from pipeline.user_error import UsageError, UserError

SQL_FOLDER = Path(__file__).parent.parent / "sql"
SECONDS_TO_ANSWER = 4  # an integer, for libpq
SECONDS_UNSUSPECTED = 3.0  # after this without a result, we check whether the server still answers
SECONDS_BETWEEN_CHECKS = 0.5
TEMPORARY_TABLE = SQL_FOLDER / "temporary" / "incoming.sql"

# Waiting does not fix these; the user has to. A refused connection carries no error code, so its text decides.
_REFUSALS = (errors.InsufficientPrivilege, errors.UndefinedObject, errors.InvalidSchemaName, errors.SyntaxError)
_REFUSED_CONNECTIONS = (
    *("authentication failed", "does not exist", "no pg_hba.conf entry", "password supplied", "does not support SSL"),
    *("permission denied for database", "is not permitted to log in"),
)
_INVALID_OPTION = "invalid "  # how libpq's message begins if it did not even try to connect


class TableError(psycopg2.Error):
    """The table differs from the one that `sql/` describes; the text is one line that names the difference."""


def parse_url(database_url: str) -> dict[str, str]:
    """Parse DATABASE_URL as libpq does. Raises `UsageError`, which does not quote the URL: it contains the password."""
    try:
        options: dict[str, str] = parse_dsn(database_url)
        for port in options.get("port", "").split(","):
            int(port or 0)
    except (psycopg2.ProgrammingError, ValueError):
        raise UsageError(
            "DATABASE_URL is not a PostgreSQL URL: give postgresql://user:password@host:port/database, "
            "with special characters percent-encoded"
        ) from None
    return options


def connect(database_url: str) -> Connection:
    """Connect, with timeouts that detect a vanished server. Raises `psycopg2.Error`."""
    patience = {"connect_timeout": "5", "keepalives_idle": "10", "tcp_user_timeout": "20000"}
    return psycopg2.connect(make_dsn(**(patience | parse_dsn(database_url))))


def answers(database_url: str, connection: Connection) -> bool:
    """Return whether the connection's server accepts a new connection in time, or at least refuses it in time."""
    here = make_dsn(database_url, host=connection.info.host, port=connection.info.port, target_session_attrs="any")
    began = time.monotonic()
    with suppress(psycopg2.Error):
        psycopg2.connect(here, connect_timeout=SECONDS_TO_ANSWER).close()
    return time.monotonic() - began < SECONDS_TO_ANSWER - 1  # libpq may round its timeout down


def cut(connection: Connection) -> None:
    """Shut down the connection's socket, so that another thread that waits for the server fails at once."""
    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as stream:
        stream.shutdown(socket.SHUT_RDWR)


class Watchdog:
    """Cuts the connection to a server that has stopped answering, so that a statement fails and can be retried.

    A lock or a slow disk may take long, but then the server still answers. TCP would not notice: the kernel of a frozen
    server keeps acknowledging.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._watched: tuple[Connection, float] | None = None  # and since when
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def watching(self, connection: Connection) -> Iterator[None]:
        """Watch this connection meanwhile."""
        self._watched = connection, time.monotonic()
        try:
            yield
        finally:
            self._watched = None

    def _watch(self) -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_CHECKS)
            watched = self._watched
            if watched is None or time.monotonic() - watched[1] < SECONDS_UNSUSPECTED:
                continue
            if answers(self._url, watched[0]):
                time.sleep(SECONDS_UNSUSPECTED)
            elif watched is self._watched:
                cut(watched[0])


def prepare_table(database_url: str) -> None:
    """Wait for the database, and create the table if it is missing.

    Raises `UsageError` if the URL is invalid, `UserError` if the database refuses or the table differs from the one
    that `sql/` describes. Returns early if the user asks to stop.
    """
    parse_url(database_url)
    watchdog, announced = Watchdog(database_url), False
    while not stop_requested():
        try:
            with closing(connect(database_url)) as connection, watchdog.watching(connection):
                return _check_table(connection)
        except psycopg2.Error as error:
            if _is_refusal(error):
                raise UserError(first_line(error)) from None
            if not announced:
                print(f"⏳ Waiting for PostgreSQL: {first_line(error)}", file=sys.stderr, flush=True)
                announced = True
        wait_for_stop(0.5)


def _check_table(connection: Connection) -> None:
    execute_file(connection, TEMPORARY_TABLE)
    if table_problem(connection) == TABLE_MISSING:
        apply_sql(connection)
    if problem := table_problem(connection):
        raise TableError(problem)


def _is_refusal(error: psycopg2.Error) -> bool:
    refused = any(text in str(error) for text in _REFUSED_CONNECTIONS) or str(error).startswith(_INVALID_OPTION)
    return isinstance(error, (TableError, *_REFUSALS)) or refused


def apply_sql(connection: Connection) -> None:
    """Run the idempotent `sql/*.sql` in name order, one script at a time: IF NOT EXISTS misses a concurrent CREATE."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('sql/'))")
        for path in sorted(SQL_FOLDER.glob("*.sql")):
            cursor.execute(path.read_text())


def execute_file(connection: Connection, path: Path) -> None:
    """Run one SQL file in one transaction."""
    with connection, connection.cursor() as cursor:
        cursor.execute(path.read_text())


TABLE_MISSING = "the table trades is missing: restart the consumer, or run sql/*.sql"

# How `trades` differs from what `sql/` describes, one row per difference. `incoming` has the columns to compare with.
TABLE_PROBLEMS = """
    SELECT format('the column trades.%s is %s but must be %s', wanted.attname,
        coalesce(format_type(found.atttypid, found.atttypmod), 'missing'),
        format_type(wanted.atttypid, wanted.atttypmod))
    FROM pg_attribute AS wanted
    LEFT JOIN pg_attribute AS found ON found.attrelid = to_regclass('trades') AND found.attname = wanted.attname
    WHERE wanted.attrelid = 'pg_temp.incoming'::regclass AND wanted.attnum > 0
      AND (found.atttypid, found.atttypmod) IS DISTINCT FROM (wanted.atttypid, wanted.atttypmod)
    UNION ALL
    SELECT format('the column trades.%s is NOT NULL without a default, but trades have no such field', attname)
    FROM pg_attribute
    WHERE attrelid = to_regclass('trades') AND attnum > 0 AND attnotnull AND NOT atthasdef AND NOT attisdropped
      AND attidentity = ''
      AND attname NOT IN (SELECT attname FROM pg_attribute WHERE attrelid = 'pg_temp.incoming'::regclass)
    UNION ALL
    SELECT 'trades.trade_id is not the primary key, or a deferrable one: redelivered trades could be stored twice'
    WHERE NOT EXISTS (
        SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE indrelid = to_regclass('trades') AND indisunique AND indnkeyatts = 1 AND indpred IS NULL
          AND indimmediate AND indisvalid AND attname = 'trade_id'
    )
"""


def table_problem(connection: Connection) -> str | None:
    """Return how `trades` differs from `sql/` (through `incoming`), from the catalogue, which every role may read."""
    with connection.cursor() as cursor:  # in the caller's transaction
        cursor.execute("SELECT to_regclass('trades')")
        if cursor.fetchall() == [(None,)]:
            return TABLE_MISSING
        cursor.execute(TABLE_PROBLEMS)
        for (problem,) in cursor:
            return str(problem)
    return None
