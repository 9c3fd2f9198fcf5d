"""Servers of which any one may die: three brokers, and PostgreSQL with a standby.

`Operator` does what an operator would, or Patroni, or a managed database: it brings back what died and promotes the
standby of a dead primary. That it runs on the same machine makes it a stand-in, no protection.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import psycopg2
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import make_dsn

from pipeline.local_stack.kafka_server import KafkaServer
from pipeline.local_stack.postgres_server import MAINTENANCE_DATABASE, PostgresServer, create_database, read_url
from pipeline.local_stack.server import Address, Server, all_at_once, free_port
from pipeline.stop import stop_requested, wait_for_stop
from pipeline.user_error import UsageError

SECONDS_OF_SILENCE = 5  # after which a PostgreSQL that is there but does not answer counts as dead
STANDBY_OPTIONS = {"shared_buffers": "128MB", "wal_keep_size": "1GB"}


class KafkaCluster:
    """Three brokers: each topic has three copies, and a message is acknowledged when two of them have it."""

    def __init__(
        self, folder: Path, addresses: Sequence[Address], settings: Mapping[str, object] | None = None
    ) -> None:
        voters = {node_id: free_port() for node_id in (1, 2, 3)}
        self.bootstrap_servers = ",".join(map(str, addresses))
        self.brokers = [
            KafkaServer(folder, address, f"kafka-{number}", number, voters, settings)
            for number, address in zip(voters, addresses, strict=True)
        ]

    def leaders(self, topic: str) -> dict[int, int]:
        """Return which broker leads each partition of a topic, once each has a leader; nothing if the user stops it."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        while not wait_for_stop(0.1):
            found = admin.list_topics(topic, timeout=5).topics[topic].partitions
            leaders = {number: partition.leader for number, partition in found.items()}
            if leaders and min(leaders.values()) >= 0:  # a topic just made may have none yet
                return leaders
        return {}


