"""PostgreSQL's side of the pipeline: connect, keep the table right, store a batch exactly once."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import make_dsn, parse_dsn

from pipeline.settings import SettingsError
from pipeline.command import stop_requested, wait_for_stop
from pipeline.trade import COLUMNS

SQL_FOLDER = Path(__file__).parent.parent.parent / "sql"
_COLUMNS = ", ".join(COLUMNS)

# PostgreSQL refuses a row with these (SQLSTATE 22…, 23…, and RAISE in a trigger); anything else is no row's fault.
_ROW_REFUSED = (psycopg2.DataError, psycopg2.IntegrityError, errors.RaiseException)


class TableError(psycopg2.Error):
    """The table is not the one `sql/` describes; the text is one line that names the difference."""


@dataclass
class Stored:
    """What became of a batch: `inserted` new rows, `repeated` ones that were there already, refused ones by index."""

    inserted: int = 0
    repeated: int = 0
    refused: dict[int, Exception] = field(default_factory=dict)  # index in the batch -> PostgreSQL's reason


class TradesTable:
    """The table `trades` through one connection, opened when first needed and again after `disconnect`.

    Not to be shared between threads.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: Connection | None = None
        self._expect_repeats = False

    def store(self, lines: bytes) -> Stored:
        """Store a batch of `copy_lines` in one transaction, each exactly once, and commit it.

        A batch goes straight into `trades` while no key repeats. One that does repeat (a redelivery) fails as a
        whole, and is then merged. Raises `psycopg2.Error` for faults that no row is to blame for; nothing is
        stored then, and the same batch can be stored again.
        """
        if self._connection is None:
            self._connection = connect(self._url)
            execute_file(self._connection, SQL_FOLDER / "temporary" / "incoming.sql")
            self._connection.autocommit = True  # a COPY alone is a transaction, and needs no BEGIN and COMMIT
        try:
            return self._store_as_usual(self._connection, lines)
        except _ROW_REFUSED:
            # Of an altered table every row would be "bad": that is not the rows' fault.
            if problem := table_problem(self._connection):
                raise TableError(problem) from None
            return self._store_around_refused(self._connection, lines)

    def disconnect(self) -> None:
        """Drop the connection, in whatever state it is."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _store_as_usual(self, connection: Connection, lines: bytes) -> Stored:
        if not self._expect_repeats:
            try:
                with connection.cursor() as cursor:
                    return Stored(inserted=_copy(cursor, "trades", lines))
            except errors.UniqueViolation:
                pass
        with connection, connection.cursor() as cursor:
            stored = _merge(cursor, lines)
        self._expect_repeats = stored.repeated > 0  # redeliveries come in runs
        return stored

    def _store_around_refused(self, connection: Connection, lines: bytes) -> Stored:
        stored = Stored()
        with connection, connection.cursor() as cursor:
            _merge_halves(cursor, lines.splitlines(keepends=True), 0, stored)
        return stored


def _copy(cursor: Cursor, table: str, lines: bytes) -> int:
    """Copy the lines, all at once: between two pieces, psycopg2 would have to wait for the interpreter lock."""
    copy = f"COPY {table} ({_COLUMNS}) FROM STDIN (ENCODING 'UTF8')"
    cursor.copy_expert(copy, BytesIO(lines), size=len(lines) + 1)
    return cursor.rowcount


def _merge(cursor: Cursor, lines: bytes) -> Stored:
    """Insert the lines whose key is new. In key order, so that two consumers cannot deadlock over the same keys."""
    count = _copy(cursor, "incoming", lines)
    cursor.execute(
        f"INSERT INTO trades ({_COLUMNS}) SELECT {_COLUMNS} FROM incoming ORDER BY trade_id ON CONFLICT DO NOTHING"
    )
    inserted = cursor.rowcount
    return Stored(inserted=inserted, repeated=count - inserted)


def _merge_halves(cursor: Cursor, lines: Sequence[bytes], first: int, stored: Stored) -> None:
    """Merge what PostgreSQL takes, halving around what it refuses: log2(n) rounds find one refused line of n."""
    cursor.execute("SAVEPOINT half")
    try:
        merged = _merge(cursor, b"".join(lines))
        cursor.execute("DELETE FROM incoming")
        cursor.execute("RELEASE SAVEPOINT half")
        stored.inserted += merged.inserted
        stored.repeated += merged.repeated
    except _ROW_REFUSED as error:
        cursor.execute("ROLLBACK TO SAVEPOINT half")
        if len(lines) == 1:
            stored.refused[first] = error
            return
        middle = len(lines) // 2
        _merge_halves(cursor, lines[:middle], first, stored)
        _merge_halves(cursor, lines[middle:], first + middle, stored)


def connect(database_url: str) -> Connection:
    """Connect, with time-outs that notice a server that vanished. Raises `psycopg2.Error`."""
    patience = {"connect_timeout": "5", "keepalives_idle": "10", "tcp_user_timeout": "20000"}
    return psycopg2.connect(make_dsn(**(patience | parse_dsn(database_url))))


def prepare_table(database_url: str) -> None:
    """Wait for the database, and create the table if it is missing.

    Raises `SettingsError` when the URL is none, `TableError` when the table is there but is not the one that `sql/`
    describes, `psycopg2.Error` when the database refuses. Returns early when the user asks to stop.
    """
    try:
        parse_dsn(database_url)
    except psycopg2.ProgrammingError as error:
        raise SettingsError(f"DATABASE_URL is not a PostgreSQL URL: {first_line(error)}") from None
    connection = _wait_for_database(database_url)
    if connection is None:
        return
    try:
        execute_file(connection, SQL_FOLDER / "temporary" / "incoming.sql")
        if table_problem(connection) == TABLE_MISSING:
            apply_sql(connection)
        if problem := table_problem(connection):
            raise TableError(problem)
    finally:
        connection.close()


def _wait_for_database(database_url: str) -> Connection | None:
    announced = False
    while not stop_requested():
        try:
            return connect(database_url)
        except psycopg2.OperationalError as error:
            if not _may_come_up(error):
                raise
            if not announced:
                print(f"⏳ Waiting for PostgreSQL: {first_line(error)}", file=sys.stderr, flush=True)
                announced = True
            wait_for_stop(0.5)
    return None


def _may_come_up(error: psycopg2.OperationalError) -> bool:
    """Tell a server that is not up yet from one that refuses the user, the password or the database's name."""
    text = str(error)
    return not any(refusal in text for refusal in ("authentication failed", "does not exist", "no pg_hba.conf entry"))


