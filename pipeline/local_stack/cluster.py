"""A cluster that survives the death of any one server: three brokers, and PostgreSQL with a standby.

`Operator` does what a human operator, Patroni or a managed database would do: it brings back what died and promotes the
standby of a dead primary. Since it runs on the same machine, it is a stand-in for them, not real protection.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from confluent_kafka.admin import AdminClient
from psycopg2.extensions import make_dsn

from pipeline.local_stack.kafka_server import KafkaServer
from pipeline.local_stack.postgres_server import PostgresServer, create_database, execute, read_url
from pipeline.local_stack.server import BROKERS, Server, all_at_once, free_port, read_addresses
from pipeline.stop import stop_requested, wait_for_stop
from pipeline.user_error import UsageError

SECONDS_OF_SILENCE = 5  # after which a PostgreSQL that runs but does not answer counts as dead
STANDBY_OPTIONS = {"shared_buffers": "128MB", "wal_keep_size": "1GB"}


def three_brokers(folder: Path, bootstrap_servers: str) -> list[KafkaServer]:
    """Return three brokers; if only one address is given, the others take the next two ports. Raises `UsageError`.

    Each topic has three copies, and a message is acknowledged once at least two of them have it.
    """
    addresses = read_addresses(bootstrap_servers)
    if len(addresses) == 1:
        addresses = [addresses[0]._replace(port=addresses[0].port + step) for step in range(3)]
    if len(addresses) != 3:
        raise UsageError(f"{BROKERS}={bootstrap_servers}: a cluster needs three brokers: host:port,host:port,...")
    voters = {node_id: free_port() for node_id in (1, 2, 3)}
    return [KafkaServer(folder, address, node_id, voters) for node_id, address in zip(voters, addresses, strict=True)]


def two_databases(url: str) -> str:
    """Return the URL of a primary and a standby; if only one server is given, the other takes the next port."""
    dsn = read_url(url)
    if "," in dsn["port"]:
        return url
    user = f"{quote(dsn['user'])}:{quote(dsn.get('password', ''))}"
    hosts = f"{dsn['host']}:{dsn['port']},{dsn['host']}:{int(dsn['port']) + 1}"
    return f"postgresql://{user}@{hosts}/{quote(dsn['dbname'])}?target_session_attrs=read-write"


class PostgresPair:
    """A primary and its standby; if `synchronous`, a commit is acknowledged only once the standby has it.

    The file `primary` in the folder records which of the two is the primary, so a restart after any crash knows it.
    """

    def __init__(self, folder: Path, url: str, synchronous: bool = True) -> None:
        self.url = two_databases(url)
        dsn = read_url(self.url)
        hosts, ports = dsn["host"].split(","), dsn["port"].split(",")
        if not len(hosts) == len(ports) == 2:
            raise UsageError(
                "DATABASE_URL: a cluster needs two servers: postgresql://user:password@host:port,host:port/..."
            )
        self.standby_names = "ANY 1 (*)" if synchronous else ""
        self.servers = []
        for name, host, port in zip(("postgres-1", "postgres-2"), hosts, ports, strict=True):
            own_url = make_dsn(self.url, host=host, port=port, target_session_attrs="any")
            self.servers.append(PostgresServer(folder, own_url, name, **STANDBY_OPTIONS))
        self._file = folder / "primary"

    @property
    def primary(self) -> PostgresServer:
        """The server that accepts writes."""
        return self.servers[self._file.exists() and self._file.read_text() == self.servers[1].name]

    @property
    def standby(self) -> PostgresServer:
        """The other server."""
        return next(server for server in self.servers if server is not self.primary)

    def start(self) -> None:
        """Start both servers, and create what is missing. Raises `UserError`."""
        standby_is_one = (self.standby.data / "standby.signal").exists()
        all_at_once(*(each.start for each in self.servers if standby_is_one or each is self.primary))
        if stop_requested():
            return
        if (self.primary.data / "standby.signal").exists():  # `promote` was interrupted
            self._promote()
        create_database(self.primary.url)
        if standby_is_one:
            self._set_standby_names(self.standby_names)  # `rebuild` may have been interrupted before it did
        else:
            self.rebuild()

    def promote(self) -> None:
        """Promote the standby; the old primary must already be unable to write."""
        self._file.write_text(self.standby.name)
        self._promote()

    def _promote(self) -> None:
        self._set_standby_names("")  # no standby is left to wait for
        self.execute("SELECT pg_promote()")

    def rebuild(self) -> None:
        """Recreate the standby as a copy of the primary, which waits for it from then on if `synchronous`."""
        self.standby.kill()
        self.standby.copy(self.primary)
        self.standby.start()
        while not stop_requested() and not self.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"):
            wait_for_stop(0.1)
        if not stop_requested():  # after a stop, what streams may be an interrupted pg_basebackup
            self._set_standby_names(self.standby_names)

    def _set_standby_names(self, names: str) -> None:
        self.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        """Run a statement on the primary; return its rows."""
        return execute(self.primary.url, sql)


class Operator:
    """Watches a cluster and brings back what died."""

    def __init__(self, folder: Path, bootstrap_servers: str, database_url: str) -> None:
        self.brokers = three_brokers(folder, bootstrap_servers)
        self.bootstrap_servers = ",".join(broker.bootstrap_servers for broker in self.brokers)
        self.postgres = PostgresPair(folder, database_url)
        self._answered: dict[str, float] = {}

    def start(self) -> None:
        """Start everything. Raises `UserError`."""
        all_at_once(self.postgres.start, *(broker.start for broker in self.brokers))

    def stop(self) -> None:
        """Stop everything, the primary before its standby."""
        *others, last = self.brokers
        for broker in others:
            broker.stop()
        last.kill()  # without the others it finds no controller, and would wait for one
        for server in (self.postgres.primary, self.postgres.standby):
            server.stop()

    def targets(self, topic: str) -> Iterator[str]:
        """Yield one line per server: the command that kills it, and its role."""
        leaders = self._leaders(topic)
        for broker in self.brokers:
            led = ", ".join(str(partition) for partition, leader in leaders.items() if leader == broker.node_id)
            role = f", leader of partition {led}" if led else ""
            yield f"kill -9 {broker.pid:<8} broker {broker.node_id}{role}"
        for server in self.postgres.servers:
            role = "primary" if server is self.postgres.primary else "standby"
            yield f"kill -9 {server.pid:<8} PostgreSQL's {role} on port {server.address.port}"

    def _leaders(self, topic: str) -> dict[int, int]:
        """Return each partition's leader (a node id) once all have one; nothing if the user asks to stop first."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        while not wait_for_stop(0.1):
            found = admin.list_topics(topic, timeout=5).topics[topic].partitions
            leaders = {number: partition.leader for number, partition in found.items()}
            if leaders and min(leaders.values()) >= 0:  # a new topic may have none yet
                return leaders
        return {}

    def mend(self) -> None:
        """Bring back what died since the last call, and report it."""
        for server in (*self.brokers, *self.postgres.servers):
            server.trim_log()
        for broker in self.brokers:
            if not broker.running:
                _start_again(broker)
        if self._is_dead(self.postgres.primary) and self.postgres.standby.running:
            dead = self.postgres.primary
            dead.kill()
            self.postgres.promote()
            _report(self.postgres.primary, "is the primary now")
            self.postgres.rebuild()
            if not stop_requested():
                _report(dead, "is back as the standby")
        for server in self.postgres.servers:
            if self._is_dead(server):
                _start_again(server)

    def _is_dead(self, server: Server) -> bool:
        """Return whether the server ended or has been silent too long; ask it if its last answer is over 1 s old."""
        now = time.monotonic()
        if now - self._answered.setdefault(server.name, now) > 1 and server.running:
            answered = server.answers()
            # A standby may spend minutes in recovery, refusing at once; a restart would only begin the recovery again.
            recovers = server is self.postgres.standby and time.monotonic() - now < 1
            if answered or recovers:
                self._answered[server.name] = now
        silent = now - self._answered[server.name] > SECONDS_OF_SILENCE
        if dead := not server.running or silent:
            del self._answered[server.name]
        return dead


def _start_again(server: Server) -> None:
    server.launch()
    _report(server, "died and was restarted")


def _report(server: Server, what: str) -> None:
    print(f"🔧 kill -9 {server.pid:<8} {server.name} {what}", flush=True)
