"""What the tests share: a broker, a PostgreSQL, a database and a topic of each test's own, scripts as processes."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
from uuid import uuid4

import pytest

from tests.services import (
    ApacheKafka,
    Database,
    EmbeddedKafka,
    Kafka,
    Postgres,
    Script,
    environment_of,
    missing_for_apache,
)

RunScript = Callable[..., Script]


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that pytest ends every fixture, and with it every process


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kafka", choices=("embedded", "apache"), default="embedded", help="the broker to test with")


def pytest_configure(config: pytest.Config) -> None:
    # pipeline.command, imported above, took the signals for a script's orderly end; here they end the suite.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    if config.getoption("--kafka") == "apache" and (missing := missing_for_apache()):
        raise pytest.UsageError(f"--kafka apache needs {missing}: install Java 17 and Maven")


@pytest.fixture(scope="session")
def kafka_class(pytestconfig: pytest.Config) -> type[Kafka]:
    """The kind of broker that the suite runs with."""
    return ApacheKafka if pytestconfig.getoption("--kafka") == "apache" else EmbeddedKafka


@pytest.fixture(scope="session")
def broker(kafka_class: type[Kafka]) -> Iterator[Kafka]:
    """A broker for the whole suite; a test that harms it takes `own_broker`."""
    with kafka_class() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole suite; a test that harms it takes `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_broker(kafka_class: type[Kafka]) -> Iterator[Kafka]:
    """A broker that this test may stop, kill and start again."""
    with kafka_class() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that this test may stop, kill and start again; the table is in `own_postgres.database`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """A database of this test's own, with an empty table."""
    fresh = postgres.fresh_database()
    yield fresh
    postgres.drop_database(fresh)


@pytest.fixture
def topic() -> str:
    """The name of a topic that nobody has created yet."""
    return f"orders-{uuid4().hex[:12]}"


@pytest.fixture
def environment(broker: Kafka, database: Database, topic: str) -> dict[str, str]:
    """The environment of a script that uses this test's broker, topic, group and database."""
    own = environment_of(broker.bootstrap_servers, database.url, topic, f"group-{topic}")
    # The embedded broker answers a fetch only when its wait is over. Short ones make the suite shorter; they
    # are no default, because with tens of thousands of requests in a topic that broker then finds nothing in time.
    return own | ({} if broker.keeps_topics else {"KAFKA_FETCH_WAIT_MAX_MS": "10"})


@pytest.fixture
def run_script(environment: dict[str, str]) -> Iterator[RunScript]:
    """Start a script: `run_script("producer.py", "--count", "5", KAFKA_TOPIC="other")`; killed at the test's end."""
    with ExitStack() as scripts:

        def run(*words: str, **variables: str) -> Script:
            script = Script(words, environment | variables)
            scripts.callback(script.kill)
            return script

        yield run
