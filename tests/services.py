"""Real servers and real scripts for the tests and the benchmarks: on free ports of 127.0.0.1, in folders of their own.

    with EmbeddedKafka() as broker, Postgres() as postgres:
        Script(["consumer.py"], environment_of(broker.bootstrap_servers, postgres.url))

`kill` is the crash (SIGKILL, PostgreSQL's immediate stop), after which `start` goes on with the same data and port.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg2.extensions import connection as Connection
from psycopg2.sql import SQL, Identifier

from local_stack import (
    SERVER_USER,
    Address,
    accepts_connections,
    broker_command,
    create_database,
    database_command,
    initialise_database,
    maintenance_url,
    service,
)

ROOT = Path(__file__).parent.parent
KAFKA_POM = Path(__file__).parent / "kafka" / "pom.xml"
KAFKA_VERSION = "4.3.1"  # as in the pom
USER, PASSWORD = "kafka_user", "kafka_password"  # of PostgreSQL, and of Kafka where it asks for them
SECONDS_TO_END = 10  # what SPEC-abiding scripts need at most after a stop signal

Result = TypeVar("Result")


def eventually(condition: Callable[[], Result], timeout: float = 30, every: float = 0.05) -> Result:
    """Wait until the condition returns something true, and return that. Seconds; raises `AssertionError`."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {timeout:g} s (the last answer was {result!r})")
        time.sleep(every)
    return result


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on.

    Below those that the system gives to outgoing connections: while a server is down, one of its clients that tries
    to come back could otherwise be given the server's own port, and keep it.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """A server process with a temporary folder of its own; `start`, `stop` and `kill` can follow each other."""

    name = "server"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"trades-{self.name}-"))
        self.address = Address("127.0.0.1", free_port(), "PORT")
        self.process: subprocess.Popen[bytes] | None = None
        self._block: AbstractContextManager[subprocess.Popen[bytes]] | None = None

    @property
    def log(self) -> Path:
        """The file that takes what the server prints."""
        return self.folder / f"{self.name}.log"

    def start(self) -> None:
        """Start, or start again, and wait until it answers. Raises `StackError`."""
        block = self._service()
        self.process = block.__enter__()
        self._block = block

    def stop(self) -> None:
        """Shut down in order."""
        if self._block is not None:
            self._block.__exit__(None, None, None)
            self._block = None

    def kill(self) -> None:
        """Crash."""
        assert self.process is not None
        self.process.send_signal(self._crash_signal)
        self.process.wait(SECONDS_TO_END)
        self.stop()

    _crash_signal = signal.SIGKILL

    def _service(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except KeyboardInterrupt:  # after any other failure the folder is left: the server's log is in it
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Kafka(Server):
    """What the tests ask of either broker, and the few things they do there without the project's own code."""

    title = "Kafka"
    keeps_topics = False  # over a `kill` and `start`

    @property
    def bootstrap_servers(self) -> str:
        """The address for KAFKA_BOOTSTRAP_SERVERS."""
        return f"{self.address.host}:{self.address.port}"

    def answers(self) -> bool:
        """Tell whether the broker serves metadata."""
        if not self.address.answers():
            return False
        try:
            return bool(self._admin().list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def topics(self) -> set[str]:
        """Return the names of the topics."""
        return set(self._admin().list_topics(timeout=10).topics)

    def partitions(self, topic: str) -> int:
        """Return the number of the topic's partitions."""
        return len(self._admin().list_topics(topic, timeout=10).topics[topic].partitions)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic and wait until it can be used."""
        admin = self._admin()  # kept while it works
        admin.create_topics([NewTopic(name, num_partitions=partitions)])[name].result()
        eventually(lambda: name in self.topics())

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        admin = self._admin()
        admin.delete_topics([name])[name].result()

    def produce(
        self, topic: str, values: Iterable[bytes | None], key: bytes | None = b"AAPL", partition: int = -1
    ) -> None:
        """Produce raw messages, and return when Kafka has acknowledged every one of them."""
        errors: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error:
                errors.append(error)

        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "linger.ms": 5, "message.max.bytes": 8 << 20})
        for value in values:
            while True:
                try:
                    producer.produce(topic, value, key, partition, on_delivery=on_delivery)
                    break
                except BufferError:
                    producer.poll(0.1)
        unsent = producer.flush(60)
        assert not unsent, f"{unsent} messages not acknowledged"
        assert not errors, errors[0]

    def read(self, topic: str) -> list[Message]:
        """Return every message that the topic holds now, partition by partition, in order."""
        with closing(self._reader()) as consumer:
            return _read_on(consumer, [low for low, _ in _watermarks(consumer, topic)])

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """Return the group's committed offsets by partition, without those it has not committed."""
        with closing(self._reader(group)) as consumer:
            places = consumer.committed([low for low, _ in _watermarks(consumer, topic)], timeout=10)
            return {place.partition: place.offset for place in places if place.offset >= 0}

    def lag(self, topic: str, group: str) -> int:
        """Return how many of the topic's messages the group has not committed yet, all partitions together."""
        with closing(self._reader(group)) as consumer:
            lows, highs = zip(*_watermarks(consumer, topic), strict=True)
            ends: dict[int, int] = {high.partition: high.offset for high in highs}
            # The embedded broker names its last batch's second message as the end, so read on from there.
            for message in _read_on(consumer, highs):
                ends[message.partition() or 0] = (message.offset() or 0) + 1
            committed = consumer.committed(list(lows), timeout=10)  # an offset < 0: nothing committed yet
            done: int = sum(max(low.offset, known.offset) for low, known in zip(lows, committed, strict=True))
            return sum(ends.values()) - done

    def _reader(self, group: str = "reader") -> Consumer:
        options = {"enable.partition.eof": True, "enable.auto.commit": False, "fetch.wait.max.ms": 10, "log_level": 0}
        return Consumer(options | {"bootstrap.servers": self.bootstrap_servers, "group.id": group})

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


def _watermarks(consumer: Consumer, topic: str) -> list[tuple[TopicPartition, TopicPartition]]:
    """Return where each of the topic's partitions begins and ends, as the broker says."""
    partitions = [
        TopicPartition(topic, number) for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ]

    def answers() -> list[tuple[int, int]] | None:
        try:
            return [consumer.get_watermark_offsets(partition, timeout=10) for partition in partitions]
        except KafkaException:  # a broker that has just woken up knows no leaders yet
            return None

    offsets = eventually(answers)
    assert offsets is not None
    return [
        (TopicPartition(topic, place.partition, low), TopicPartition(topic, place.partition, high))
        for place, (low, high) in zip(partitions, offsets, strict=True)
    ]


def _read_on(consumer: Consumer, starts: Sequence[TopicPartition]) -> list[Message]:
    """Read from there to where the partitions end now."""
    messages: list[Message] = []
    consumer.assign(list(starts))
    unfinished = {start.partition for start in starts}
    while unfinished:
        message = consumer.poll(10)
        assert message is not None, f"neither a message nor the end of {starts[0].topic} for 10 s"
        if (error := message.error()) is None:
            messages.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            unfinished.discard(message.partition() or 0)
        else:
            raise KafkaException(error)
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))


