"""The table `trades`: store a batch of trades, each exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from pipeline.postgres import (
    TABLE_MISSING,
    TABLE_PROBLEMS,
    TEMPORARY_TABLE,
    TableError,
    Watchdog,
    connect,
    execute_file,
    table_problem,
)
from pipeline.trade import COLUMNS

_COLUMNS = ", ".join(COLUMNS)
_COPY = "COPY {} (" + _COLUMNS + ") FROM STDIN (FORMAT binary)"
# An altered table could misread the bytes or store a trade twice: in that case this divides by zero.
_PREPARE_CHECK = f"PREPARE no_problem AS SELECT 1 / (NOT EXISTS ({TABLE_PROBLEMS}))::integer"
# Any ALTER TABLE has finished or waits for us. ONLY: a locked partition holds up its own rows and no others.
_LOCK = "LOCK TABLE ONLY trades IN ROW EXCLUSIVE MODE"
_COPY_CHECKED = f"{_LOCK}; EXECUTE no_problem; {_COPY.format('trades')}"
# The role's own settings could end a large batch, or a connection between two batches, or acknowledge a commit that a
# crash would undo; `_make_certain` needs warnings.
_OVERRIDE_SETTINGS = """
    SET client_min_messages TO warning;
    SELECT set_config(name, 'on', false) FROM pg_settings
    WHERE name = 'synchronous_commit' AND setting IN ('off', 'local');
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_session_timeout')
"""
_OTHER_KEYS = """
    SELECT indexrelid::regclass FROM pg_index
    WHERE (indrelid = 'trades'::regclass OR indrelid IN (SELECT relid FROM pg_partition_tree('trades')))
      AND (indisunique OR indisexclusion)
      AND indkey[0] <> (SELECT attnum FROM pg_attribute WHERE attrelid = indrelid AND attname = 'trade_id')
"""
_WRITE_AHEAD = "SELECT pg_logical_emit_message(true, 'trades', '')"  # makes the commit wait for a standby


@dataclass
class Stored:
    """What became of a batch: `inserted` new rows, `repeated` rows stored before, and the refused rows."""

    inserted: int = 0
    repeated: int = 0
    refused: dict[int, Exception] = field(default_factory=dict)  # index in the batch -> PostgreSQL's reason


class TradesTable:
    """The table `trades` through one connection, opened when first needed and again after `disconnect`.

    Not thread-safe.
    """

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: Connection | None = None
        self._expect_repeats = False
        self._watchdog = Watchdog(database_url)

    def store(self, rows: Sequence[bytes], content: bytes | None = None) -> Stored:
        """Store a batch of `copy_rows` in one transaction, each row exactly once, and commit it.

        `content` is `copy_file(rows)`, if the caller has made it already: here, PostgreSQL would wait for it.

        A batch goes straight into `trades`. If it repeats a key (a redelivery) or contains a row that PostgreSQL
        refuses, that fails as a whole and the batch is merged instead. Raises `psycopg2.Error` for a fault that no row
        is to blame for; the same batch can then be stored again.
        """
        opened = self._connection is None
        connection = self._connection = self._connection or connect(self._url)
        with self._watchdog.watching(connection):
            try:
                if opened:
                    self._prepare(connection)
                stored = self._store(connection, rows, content or copy_file(rows))
                self._make_certain(connection)
                return stored
            except errors.UndefinedTable:  # perhaps another table, used by a trigger
                if table_problem(connection) == TABLE_MISSING:
                    raise TableError(TABLE_MISSING) from None
                raise

    def disconnect(self) -> None:
        """Close the connection, whatever its state."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _prepare(self, connection: Connection) -> None:
        execute_file(connection, TEMPORARY_TABLE)
        with connection, connection.cursor() as cursor:
            cursor.execute(_OVERRIDE_SETTINGS)
            cursor.execute(_PREPARE_CHECK)
        connection.set_client_encoding("UTF8")
        connection.autocommit = True  # a COPY is its own transaction, without BEGIN and COMMIT

    def _store(self, connection: Connection, rows: Sequence[bytes], content: bytes) -> Stored:
        del connection.notices[:]
        if not self._expect_repeats:
            try:
                with connection.cursor() as cursor:
                    return Stored(inserted=_copy(cursor, _COPY_CHECKED, content))
            except psycopg2.Error as error:
                if not _blames_a_row(error):
                    raise
        stored = Stored()
        with connection, connection.cursor() as cursor:
            cursor.execute(_LOCK)
            if problem := table_problem(connection):  # an altered table may round or refuse valid rows
                raise TableError(problem)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # a deferred one would refuse the whole batch on commit
            insert = _insert(cursor)
            _merge(cursor, insert, [])  # what fails without a row is no row's fault
            _merge_halves(cursor, insert, rows, 0, stored)
        self._expect_repeats = stored.repeated > 0  # redeliveries come in runs
        return stored

    def _make_certain(self, connection: Connection) -> None:
        """Raise `psycopg2.OperationalError` if the commit was meant to wait for a standby but did not.

        If somebody cancels that wait, the commit succeeds with a warning, in the server's language; but triggers can
        send notices, too. So a second commit waits (WAL is replicated in order): its only notice can be that warning.
        """
        connection.poll()  # reads the notices, which a COPY leaves unread
        if connection.notices:
            del connection.notices[:]
            with connection.cursor() as cursor:
                cursor.execute(_WRITE_AHEAD)
            if connection.notices:
                raise psycopg2.OperationalError("somebody cancelled the wait for the standby: it may lack this commit")


