"""Least privilege: consumer and dashboard work with roles that may each do one thing, and nothing else."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psycopg2
import pytest

from pipeline.dashboard.candles import History, read_history
from pipeline.dashboard.feed import query, read_only_engine
from pipeline.dashboard.queries import LATEST_TRADES
from pipeline.dashboard.snapshot import as_snapshot
from pipeline.postgres import SQL_FOLDER
from tests.conftest import RunScript
from tests.messages import trade
from tests.services import PASSWORD, Database, KafkaClient, Postgres, eventually

Login = Callable[[str], Database]

ROLES = ("trades_writer", "trades_reader", "trades_pruner")
DEEDS = {
    "INSERT": "INSERT INTO trades (trade_id) VALUES ('1')",
    "SELECT": "SELECT FROM trades",
    "UPDATE": "UPDATE trades SET price = 1",
    "DELETE": "DELETE FROM trades WHERE timestamp < '2000-01-01'",
    "TRUNCATE": "TRUNCATE trades",
    "DROP": "DROP TABLE trades",
    "ALTER": "ALTER TABLE trades ADD venue TEXT",
    "INDEX": "CREATE INDEX ON trades (price)",
    "CREATE": "CREATE TABLE mine (a INTEGER)",
    "ROLE": "CREATE ROLE other",
}
ALLOWED = {
    "trades_writer": {"INSERT"},
    "trades_reader": {"SELECT"},
    "trades_pruner": {"SELECT", "DELETE"},
}


@pytest.fixture
def login(postgres: Postgres, database: Database) -> Iterator[Login]:
    """Return the test's database, as seen by a user with only the given role."""
    for _ in range(2):  # the file can be run again
        database.query((SQL_FOLDER / "roles" / "roles.sql").read_text())

    def create(role: str) -> Database:
        database.query(f"DROP USER IF EXISTS only_{role}")
        database.query(f"CREATE USER only_{role} PASSWORD '{PASSWORD}' IN ROLE {role}")
        parts = urlsplit(database.url)
        return Database(parts._replace(netloc=f"only_{role}:{PASSWORD}@127.0.0.1:{parts.port}").geturl())

    yield create
    postgres.drop_database(database)
    for role in ROLES:
        postgres.database.query(f"DROP USER IF EXISTS only_{role}")
        postgres.database.query(f"DROP ROLE {role}")


@pytest.mark.parametrize("role", ROLES)
def test_each_role_can_do_its_own_and_nothing_else(login: Login, role: str) -> None:
    database = login(role)
    possible = set()
    for deed, sql in DEEDS.items():
        try:
            database.query(sql)
            possible.add(deed)
        except psycopg2.errors.InsufficientPrivilege:
            pass
    assert possible == ALLOWED[role]


def test_the_consumer_works_as_the_writer(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript, login: Login
) -> None:
    writer = login("trades_writer")
    broker.create_topic(topic)
    trades = [trade() for _ in range(200)]
    broker.produce(topic, [*trades[:100], b"no trade", *trades])  # 100 of them twice, so that their batch is merged
    consumer = run_script("consumer.py", "--from-beginning", DATABASE_URL=writer.url)
    eventually(lambda: database.count() == 200)
    assert consumer.stop() == 0
    assert "200 trades stored, 100 repeated, 1 dead letters" in consumer.stdout
    again = run_script("consumer.py", "--from-beginning", DATABASE_URL=writer.url)
    again.wait_for_line("Consumer started")
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 201)
    assert again.stop() == 0
    assert "1 trades stored, 300 repeated" in again.stdout


def test_the_writer_is_told_when_the_table_is_missing(database: Database, run_script: RunScript, login: Login) -> None:
    writer = login("trades_writer")
    database.query("DROP TABLE trades")
    consumer = run_script("consumer.py", DATABASE_URL=writer.url)
    assert consumer.wait() == 1
    assert "permission denied for schema public" in consumer.stderr
    assert len(consumer.stderr_lines) == 1


def test_the_page_works_as_the_reader(database: Database, login: Login) -> None:
    database.query("INSERT INTO trades VALUES ('1', 'AAPL', 1.5, 10, 'buy', '2026-01-31 08:30')")
    engine = read_only_engine(login("trades_reader").url)
    snapshot, history = as_snapshot(query(engine, LATEST_TRADES)), read_history(engine, History())
    engine.dispose()
    assert (list(snapshot.trades["ticker"]), history.tickers) == (["AAPL"], ["AAPL"])


def test_retention_works_as_the_pruner(database: Database, run_script: RunScript, login: Login) -> None:
    database.query("INSERT INTO trades VALUES ('1', 'AAPL', 1.5, 10, 'buy', '2026-01-31 08:30')")
    variables = {"DATABASE_URL": login("trades_pruner").url, "TRADES_RETENTION": "30d"}
    script = run_script("-m", "pipeline.maintenance.retention", "--once", **variables)
    assert script.wait() == 0, script.stderr
    assert database.count() == 0
