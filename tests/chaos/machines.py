"""Five machines simulated on one: three brokers, a primary and a standby, each behind lines that can be cut."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Self

from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, PartitionMetadata
from psycopg2.extensions import make_dsn

from pipeline.local_stack.cluster import PostgresPair, three_brokers
from pipeline.local_stack.kafka_server import KafkaServer, java
from pipeline.local_stack.server import Server, all_at_once
from tests.chaos.link import Link
from tests.services import PASSWORD, USER, eventually, free_port, patiently

SECONDS_TO_HEAL = 120  # until every copy is in sync again

Machine = Server


class Machines:
    """The five machines, started together, with `copies` of each topic. Unless `synchronous`, commits do not wait."""

    def __init__(self, copies: int = 3, synchronous: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trades-machines-"))
        self.synchronous = synchronous
        self.brokers = three_brokers(self.folder, ",".join(f"127.0.0.1:{free_port()}" for _ in range(3)))
        for broker in self.brokers:
            broker.settings = {"default.replication.factor": copies, "min.insync.replicas": max(1, copies - 1)}
        ports = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
        self.pair = PostgresPair(self.folder, f"postgresql://{USER}:{PASSWORD}@{ports}/kafka_db", synchronous)
        self.lines: dict[Machine, Link] = {}  # from clients, and from other machines as clients
        self.controller_lines: dict[Machine, Link] = {}  # from brokers to each other's controllers
        self._lay_lines()
        self.bootstrap_servers = ",".join(f"127.0.0.1:{self.lines[broker].port}" for broker in self.brokers)
        hosts = ",".join(f"127.0.0.1:{self.lines[server].port}" for server in self.pair.servers)
        self.database_url = f"postgresql://{USER}:{PASSWORD}@{hosts}/kafka_db?target_session_attrs=read-write"
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def _lay_lines(self) -> None:
        """Give each machine its own lines, and point everybody to them."""
        for broker in self.brokers:
            others = [other for other in self.brokers if other is not broker]
            self.lines[broker] = Link(broker.address.port, others)
            self.controller_lines[broker] = Link(broker.voters[broker.node_id], others)
        voters = ",".join(f"{b.node_id}@127.0.0.1:{self.controller_lines[b].port}" for b in self.brokers)
        for broker in self.brokers:
            clients, controllers = self.lines[broker].port, self.controller_lines[broker].port
            broker.settings = {
                **broker.settings,
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controllers}",
                "controller.quorum.voters": voters,
            }
        for standby, primary in permutations(self.pair.servers):
            line = self.lines[primary] = Link(primary.address.port, [standby])
            source = make_dsn(user=USER, password=PASSWORD, host="127.0.0.1", port=line.port)
            standby.options["primary_conninfo"] = source

    @property
    def links(self) -> Iterator[tuple[Machine, Link]]:
        """Every line to every machine."""
        yield from self.lines.items()
        yield from self.controller_lines.items()

    def __enter__(self) -> Self:
        try:
            for _, link in self.links:
                link.open()
            all_at_once(self.pair.start, *(broker.start for broker in self.brokers))
            self.brokers[0].archive_classes()  # so that they restart quickly
            self.heal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        for machine in self.lines:
            machine.kill()
        for _, link in self.links:
            link.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self, machine: Machine) -> None:
        """Kill a machine; from then on, connections to it are refused."""
        machine.kill()
        self.lines[machine].close()

    def start(self, machine: Machine) -> None:
        """Restart a machine that was killed."""
        self.lines[machine].open()
        machine.launch()
        machine.wait_until_ready()

    def rebuild(self) -> None:
        """Rebuild the standby, whatever state its machine is in; from then on, every commit waits for it."""
        self.lines[self.pair.standby].open()
        self.pair.rebuild()

    def heal(self) -> None:
        """Wait until any one of the machines may fail again."""
        eventually(self._copies_in_step, timeout=SECONDS_TO_HEAL)
        eventually(self._standby_in_step, timeout=SECONDS_TO_HEAL)

    def _standby_in_step(self) -> bool:
        """Return whether the primary's commits reach the standby."""
        states = self.pair.execute("SELECT state, sync_state FROM pg_stat_replication")
        return states == [("streaming", "quorum" if self.synchronous else "async")]

    def _copies_in_step(self) -> bool:
        """Return whether all brokers are up, and all copies of every partition are in sync."""
        with suppress(KafkaException):
            metadata = self._admin.list_topics(timeout=2)
            partitions = [part for topic in metadata.topics.values() for part in topic.partitions.values()]
            return len(metadata.brokers) == len(self.brokers) and all(
                part.leader >= 0 and len(part.isrs) == len(part.replicas) for part in partitions
            )
        return False

    def move(self, topic: str, brokers: Sequence[KafkaServer]) -> None:
        """Make exactly these brokers hold copies of a topic, as kafka-reassign-partitions does."""
        copies = [broker.node_id for broker in brokers]
        plan = [{"topic": topic, "partition": number, "replicas": copies} for number in self._partitions(topic)]
        file = self.folder / "reassignment.json"
        file.write_text(json.dumps({"version": 1, "partitions": plan}))
        command = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"
        options = ("--bootstrap-server", self.bootstrap_servers, "--reassignment-json-file", str(file), "--execute")
        subprocess.run(java(command, *options), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda: all(sorted(part.isrs) == sorted(copies) for part in self._partitions(topic).values()))

    def elect(self, topic: str) -> None:
        """Make a topic's crashed copies leaders, as kafka-leader-election --election-type UNCLEAN does."""
        places = [TopicPartition(topic, number) for number in self._partitions(topic)]

        def led() -> bool:
            with suppress(KafkaException):
                self._admin.elect_leaders(ElectionType.UNCLEAN, places).result()
            return all(partition.leader >= 0 for partition in self._partitions(topic).values())

        eventually(led)

    def _partitions(self, topic: str) -> dict[int, PartitionMetadata]:
        """Return a topic's partitions by number, retrying because a broker may have just started."""
        return patiently(lambda: self._admin.list_topics(topic, timeout=10).topics[topic].partitions)

    def isolate(self, machine: Machine, hears: bool = False, speaks: bool = False) -> None:
        """Cut a machine off from clients and from the other machines."""
        for target, link in self.links:
            if target is machine:
                link.cut(there=not hears, back=not speaks)
            elif machine in link.gates:
                link.gates[machine].cut(there=not speaks, back=not hears)

    def reconnect(self, _: Machine) -> None:
        """Mend every line: only one machine at a time is cut off."""
        for _, link in self.links:
            link.mend()
