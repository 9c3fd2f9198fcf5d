"""The table `trades`: store a batch of trades, each exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from pipeline.postgres import TEMPORARY_TABLE, TableError, connect, execute_file, table_problem
from pipeline.trade import COLUMNS

_COLUMNS = ", ".join(COLUMNS)

# PostgreSQL refuses a row with these (SQLSTATE 22…, 23…, and RAISE in a trigger); anything else is no row's fault.
_ROW_REFUSED = (psycopg2.DataError, psycopg2.IntegrityError, errors.RaiseException)


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
            execute_file(self._connection, TEMPORARY_TABLE)
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