class EmbeddedKafka(Kafka):
    """The broker of local_stack.py; it forgets its topics when it ends."""

    name = "broker"
    title = "the embedded broker"

    def _service(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        return service(broker_command(self.address), self.address, self.log, signal.SIGTERM, self.answers)


@dataclass(frozen=True)
class Secured:
    """A listener of Apache Kafka that asks for TLS, or for TLS and a password, and the CA that vouches for it."""

    bootstrap_servers: str
    ca_file: Path


class ApacheKafka(Kafka):
    """A single Apache Kafka node (KRaft), its jars from Maven Central; needs Java 17 and, the first time, Maven.

    With `security=True` it also listens with TLS (`tls`) and with TLS and SASL PLAIN or SCRAM (`sasl`).
    """

    name = "kafka"
    title = f"Apache Kafka {KAFKA_VERSION}"
    keeps_topics = True

    def __init__(self, security: bool = False) -> None:
        super().__init__()
        self._classpath = str(maven_jars(KAFKA_POM, "kafka", KAFKA_VERSION) / "*")
        self._controller_port = free_port()
        self._ca_file = self.folder / "ca.pem"
        self.tls = Secured(f"127.0.0.1:{free_port()}", self._ca_file) if security else None
        self.sasl = Secured(f"127.0.0.1:{free_port()}", self._ca_file) if security else None

    def _service(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        properties = self.folder / "server.properties"
        if not properties.exists():
            if self.tls:
                self._make_certificate()
            properties.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
            self._format(properties)
        command = self._java("kafka.Kafka", str(properties))
        return service(command, self.address, self.log, signal.SIGTERM, self.answers)

    def _java(self, main_class: str, *words: str) -> list[str]:
        options = ["-Xmx512m", "-XX:+UseSerialGC", f"-Djava.io.tmpdir={self.folder}"]
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return ["java", *options, quiet, "-cp", self._classpath, main_class, *words]

    def _properties(self) -> dict[str, object]:
        controller = f"127.0.0.1:{self._controller_port}"
        listeners = {"PLAINTEXT": self.bootstrap_servers}
        if self.tls and self.sasl:
            listeners |= {"SSL": self.tls.bootstrap_servers, "SASL_SSL": self.sasl.bootstrap_servers}
        named = ",".join(f"{protocol}://{address}" for protocol, address in listeners.items())
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": controller,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{named},CONTROLLER://{controller}",
            "advertised.listeners": named,
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "log.dirs": self.folder / "data",
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "group.initial.rebalance.delay.ms": 0,
            "broker.session.timeout.ms": 3000,  # a node that comes back after a crash waits this long for itself
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            "message.max.bytes": 8 << 20,
        } | (self._security_properties() if self.tls else {})

    def _security_properties(self) -> dict[str, object]:
        users = f'username="{USER}" password="{PASSWORD}"'
        modules = "org.apache.kafka.common.security"
        return {
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": self.folder / "server.p12",
            "ssl.keystore.password": PASSWORD,
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'{modules}.plain.PlainLoginModule required {users} user_{USER}="{PASSWORD}";'
            ),
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{modules}.scram.ScramLoginModule required;",
        }

    def _make_certificate(self) -> None:
        """Make the server's key and a certificate that vouches for itself; keytool comes with Java."""
        store = ["-keystore", str(self.folder / "server.p12"), "-storepass", PASSWORD, "-alias", "kafka"]
        key = ["-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", "-dname", "CN=127.0.0.1", "-validity", "2"]
        self._run(["keytool", *key, *store, "-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:critical=ca:true"])
        self._run(["keytool", "-exportcert", "-rfc", "-file", str(self._ca_file), *store])

    def _format(self, properties: Path) -> None:
        cluster = ["--cluster-id", "dHJhZGVzLXRlc3QtY2x1c3Q", "--config", str(properties), "--standalone"]
        scram = ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"] if self.sasl else []
        self._run(self._java("kafka.tools.StorageTool", "format", *cluster, *scram))

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f"{command[0]} failed: {done.stdout[-2000:]}"