def copy_file(rows: Sequence[bytes]) -> bytes:
    """Return the rows as a file in COPY's binary format."""
    return b"".join([b"PGCOPY\n\xff\r\n\0", bytes(8), *rows, b"\xff\xff"])


def _insert(cursor: Cursor) -> str:
    """Return the statement that inserts the incoming rows with new keys. Raises `TableError` if it could lose one.

    Naming the key makes any other unique key refuse a row instead of silently dropping it, but needs SELECT. Inserting
    in key order, two consumers cannot deadlock over the same keys.
    """
    cursor.execute("SELECT has_column_privilege('trades', 'trade_id', 'SELECT')")
    key = "(trade_id)"
    if cursor.fetchall() != [(True,)]:
        key = ""
        cursor.execute(_OTHER_KEYS)
        for (name,) in cursor:
            raise TableError(f"because of the unique key {name}, this role needs SELECT (trade_id) ON trades")
    incoming = f"SELECT {_COLUMNS} FROM incoming ORDER BY trade_id"
    return f"INSERT INTO trades ({_COLUMNS}) {incoming} ON CONFLICT {key} DO NOTHING"


def _merge(cursor: Cursor, insert: str, rows: Sequence[bytes]) -> Stored:
    """Insert the rows with new keys."""
    count = _copy(cursor, _COPY.format("incoming"), copy_file(rows))
    cursor.execute(insert)
    inserted = cursor.rowcount
    # A commit waits for a standby only if it wrote something, and the repeated rows may not have got there yet.
    cursor.execute(_WRITE_AHEAD)
    return Stored(inserted=inserted, repeated=count - inserted)


def _merge_halves(cursor: Cursor, insert: str, rows: Sequence[bytes], first: int, stored: Stored) -> None:
    """Merge the rows that PostgreSQL accepts; bisection finds one refused row of n in log2(n) rounds."""
    cursor.execute("SAVEPOINT half")
    try:
        merged = _merge(cursor, insert, rows)
        cursor.execute("DELETE FROM incoming")
        cursor.execute("RELEASE SAVEPOINT half")
        stored.inserted += merged.inserted
        stored.repeated += merged.repeated
    except psycopg2.Error as error:
        if not _blames_a_row(error):
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT half")
        if len(rows) == 1:
            stored.refused[first] = error
            return
        middle = len(rows) // 2
        _merge_halves(cursor, insert, rows[:middle], first, stored)
        _merge_halves(cursor, insert, rows[middle:], first + middle, stored)


def _copy(cursor: Cursor, statement: str, content: bytes) -> int:
    """Copy everything in one piece: between pieces, psycopg2 would have to wait for the interpreter lock."""
    cursor.copy_expert(statement, BytesIO(content), size=len(content) + 1)
    return cursor.rowcount


def _blames_a_row(error: psycopg2.Error) -> bool:
    """Return whether PostgreSQL refuses a row for its data (22…), a constraint (23…) or a trigger's code (P0…).

    No row is to blame when an identity column has run out of numbers or the row's partition is missing; the latter is
    a check violation that names the table but no constraint.
    """
    if (error.pgcode or "")[:2] not in ("22", "23", "P0") or isinstance(error, errors.SequenceGeneratorLimitExceeded):
        return False
    no_partition = isinstance(error, errors.CheckViolation) and error.diag.table_name and not error.diag.constraint_name
    return not no_partition