def apply_sql(connection: Connection) -> None:
    """Run `sql/*.sql` in name order; each is idempotent. One script at a time: IF NOT EXISTS does not see another's."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('sql/'))")
        for path in sorted(SQL_FOLDER.glob("*.sql")):
            cursor.execute(path.read_text())


def execute_file(connection: Connection, path: Path) -> None:
    """Run one SQL file in one transaction."""
    with connection, connection.cursor() as cursor:
        cursor.execute(path.read_text())


TABLE_MISSING = "the table trades is missing: restart the consumer, or run sql/*.sql"

_DIFFERENCES = """
    SELECT wanted.attname, format_type(wanted.atttypid, wanted.atttypmod), format_type(found.atttypid, found.atttypmod)
    FROM pg_attribute AS wanted
    LEFT JOIN pg_attribute AS found ON found.attrelid = to_regclass('trades') AND found.attname = wanted.attname
    WHERE wanted.attrelid = 'pg_temp.incoming'::regclass AND wanted.attnum > 0
      AND (found.atttypid, found.atttypmod) IS DISTINCT FROM (wanted.atttypid, wanted.atttypmod)
"""
_OBLIGATORY_EXTRAS = """
    SELECT attname FROM pg_attribute
    WHERE attrelid = to_regclass('trades') AND attnum > 0 AND attnotnull AND NOT atthasdef AND NOT attisdropped
      AND attidentity = '' AND attname <> ALL (%s)
"""
_UNIQUE_KEYS = """
    SELECT pg_get_indexdef(indexrelid, 1, true) FROM pg_index
    WHERE indrelid = to_regclass('trades') AND indisunique AND indnkeyatts = 1 AND indpred IS NULL
"""


def table_problem(connection: Connection) -> str | None:
    """Compare `trades` with `sql/` (through `incoming`), by the catalogue, which every role may read."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('trades')")
        if cursor.fetchall() == [(None,)]:
            return TABLE_MISSING
        cursor.execute(_DIFFERENCES)
        for column, wanted, found in cursor:
            return f"the column trades.{column} is {found or 'missing'}, and has to be {wanted}"
        cursor.execute(_OBLIGATORY_EXTRAS, [list(COLUMNS)])
        for (column,) in cursor:
            return f"the column trades.{column} is NOT NULL without a default, and no trade has it"
        cursor.execute(_UNIQUE_KEYS)
        if ("trade_id",) not in cursor.fetchall():
            return "trades.trade_id is not the primary key: redelivered trades would be stored twice"
    return None


def first_line(error: BaseException) -> str:
    """Return the line of a PostgreSQL error that says what is wrong; never a statement or its parameters."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
