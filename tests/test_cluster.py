"""local_stack.py --cluster as a process: each server is killed or frozen and comes back, and nothing is lost."""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.kafka import TopicWatch, client
from pipeline.local_stack import cluster as cluster_module
from pipeline.local_stack.cluster import Operator, PostgresPair
from tests.script import Script, environment_of
from tests.services import PASSWORD, USER, Database, eventually, free_port
from tests.test_local_stack import Stack, gone

BROUGHT_BACK = 60  # seconds, on a busy machine


class Cluster(Stack):
    """A copy of the project with free ports for three brokers and two databases."""

    def move_to_free_ports(self) -> None:
        ports = [free_port() for _ in range(5)]
        self.brokers = ",".join(f"localhost:{port}" for port in ports[:3])
        hosts = ",".join(f"localhost:{port}" for port in ports[3:])
        self.database = Database(f"postgresql://{USER}:{PASSWORD}@{hosts}/kafka_db?target_session_attrs=read-write")
        self.environment = environment_of(self.brokers, self.database.url, "orders", "group")

    def start_and_wait(self) -> Script:
        self.script = self.start("--cluster")
        self.script.wait_for_line("standby on port", timeout=100)
        return self.script

    def pid_of(self, what: str) -> int:
        """Return the process id last printed for `what`."""
        return int(re.findall(rf"kill -9 (\d+) +.*{what}", self.script.stdout)[-1])

    def store(self, name: str) -> None:
        """Store a row and a message; retry the row if its server dies meanwhile."""
        producer = Producer({"bootstrap.servers": self.brokers, "enable.idempotence": True})
        errors: list[object] = []
        producer.produce("orders", name, on_delivery=lambda error, _: errors.append(error))
        eventually(lambda: self.insert(name), BROUGHT_BACK)
        assert producer.flush(BROUGHT_BACK) == 0
        assert errors == [None]

    def insert(self, name: str) -> bool:
        try:
            self.database.query("INSERT INTO trades (trade_id) VALUES (%s) ON CONFLICT DO NOTHING", name)
        except psycopg2.OperationalError:
            return False
        return True

    def assert_stored(self, *names: str) -> None:
        assert self.database.query("SELECT trade_id FROM trades ORDER BY trade_id") == [
            (name,) for name in sorted(names)
        ]
        with closing(Consumer({"bootstrap.servers": self.brokers, "group.id": "reader"})) as consumer:
            consumer.assign([TopicPartition("orders", 0, 0)])
            messages = consumer.consume(len(names), timeout=20)
            assert [message.value() for message in messages] == [name.encode() for name in names]

    def watches(self) -> list[TopicWatch]:
        """Return enough watches that each broker is asked by some: each watch picks a broker at random."""
        watches = [TopicWatch(client(AdminClient, {"bootstrap.servers": self.brokers}), "orders") for _ in range(12)]
        for watch in watches:
            watch.describe()
        return watches

    def standbys(self) -> list[tuple[object, ...]]:
        return self.database.query("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")


def seconds_of_processor(watches: Sequence[TopicWatch]) -> float:
    """Return the CPU seconds that the watches use in two seconds, while the brokers need the CPU to elect leaders."""
    began, before = time.monotonic(), sum(psutil.Process().cpu_times()[:2])
    while time.monotonic() - began < 2:
        for watch in watches:
            watch.made_again()
        time.sleep(0.05)
    return sum(psutil.Process().cpu_times()[:2]) - before


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="trades-cluster-", ignore_cleanup_errors=True) as folder:
        copy = Cluster(Path(folder))
        copy.move_to_free_ports()
        yield copy
        copy.kill_all()
        for script in copy.started:
            script.kill()


@pytest.mark.slow
def test_whatever_is_killed_or_frozen_comes_back_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.stop_while_it_hangs(cluster.start("--cluster"), "pg_basebackup")
    script = cluster.start_and_wait()
    assert f"export KAFKA_BOOTSTRAP_SERVERS={cluster.brokers}" in script.stdout
    assert f"export DATABASE_URL='{cluster.database.url}'" in script.stdout
    assert cluster.standbys() == [("quorum",)]
    cluster.store("1 before")

    watches = cluster.watches()
    os.kill(cluster.pid_of("leader of partition 0"), signal.SIGKILL)
    assert seconds_of_processor(watches) < 0.5  # of two seconds
    cluster.store("2 leader killed")
    script.wait_for_line("died and was restarted", BROUGHT_BACK)

    os.kill(cluster.pid_of("primary on port"), signal.SIGKILL)
    cluster.store("3 primary killed")
    script.wait_for_line("postgres-1 is back as the standby", BROUGHT_BACK)
    assert cluster.standbys() == [("quorum",)]

    frozen = psutil.Process(cluster.pid_of("postgres-2 is the primary"))
    for process in [frozen, *frozen.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # the backend of a connection that was just closed
            process.suspend()
    script.wait_for_line("postgres-2 is back as the standby", BROUGHT_BACK)
    cluster.store("4 primary frozen")

    os.kill(cluster.pid_of("postgres-2 is back"), signal.SIGKILL)
    cluster.store("5 standby killed")
    eventually(lambda: cluster.standbys() == [("quorum",)], BROUGHT_BACK)

    everything = cluster.servers()
    cluster.kill_all()
    assert gone(everything)
    script = cluster.start_and_wait()
    cluster.store("6 everything killed")
    cluster.assert_stored(
        *("1 before", "2 leader killed", "3 primary killed", "4 primary frozen", "5 standby killed"),
        "6 everything killed",
    )
    servers = cluster.servers()
    assert script.stop(timeout=30) == 0
    assert script.stderr == ""
    assert gone(servers)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092,localhost:9093"),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost"),
        ("DATABASE_URL", "postgresql://user@localhost:1,localhost:2,localhost:3/db"),
    ],
)
def test_addresses_that_are_no_cluster_are_refused_in_one_line(cluster: Cluster, variable: str, value: str) -> None:
    script = cluster.start("--cluster", **{variable: value})
    assert script.wait() == 2
    assert script.stderr.count("\n") == 0
    assert variable in script.stderr


def test_a_start_waits_for_the_standby_again_though_a_rebuild_was_interrupted(tmp_path: Path) -> None:
    hosts = f"localhost:{free_port()},localhost:{free_port()}"
    pair = PostgresPair(tmp_path, f"postgresql://{USER}:{PASSWORD}@{hosts}/kafka_db")
    try:
        pair.start()
        pair.execute("ALTER SYSTEM RESET synchronous_standby_names")  # as it is until the end of a rebuild
        for server in pair.servers:
            server.stop()
        pair.start()
        eventually(lambda: pair.execute("SELECT sync_state FROM pg_stat_replication") == [("quorum",)])
    finally:
        for server in pair.servers:
            server.stop()


def test_a_standby_may_take_its_time_to_recover_but_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SECONDS_OF_SILENCE", 2)
    hosts = f"localhost:{free_port()},localhost:{free_port()}"
    operator = Operator(tmp_path, f"localhost:{free_port()}", f"postgresql://{USER}:{PASSWORD}@{hosts}/kafka_db")
    try:
        operator.postgres.start()
        standby = operator.postgres.standby
        standby.kill()
        standby.options["hot_standby"] = "off"  # it refuses clients forever, as if its recovery never ended
        standby.launch()
        began = time.monotonic()
        while time.monotonic() - began < 5:
            assert not operator._is_dead(standby)
            time.sleep(0.1)
        psutil.Process(standby.pid).suspend()
        eventually(lambda: operator._is_dead(standby), BROUGHT_BACK)
    finally:
        operator.stop()
