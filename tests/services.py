"""Real servers for tests and benchmarks: on free ports of 127.0.0.1, in temporary folders.

    with Kafka() as broker, Postgres() as postgres:
        Script(["consumer.py"], environment_of(broker.bootstrap_servers, postgres.url, "orders", "group"))

The servers are those of local_stack.py; this module adds what the tests need.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import make_dsn
from psycopg2.sql import SQL, Identifier

from pipeline.local_stack.kafka_server import KafkaServer
from pipeline.local_stack.postgres_server import PostgresServer, create_database
from pipeline.local_stack.server import Address, Server
from pipeline.local_stack.server import free_port as free_port  # for the tests, too
from pipeline.postgres import apply_sql
from pipeline.user_error import UserError

USER, PASSWORD = "kafka_user", "kafka_password"  # for PostgreSQL, and for Kafka where it requires them

Result = TypeVar("Result")


def eventually(condition: Callable[[], Result], timeout: float = 30, every: float = 0.05) -> Result:
    """Wait until the condition returns something true, and return that. Times in seconds; raises `AssertionError`."""
    deadline, longest = time.monotonic() + timeout, 4 * every
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout:g} s (the last result was {result!r})")
        time.sleep(every)
        every = min(1.2 * every, longest)  # each question costs the servers something
    return result


class Temporary(Server):
    """A server that runs while a `with` block does; its folder is deleted afterwards."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def failure(self) -> UserError:
        """Print the log, because it is deleted with the folder."""
        print(self.log.read_text(errors="replace")[-4000:])
        return super().failure()


def patiently(ask: Callable[[], Result]) -> Result:
    """Ask a broker until it answers: one that has just started knows no leaders and no coordinator yet."""

    def attempt() -> list[Result] | None:
        try:
            return [ask()]
        except KafkaException:
            return None

    answers = eventually(attempt)
    assert answers is not None
    return answers[0]


class KafkaClient:
    """What the tests do with brokers, without using the project's own code."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def topics(self) -> set[str]:
        """Return the names of the topics."""
        return set(self._admin().list_topics(timeout=10).topics)

    def partitions(self, topic: str) -> int:
        """Return the number of the topic's partitions."""
        return len(self._admin().list_topics(topic, timeout=10).topics[topic].partitions)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic and wait until it can be used."""
        admin = self._admin()  # keep a reference until it is done
        admin.create_topics([NewTopic(name, num_partitions=partitions)])[name].result()
        eventually(lambda: name in self.topics())

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        admin = self._admin()
        admin.delete_topics([name])[name].result()

    def configure(self, topic: str, **settings: str) -> None:
        """Change a topic's settings, given as max_message_bytes="1000"."""
        changes = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in settings.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=changes)
        admin = self._admin()
        admin.incremental_alter_configs([resource])[resource].result()

    def produce(
        self, topic: str, values: Iterable[bytes | None], key: bytes | None = b"AAPL", partition: int = -1
    ) -> None:
        """Produce raw messages, and return once Kafka has acknowledged every one."""
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
        """Return every message that the topic holds now, by partition and offset."""
        return sorted(self.stream(topic), key=lambda message: (message.partition(), message.offset()))

    def stream(self, topic: str) -> Iterator[Message]:
        """Yield the messages that the topic holds now, ordered only within each partition."""
        with closing(self._reader()) as consumer:
            yield from _read_on(consumer, [low for low, _ in _watermarks(consumer, topic)])

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """Return the group's committed offsets by partition, without partitions it has not committed."""
        with closing(self._reader(group)) as consumer:
            asked = [low for low, _ in _watermarks(consumer, topic)]
            places = patiently(lambda: consumer.committed(asked, timeout=10))
            return {place.partition: place.offset for place in places if place.offset >= 0}

    def lag(self, topic: str, group: str) -> int:
        """Return how many of the topic's messages the group has not committed yet, over all partitions."""
        with closing(self._reader(group)) as consumer:
            lows, highs = zip(*_watermarks(consumer, topic), strict=True)
            committed = patiently(lambda: consumer.committed(list(lows), timeout=10))  # offset < 0: nothing yet
            places = zip(lows, committed, highs, strict=True)
            return sum(
                high.offset - (max(low.offset, known.offset) if known.offset <= high.offset else low.offset)
                for low, known, high in places  # an offset beyond the end is from a deleted topic of the same name
            )

    def _reader(self, group: str = "reader") -> Consumer:
        options = {"enable.partition.eof": True, "enable.auto.commit": False, "fetch.wait.max.ms": 10, "log_level": 0}
        return Consumer(options | {"bootstrap.servers": self.bootstrap_servers, "group.id": group})

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


