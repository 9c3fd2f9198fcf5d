"""Shared fixtures: a broker, a PostgreSQL, a database and a topic for each test, scripts as processes.

With pytest-xdist, the controller process starts the broker that all workers use.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from types import FrameType
from uuid import uuid4

import psycopg2
import pytest
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from tests.script import Script, environment_of
from tests.services import Database, Kafka, KafkaClient, Postgres

RunScript = Callable[..., Script]
BROKER = pytest.StashKey[Kafka]()


# Tests that share an expensive fixture run in one worker, so that it is set up once; large groups begin first.
GROUPS = {
    "site": "page",
    "prepared": "stack",
    "running": "stack",
    "stack": "stack",
    "secured": "secured",
    "own_broker": "own broker",
}


# One after another: those of the market share tapes that take long to make, the others start many servers each.
ALONE = {"test_market.py", "test_benchmarks.py", "test_cluster.py", "test_make.py"}


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that pytest tears down every fixture, and with it every process


def pytest_configure() -> None:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Group the tests by their fixtures and files."""
    for item in items:
        groups = [GROUPS[name] for name in item.fixturenames if name in GROUPS]
        if item.path.name in ALONE:
            groups = [item.path.name]
        if groups:
            half = item.path.name < "test_kafka" if groups[0] == "own broker" else ""  # all would take too long
            item.add_marker(pytest.mark.xdist_group(f"{groups[0]} {half}"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Tell a pytest-xdist worker the broker's address; the broker starts before the first worker."""
    node.workerinput["bootstrap_servers"] = shared_broker(node.config).bootstrap_servers


def shared_broker(config: pytest.Config) -> Kafka:
    """Return the broker of this test run, started if need be; it stops when the run ends."""
    if BROKER not in config.stash:
        servers = ExitStack()
        config.add_cleanup(servers.close)
        config.stash[BROKER] = servers.enter_context(Kafka())
        config.stash[BROKER].archive_classes()  # so that the other brokers start quickly
    return config.stash[BROKER]


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> KafkaClient:
    """A broker for the whole suite; a test that would disrupt it uses `own_broker`."""
    worker = getattr(pytestconfig, "workerinput", None)
    return KafkaClient(worker["bootstrap_servers"]) if worker else shared_broker(pytestconfig)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for the whole suite; a test that would disrupt it uses `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def breakable_broker() -> Iterator[Kafka]:
    """A broker that one test at a time may disrupt; tests reuse it because each start takes seconds."""
    with Kafka() as server:
        yield server


@pytest.fixture
def own_broker(breakable_broker: Kafka) -> Kafka:
    """A broker without topics that this test may stop, kill and restart."""
    if not breakable_broker.running:
        breakable_broker.start()
    for name in breakable_broker.topics() - {"__consumer_offsets"}:
        breakable_broker.delete_topic(name)
    return breakable_broker


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL that this test may stop, kill and restart; the table is in `own_postgres.database`."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def used_databases() -> list[Database]:
    """Databases of earlier tests, emptied for reuse."""
    return []


@pytest.fixture
def database(postgres: Postgres, used_databases: list[Database]) -> Iterator[Database]:
    """A database with an empty table, for this test alone."""
    own = used_databases.pop() if used_databases else postgres.fresh_database()
    yield own
    with suppress(psycopg2.OperationalError):  # the test has dropped it
        own.make_anew()
        used_databases.append(own)


@pytest.fixture
def topic() -> str:
    """The name of a topic that does not exist yet."""
    return f"orders-{uuid4().hex[:12]}"


@pytest.fixture
def environment(broker: KafkaClient, database: Database, topic: str) -> dict[str, str]:
    """The environment of a script that uses this test's broker, topic, group and database."""
    return environment_of(broker.bootstrap_servers, database.url, topic, f"group-{topic}")


@pytest.fixture
def run_script(environment: dict[str, str]) -> Iterator[RunScript]:
    """Start a script: `run_script("producer.py", "--count", "5", KAFKA_TOPIC="other")`; killed at the test's end."""
    with ExitStack() as scripts:

        def run(*words: str, **variables: str) -> Script:
            script = Script(words, environment | variables)
            scripts.callback(script.kill)
            return script

        yield run
