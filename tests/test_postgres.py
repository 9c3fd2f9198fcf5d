"""PostgreSQL before the first row: an invalid URL is refused, a server that stops answering is noticed."""

import signal
from contextlib import closing

import psycopg2
import pytest

from pipeline.postgres import Watchdog, connect, prepare_table
from pipeline.user_error import UsageError, UserError
from tests.services import Postgres


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://user:secret@localhost/trades",  # as SQLAlchemy spells it
        "postgresql://user:se/cret@localhost/trades",
        "postgresql://user:secret@localhost:port/trades",
        "user:secret@localhost",
    ],
)
def test_an_invalid_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match="DATABASE_URL is not a PostgreSQL URL") as refusal:
        prepare_table(url)
    assert "cret" not in str(refusal.value)


@pytest.mark.parametrize("option", ["sslmode=perhaps", "target_session_attrs=mine"])
def test_an_invalid_option_is_not_waited_for(option: str) -> None:
    with pytest.raises(UserError, match=option.partition("=")[2]):
        prepare_table(f"postgresql://user:secret@localhost/trades?{option}")


def test_ssl_that_the_server_does_not_have_is_not_waited_for(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(UserError, match="does not support SSL"):
        prepare_table(postgres.url)
    with pytest.raises(UserError, match="unset PGSSLMODE"):  # as local_stack.py would wait for it
        postgres.answers()


def test_a_statement_ends_when_its_server_freezes(own_postgres: Postgres) -> None:
    with closing(connect(own_postgres.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        processes = own_postgres.processes()
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            with Watchdog(own_postgres.url).watching(connection), pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 2")
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