class Kafka(KafkaServer, Temporary, KafkaClient):
    """A temporary broker."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="trades-kafka-"))
        super().__init__(folder, Address("127.0.0.1", free_port()))


def _watermarks(consumer: Consumer, topic: str) -> list[tuple[TopicPartition, TopicPartition]]:
    """Return the low and high watermark of each of the topic's partitions."""
    known = patiently(lambda: consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    partitions = [TopicPartition(topic, number) for number in known]
    offsets = patiently(lambda: [consumer.get_watermark_offsets(place, timeout=10) for place in partitions])
    return [
        (TopicPartition(topic, place.partition, low), TopicPartition(topic, place.partition, high))
        for place, (low, high) in zip(partitions, offsets, strict=True)
    ]


def _read_on(consumer: Consumer, starts: Sequence[TopicPartition]) -> Iterator[Message]:
    """Yield the messages from `starts` to the current ends of the partitions."""
    consumer.assign(list(starts))
    unfinished = {start.partition for start in starts}
    while unfinished:
        message = consumer.poll(10)
        assert message is not None, f"neither a message nor the end of {starts[0].topic} for 10 s"
        if (error := message.error()) is None:
            yield message
        elif error.code() == KafkaError._PARTITION_EOF:
            unfinished.discard(message.partition() or 0)
        else:
            raise KafkaException(error)


@dataclass(frozen=True)
class Database:
    """A database with the table `trades`."""

    url: str

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in its own transaction; return its rows, or an empty list if it returns none."""
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def count(self) -> int:
        """Return the number of rows in `trades`."""
        return int(self.query("SELECT count(*) FROM trades")[0][0])

    def connect(self) -> Connection:
        """Open a connection; the caller closes it."""
        return psycopg2.connect(self.url)

    def make_anew(self) -> None:
        """Reset it to an empty table and disconnect others; creating another database takes several times as long."""
        self.query("""
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
        """)
        self.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
        with closing(self.connect()) as connection:
            apply_sql(connection)


class Postgres(PostgresServer, Temporary):
    """A temporary PostgreSQL; `.url` is a database in it that has the table."""

    _template: ClassVar[tempfile.TemporaryDirectory[str]]

    def __init__(self, **options: object) -> None:
        folder = Path(tempfile.mkdtemp(prefix="trades-postgres-"))
        url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{free_port()}/kafka_db"
        super().__init__(folder, url, "postgres", **options)

    def __enter__(self) -> Self:
        super().__enter__()
        create_database(self.url)
        return self

    def _initialise(self, folder: Path) -> None:
        """Copy the first one that this process made: all have the same user and database."""
        if not hasattr(Postgres, "_template"):
            super()._initialise(folder)
            Postgres._template = tempfile.TemporaryDirectory(prefix="trades-postgres-")
            subprocess.run(["cp", "-a", f"{folder}/.", Postgres._template.name], check=True)
        else:
            subprocess.run(["cp", "-a", f"{Postgres._template.name}/.", str(folder)], check=True)

    @property
    def database(self) -> Database:
        """The database at `.url`."""
        return Database(self.url)

    def fresh_database(self) -> Database:
        """Create another database with an empty table."""
        url = urlsplit(self.url)._replace(path=f"/test_{uuid4().hex}").geturl()
        create_database(url)
        return Database(url)

    def drop_database(self, database: Database) -> None:
        """Drop a database, even if somebody is still connected."""
        with closing(psycopg2.connect(make_dsn(self.url, dbname="postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                name = Identifier(urlsplit(database.url).path.lstrip("/"))
                cursor.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