class PostgresPair:
    """A primary, and a standby that has every transaction before it is acknowledged, unless not `synchronous`.

    The file `primary` in the folder says which of the two is the primary, whatever ended us in between.
    """

    def __init__(self, folder: Path, url: str, synchronous: bool = True) -> None:
        dsn = read_url(url)
        hosts, ports = dsn["host"].split(","), dsn["port"].split(",")
        if len(ports) != 2:
            raise UsageError(
                "DATABASE_URL: a cluster has two servers: postgresql://user:password@host:port,host:port/..."
            )
        hosts = hosts if len(hosts) == 2 else hosts * 2
        self.url = url
        self.standby_names = "ANY 1 (*)" if synchronous else ""
        self.servers = [
            PostgresServer(
                folder,
                make_dsn(url, host=host, port=port, target_session_attrs="any"),
                f"postgres-{number}",
                STANDBY_OPTIONS,
            )
            for number, (host, port) in enumerate(zip(hosts, ports, strict=True), 1)
        ]
        self._file = folder / "primary"

    @property
    def primary(self) -> PostgresServer:
        """The one that takes writes."""
        return self.servers[self._file.exists() and self._file.read_text() == self.servers[1].name]

    @property
    def standby(self) -> PostgresServer:
        """The other one."""
        return next(server for server in self.servers if server is not self.primary)

    def start(self) -> None:
        """Start both, and make what is missing. Raises `UserError`."""
        standby_is_one = (self.standby.data / "standby.signal").exists()
        all_at_once(*(each.start for each in self.servers if standby_is_one or each is self.primary))
        if stop_requested():
            return
        if (self.primary.data / "standby.signal").exists():  # an interrupted `fail_over`
            self._promote()
        create_database(self.primary.url)
        if not standby_is_one:
            self.rebuild()

    def fail_over(self) -> None:
        """Make the standby the primary, once the old primary cannot write any more."""
        self.primary.kill()
        self.promote()

    def promote(self) -> None:
        """Make the standby the primary."""
        self._file.write_text(self.standby.name)
        self._promote()

    def _promote(self) -> None:
        self._set_standby_names("")  # none is left to wait for
        self.execute("SELECT pg_promote()")

    def rebuild(self) -> None:
        """Make the other server a standby, a copy of the primary; from then on the primary waits for it."""
        primary, standby = self.primary, self.standby
        standby.kill()
        source = make_dsn(primary.url, dbname=MAINTENANCE_DATABASE)
        copy = ("pg_basebackup", "-R", "--checkpoint=fast", "-d", source, "-D")
        standby.fill(lambda folder: standby.run_program(*copy, str(folder)))
        standby.start()
        while not stop_requested() and not self.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"):
            wait_for_stop(0.1)
        if not stop_requested():
            self._set_standby_names(self.standby_names)

    def _set_standby_names(self, names: str) -> None:
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        """Run a statement on the primary."""
        with closing(psycopg2.connect(make_dsn(self.primary.url, dbname=MAINTENANCE_DATABASE))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []


class Operator:
    """Watches a cluster, and brings back what died."""

    def __init__(self, kafka: KafkaCluster, postgres: PostgresPair) -> None:
        self.kafka = kafka
        self.postgres = postgres
        self._answered: dict[str, float] = {}

    @property
    def servers(self) -> list[Server]:
        """All five."""
        return [*self.kafka.brokers, *self.postgres.servers]

    def start(self) -> None:
        """Start everything. Raises `UserError`."""
        all_at_once(self.postgres.start, *(broker.start for broker in self.kafka.brokers))

    def stop(self) -> None:
        """Stop everything, the primary before its standby."""
        *others, last = self.kafka.brokers
        for broker in others:
            broker.stop()
        last.kill()  # without the others it finds no controller, and would wait for one
        for server in (self.postgres.primary, self.postgres.standby):
            server.stop()

    def targets(self, topic: str) -> Iterator[str]:
        """Say how each server is killed, and what it is."""
        leaders = self.kafka.leaders(topic)
        for broker in self.kafka.brokers:
            led = [str(partition) for partition, leader in leaders.items() if leader == broker.node_id]
            yield f"kill -9 {broker.pid:<8} broker {broker.node_id}" + f", leader of partition {', '.join(led)}" * bool(
                led
            )
        for server in self.postgres.servers:
            role = "primary" if server is self.postgres.primary else "standby"
            yield f"kill -9 {server.pid:<8} PostgreSQL's {role} on port {server.address.port}"

    def mend(self) -> None:
        """Bring back what died since the last time, and say so."""
        for server in self.servers:
            server.trim_log()
        for broker in self.kafka.brokers:
            if not broker.running:
                self._launch(broker)
        if self._is_dead(self.postgres.primary) and self.postgres.standby.running:
            dead = self.postgres.primary
            self.postgres.fail_over()
            print(
                f"🔧 kill -9 {self.postgres.primary.pid:<8} {self.postgres.primary.name} is the primary now", flush=True
            )
            self.postgres.rebuild()
            if not stop_requested():
                print(f"🔧 kill -9 {dead.pid:<8} {dead.name} is back as the standby", flush=True)
        for server in self.postgres.servers:
            if self._is_dead(server):
                server.kill()
                self._launch(server)

    def _launch(self, server: Server) -> None:
        server.launch()
        print(f"🔧 kill -9 {server.pid:<8} {server.name} died and was started again", flush=True)

    def _is_dead(self, server: Server) -> bool:
        """Tell whether the server ended, or has been silent for too long; asks once a second."""
        now = time.monotonic()
        if now - self._answered.setdefault(server.name, now) > 1 and server.running and server.answers():
            self._answered[server.name] = now
        silent = now - self._answered[server.name] > SECONDS_OF_SILENCE
        if dead := not server.running or silent:
            del self._answered[server.name]
        return dead
