"""The dashboard's way to PostgreSQL: read-only, asked once per interval for all viewers, and never a frozen page."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import psycopg2
from psycopg2.extensions import parse_dsn
from sqlalchemy import Engine, TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.dashboard.snapshot import WINDOW, Snapshot, as_trades
from pipeline.trade import COLUMNS

PATIENCE = 0.3  # seconds a tick waits for an answer; Streamlit fades what is older than half a second

# The index on timestamp is read backwards: the cost is the same however large the table is. NULLs would come first.
LATEST_TRADES = text(
    f"SELECT {', '.join(COLUMNS)} FROM trades WHERE timestamp IS NOT NULL "
    f"ORDER BY timestamp DESC, trade_id DESC LIMIT {WINDOW}"
)

MISSING_TABLE = "42P01"
PROBLEMS = {  # by SQLSTATE
    MISSING_TABLE: "There is no table “trades” yet: start consumer.py, which creates it, or run the files in sql/.",
    "42703": "The table “trades” lacks a column: sql/001_trades.sql lists the six it needs.",
    "42501": "This user may not read the table: GRANT SELECT ON trades lets it.",
    "57014": "The database took more than 1.5 s: sql/002_latest_trades.sql has the index that makes it fast.",
}
UNREACHABLE = "The database cannot be reached: is it running, and is DATABASE_URL right?"

Answer = TypeVar("Answer")


class Feed(Generic[Answer]):
    """The one answer that all viewers share.

    It is renewed when a viewer asks for a younger one, in a thread of its own and never twice at a time: a database
    that hangs costs each tick `PATIENCE`, and a dead one is tried once per interval however many look.
    """

    def __init__(self, renew: Callable[[Answer], Answer], first: Answer) -> None:
        self._renew = renew  # takes the last answer, so that a failure can keep what was good in it
        self._answer = first
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._done = threading.Event()
        self._done.set()

    def latest(self, max_age: float, patience: float = PATIENCE) -> Answer:
        """Return an answer asked for at most `max_age` seconds ago; the last one, if that takes too long."""
        with self._lock:
            if self._done.is_set() and time.monotonic() - self._asked_at >= max_age:
                self._asked_at = time.monotonic()
                self._done.clear()
                threading.Thread(target=self._ask, daemon=True).start()
        self._done.wait(patience)
        return self._answer

    def _ask(self) -> None:
        try:
            self._answer = self._renew(self._answer)
        finally:
            self._done.set()


def read_only_engine(database_url: str) -> Engine:
    """Return an engine that takes any libpq URL, cannot write, and keeps the server busy for 1.5 s at most."""

    def connect() -> psycopg2.extensions.connection:
        own_options = parse_dsn(database_url).get("options", "")
        return psycopg2.connect(
            database_url,
            connect_timeout=2,
            tcp_user_timeout=3000,
            application_name="dashboard",
            options=f"{own_options} -c default_transaction_read_only=on -c statement_timeout=1500 -c jit=off",
        )

    return create_engine(
        "postgresql+psycopg2://", creator=connect, pool_size=2, max_overflow=0, isolation_level="AUTOCOMMIT"
    )


def read_snapshot(engine: Engine, last: Snapshot) -> Snapshot:
    """Ask for the newest trades; where that fails, keep the last ones and say what is wrong."""
    try:
        rows = query(engine, LATEST_TRADES)
    except SQLAlchemyError as error:
        return replace(last, problem=problem(error), missing=sqlstate(error) == MISSING_TABLE)
    return Snapshot(as_trades(rows), time.monotonic())


def query(engine: Engine, statement: TextClause, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
    """Return the rows of a statement; a connection that the server closed since its last use is opened again."""
    try:
        with engine.connect() as connection:
            return connection.execute(statement, values or {}).all()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    with engine.connect() as connection:
        return connection.execute(statement, values or {}).all()


def problem(error: SQLAlchemyError) -> str:
    """Return one line that says what to do, and nothing of the query or the credentials."""
    return PROBLEMS.get(sqlstate(error), UNREACHABLE)


def sqlstate(error: SQLAlchemyError) -> str:
    """Return PostgreSQL's five-character code of an error, or nothing where it never got that far."""
    return (getattr(error.orig, "pgcode", None) or "") if isinstance(error, DBAPIError) else ""
