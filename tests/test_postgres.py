"""PostgreSQL before the first row: an invalid URL is refused, a server that stops answering is noticed."""

import signal
from contextlib import closing
from urllib.parse import urlsplit

import psycopg2
import pytest

from pipeline.postgres import Watchdog, connect, prepare_table
from pipeline.user_error import UsageError, UserError
from tests.services import PASSWORD, USER, Database, Postgres


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


def test_a_schema_that_does_not_exist_is_not_waited_for(database: Database) -> None:
    with pytest.raises(UserError, match="no schema has been selected"):
        prepare_table(f"{database.url}?options=-csearch_path%3Dnowhere")


@pytest.mark.parametrize(
    ("refusal", "said"),
    [("ALTER ROLE guest NOLOGIN", "not permitted to log in"), ("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "denied")],
)
def test_a_role_that_may_not_connect_does_not_wait(database: Database, refusal: str, said: str) -> None:
    database.query(f"DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    database.query(refusal.format(urlsplit(database.url).path[1:]))
    with pytest.raises(UserError, match=said):
        prepare_table(database.url.replace(USER, "guest"))
    database.query("DROP ROLE guest")


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
