"""The dashboard's access to PostgreSQL: read-only, once per interval for all viewers, and never a frozen page."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar

import psycopg2
from sqlalchemy import Engine, TextClause, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline.postgres import parse_url

MISSING_TABLE = "There is no table “trades” yet: start consumer.py, which creates it, or run the files in sql/."
WRONG_TYPE = "The table “trades” has a column of another type than in sql/001_trades.sql."
PROBLEMS = {  # by SQLSTATE
    "42P01": MISSING_TABLE,
    "42703": "The table “trades” lacks a column: sql/001_trades.sql lists the six it needs.",
    "42883": WRONG_TYPE,
    "22P02": WRONG_TYPE,
    "42501": "This user may not read the table: GRANT SELECT ON trades fixes that.",
    "57014": "The query took more than 1.5 s: the database is busy, or lacks the index in sql/002_latest_trades.sql.",
}
UNREACHABLE = "The database cannot be reached: is it running, and is DATABASE_URL right?"

Value = TypeVar("Value")
Choice = ParamSpec("Choice")


@dataclass(frozen=True, eq=False)
class Answer(Generic[Value]):
    """The database's last good answer, and what has gone wrong since."""

    value: Value
    read_at: float | None = None  # seconds, monotonic clock; None before the first good answer
    problem: str | None = None  # one line for the viewer if the latest attempt failed


class Feed(Generic[Value]):
    """The one answer that all viewers share.

    A viewer who asks for a fresher one starts a refresh in a background thread, never two at a time. A database that
    hangs costs each tick only its patience, and a dead one is tried once per interval, however many viewers there are.
    """

    def __init__(self, read: Callable[[Value], Value], first: Value) -> None:
        self._read = read  # takes the last good value and returns the next; raises `SQLAlchemyError`
        self._answer = Answer(first)
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._done = threading.Event()
        self._done.set()

    def latest(self, max_age: float, patience: float) -> Answer[Value]:
        """Return an answer requested at most `max_age` seconds ago, or the last one if that takes too long."""
        with self._lock:
            if self._done.is_set() and time.monotonic() - self._asked_at >= max_age:
                self._asked_at = time.monotonic()
                self._done.clear()
                threading.Thread(target=self._ask, daemon=True).start()
        self._done.wait(patience)
        return self._answer

    def _ask(self) -> None:
        try:
            self._answer = Answer(self._read(self._answer.value), time.monotonic())
        except SQLAlchemyError as error:
            self._answer = replace(self._answer, problem=problem(error))
        except (TypeError, ValueError, ArithmeticError):  # of a type, or in a range, that Python cannot take
            self._answer = replace(self._answer, problem=WRONG_TYPE)
        finally:
            self._done.set()


def shared(function: Callable[Choice, Value]) -> Callable[Choice, Value]:
    """Cache the function's latest results for all viewers; whoever wants one that is being made waits for it.

    Without the lock, all viewers who wait for the same answer would make the same results, at the same time.
    """
    cached: Callable[Choice, Value] = lru_cache(maxsize=64)(function)  # type: ignore[assignment]
    lock = threading.Lock()

    @wraps(function)
    def call(*args: Choice.args, **kwargs: Choice.kwargs) -> Value:
        with lock:
            return cached(*args, **kwargs)

    return call


def read_only_engine(database_url: str) -> Engine:
    """Return an engine that takes any libpq URL, cannot write, and keeps the server busy for 1.5 s at most.

    Raises `UsageError` for a URL that libpq cannot read.
    """
    options = f"{parse_url(database_url).get('options', '')} -c statement_timeout=1500 -c jit=off"
    # While the server owes an answer there is nothing to send, so only keepalives notice that its host has vanished.
    patience = {"connect_timeout": 2, "keepalives_idle": 3, "keepalives_interval": 1, "tcp_user_timeout": 3000}

    def connect() -> psycopg2.extensions.connection:
        own: dict[str, Any] = patience | {
            "options": options,
            "application_name": "dashboard",
            "client_encoding": "utf8",
        }
        connection: psycopg2.extensions.connection = psycopg2.connect(database_url, **own)
        # Not set in `options`: a URL with target_session_attrs=read-write would then find no server.
        connection.set_session(readonly=True, autocommit=True)
        return connection

    return create_engine("postgresql+psycopg2://", creator=connect, pool_size=2, max_overflow=0, pool_pre_ping=True)


def query(engine: Engine, statement: TextClause, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
    """Return the rows of a statement."""
    with engine.connect() as connection:
        return connection.execute(statement, values or {}).all()


def problem(error: SQLAlchemyError) -> str:
    """Return one line that says what to do and reveals nothing of the query or the credentials."""
    state = getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None  # None: no answer
    return PROBLEMS.get(state, f"The database answers with error {state}: its log says more.") if state else UNREACHABLE