def maven_jars(pom: Path, name: str, version: str) -> Path:
    """Return the folder .local/NAME/VERSION with the jars that the pom asks for; Maven fills it the first time."""
    folder = ROOT / ".local" / name / version
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            jars = Path(unfinished) / "jars"
            command = ["mvn", "--batch-mode", "--quiet", "-f", str(pom), "dependency:copy-dependencies"]
            done = subprocess.run([*command, f"-DoutputDirectory={jars}"], stdout=subprocess.PIPE, text=True)
            assert done.returncode == 0, f"Maven did not get what {pom.name} asks for: {done.stdout[-2000:]}"
            jars.rename(folder)
    return folder


def missing_for_apache() -> str | None:
    """Name the program that Apache Kafka needs and this machine lacks."""
    wanted = ["java"] if (ROOT / ".local" / "kafka" / KAFKA_VERSION).exists() else ["java", "mvn"]
    return next((program for program in wanted if shutil.which(program) is None), None)


@dataclass(frozen=True)
class Database:
    """A database with the table `trades`."""

    url: str

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own; return its rows, none for a statement without any."""
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def count(self) -> int:
        """Return the number of rows in `trades`."""
        return int(self.query("SELECT count(*) FROM trades")[0][0])

    def connect(self) -> Connection:
        """Open a connection that the caller closes."""
        return psycopg2.connect(self.url)


class Postgres(Server):
    """A PostgreSQL cluster of its own; `.url` is a database in it, with the table in it."""

    name = "postgres"
    _crash_signal = signal.SIGQUIT  # "immediate": no checkpoint, the next start has to recover

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.address.port}/kafka_db"
        self._options = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def start(self) -> None:
        """Start, or start again, and wait until it takes queries."""
        super().start()
        create_database(self.url)

    @property
    def database(self) -> Database:
        """The database that `.url` names."""
        return Database(self.url)

    def fresh_database(self) -> Database:
        """Create another database with an empty table."""
        url = urlsplit(self.url)._replace(path=f"/test_{uuid4().hex}").geturl()
        create_database(url)
        return Database(url)

    def drop_database(self, database: Database) -> None:
        """Drop a database, whoever is still connected."""
        with closing(psycopg2.connect(maintenance_url(self.url))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                name = Identifier(urlsplit(database.url).path.lstrip("/"))
                cursor.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def _service(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        data = self.folder / "data"
        initialise_database(data, self.url, self.log)
        command = [*database_command(data, self.address), *self._options]
        ready = lambda: accepts_connections(self.url)  # noqa: E731
        return service(command, self.address, self.log, signal.SIGINT, ready, SERVER_USER)


def environment_of(bootstrap_servers: str, database_url: str, topic: str, group: str) -> dict[str, str]:
    """Return this process's environment with nothing of a user's own settings but those given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "DATABASE_URL"))}
    return inherited | {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "KAFKA_TOPIC": topic,
        "KAFKA_GROUP_ID": group,
        "DATABASE_URL": database_url,
    }


