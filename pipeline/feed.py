"""The dashboard's way to PostgreSQL: read-only, one question per interval, and never a wait that freezes the page."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psycopg2
from psycopg2.extensions import parse_dsn
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.snapshot import WINDOW, Snapshot, as_trades
from pipeline.trade import COLUMNS

PATIENCE = 0.3  # seconds a tick waits for an answer; Streamlit fades what is older than half a second

# The index on timestamp is read backwards, so this costs the same however large the table is. A NULL would sort first.
LATEST_TRADES = text(
    f"SELECT {', '.join(COLUMNS)} FROM trades WHERE timestamp IS NOT NULL "
    f"ORDER BY timestamp DESC, trade_id DESC LIMIT {WINDOW}"
)

PROBLEMS = {  # by SQLSTATE
    "42P01": "There is no table “trades” yet. Start consumer.py, which creates it, or run the files in sql/.",
    "42703": "The table “trades” lacks a column. sql/001_trades.sql lists the six that it needs.",
    "42501": "This database user may not read the table “trades”. GRANT SELECT ON trades lets it.",
    "57014": "The database needs more than 1.5 s for an answer and was told to stop trying.",
}
UNREACHABLE = "The database cannot be reached. Is it running, and is DATABASE_URL right?"
MISSING_TABLE = "42P01"


def read_only_engine(database_url: str) -> Engine:
    """Return an engine that takes any libpq URL and cannot write, nor keep the server busy for more than 1.5 s."""

    def connect() -> psycopg2.extensions.connection:
        own_options = parse_dsn(database_url).get("options", "")
        return psycopg2.connect(
            database_url,
            connect_timeout=2,
            tcp_user_timeout=3000,
            application_name="dashboard",
            options=f"{own_options} -c default_transaction_read_only=on -c statement_timeout=1500",
        )

    return create_engine(
        "postgresql+psycopg2://", creator=connect, pool_size=2, max_overflow=0, isolation_level="AUTOCOMMIT"
    )


class Feed:
    """The one snapshot that all viewers share.

    It is renewed when a viewer asks and it is older than the viewer wants it, by at most one query at a time. A
    failure keeps the last good trades and is remembered like an answer, so a dead database too is asked only once
    per interval.
    """

    def __init__(self, engine: Engine, now: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._now = now
        self._lock = threading.Lock()
        self._snapshot = Snapshot(as_trades())
        self._asked_at = float("-inf")
        self._answered = threading.Event()
        self._answered.set()

    def latest(self, max_age: float) -> Snapshot:
        """Return a snapshot asked for at most `max_age` seconds ago, or the last one if the answer takes too long."""
        with self._lock:
            if self._answered.is_set() and self._now() - self._asked_at >= max_age:
                self._asked_at = self._now()
                self._answered.clear()
                threading.Thread(target=self._ask, daemon=True).start()
        self._answered.wait(PATIENCE)
        return self._snapshot

    def age(self, snapshot: Snapshot) -> float | None:
        """Return how many seconds ago the database gave this answer."""
        return None if snapshot.read_at is None else self._now() - snapshot.read_at

    def _ask(self) -> None:
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(LATEST_TRADES).all()
            self._snapshot = Snapshot(as_trades(rows), self._now())
        except SQLAlchemyError as error:
            sqlstate = sqlstate_of(error)
            problem = PROBLEMS.get(sqlstate, UNREACHABLE)
            self._snapshot = replace(self._snapshot, problem=problem, missing=sqlstate == MISSING_TABLE)
        finally:
            self._answered.set()


def sqlstate_of(error: SQLAlchemyError) -> str:
    """Return PostgreSQL's five-character code of an error, or nothing where it never got that far."""
    return (getattr(error.orig, "pgcode", None) or "") if isinstance(error, DBAPIError) else ""