class Script:
    """A process of Python that runs one of the project's scripts, its output collected while it runs."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], folder: Path = ROOT) -> None:
        # A session of its own: a Ctrl-C meant for the tests must not look like one meant for the script.
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment | {"PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.words = " ".join(words)
        self.stdout_lines: deque[str] = deque()
        self.stderr_lines: deque[str] = deque()
        self._readers = [
            threading.Thread(target=lines.extend, args=[(line.rstrip("\n") for line in pipe)], daemon=True)
            for pipe, lines in ((self.process.stdout, self.stdout_lines), (self.process.stderr, self.stderr_lines))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def stdout(self) -> str:
        """What it printed so far."""
        return "\n".join(self.stdout_lines.copy())

    @property
    def stderr(self) -> str:
        """What it printed on stderr so far."""
        return "\n".join(self.stderr_lines.copy())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return self.process.poll() is None

    def lines(self) -> list[str]:
        """Return every line so far, stdout's before stderr's."""
        return [*self.stdout_lines.copy(), *self.stderr_lines.copy()]

    def wait_for_line(self, text: str, timeout: float = 30) -> str:
        """Wait until a line on stdout or stderr contains the text, and return that line. Raises `AssertionError`."""
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.running
            if ended:
                self._drain()
            for line in self.lines():
                if text in line:
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{self.words}: no line with {text!r}\n{self._story()}")
            time.sleep(0.02)

    def wait(self, timeout: float = 30) -> int:
        """Wait until it ends by itself; return its exit code. Raises `AssertionError`."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.words}: still runs after {timeout:g} s\n{self._story()}") from None
        self._drain()
        return self.process.returncode

    def stop(self, with_signal: signal.Signals = signal.SIGINT, timeout: float = SECONDS_TO_END) -> int:
        """Send the signal, wait for the end, return the exit code. Raises `AssertionError`."""
        self.process.send_signal(with_signal)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it with SIGKILL, if it has not ended."""
        self.process.kill()
        self.wait()

    def _drain(self) -> None:
        for reader in self._readers:
            reader.join(5)  # a grandchild may hold the pipe open

    def _story(self) -> str:
        code = self.process.poll()
        return f"exit code: {code}\nstdout:\n{self.stdout[-4000:]}\nstderr:\n{self.stderr[-4000:]}"
