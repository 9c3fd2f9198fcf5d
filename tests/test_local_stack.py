"""local_stack.py as a process, from a separate folder: what it prints, refuses, keeps and leaves behind."""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.local_stack import server
from pipeline.local_stack.jars import JARS
from pipeline.local_stack.kafka_server import KafkaServer
from pipeline.local_stack.postgres_server import PostgresServer
from pipeline.user_error import UsageError, UserError
from tests.script import ROOT, Script, environment_of
from tests.services import PASSWORD, USER, Database, Kafka, Postgres, eventually, free_port, patiently


class Stack:
    """A copy of the project files that the local stack needs, with free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / ".local"
        for name in ("pipeline", "sql"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
        shutil.copy(ROOT / "local_stack.py", folder)
        share_jars(folder)
        self.started: list[Script] = []
        self.broker_port, self.database_port = free_port(), free_port()
        self.database = Database(f"postgresql://{USER}:{PASSWORD}@localhost:{self.database_port}/kafka_db")
        self.environment = environment_of(f"localhost:{self.broker_port}", self.database.url, "orders", "group")

    def start(self, *words: str, **variables: str) -> Script:
        self.started.append(Script(["local_stack.py", *words], self.environment | variables, self.folder))
        return self.started[-1]

    def start_and_wait(self) -> Script:
        script = self.start()
        script.wait_for_line("Ctrl-C stops both", timeout=60)
        return script

    def stop_while_it_hangs(self, script: Script, program: str) -> None:
        """Stop the script while a program that it started makes no progress, as on a slow disk."""

        def found() -> list[psutil.Process]:
            with suppress(psutil.Error):
                children = psutil.Process(script.pid).children(recursive=True)
                return [child for child in children if program in " ".join(child.cmdline())]
            return []

        hanging = eventually(found, every=0.01)
        hanging[0].suspend()
        assert script.stop() == 0
        assert script.stderr == ""
        assert gone(hanging)
        assert self.servers() == []

    def kill_all(self) -> None:
        """Kill every process at once, as if the plug were pulled."""
        processes = [psutil.Process(script.pid) for script in self.started if script.running] + self.servers()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def servers(self) -> list[psutil.Process]:
        """Return the servers that run for this copy, whatever their parent process."""
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if process.info["name"] in ("java", "postgres") and process.cwd().startswith(str(self.data.resolve())):
                    found.append(process)
        return found

    def listens(self) -> list[int]:
        """Return those of the copy's ports that something listens on."""
        ports = []
        for port in (self.broker_port, self.database_port):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    ports.append(port)
        return ports

    def fill(self) -> None:
        """Store a row, a message, a dead letter and a committed offset."""
        self.database.query("INSERT INTO trades (trade_id) VALUES ('kept')")
        servers = {"bootstrap.servers": f"localhost:{self.broker_port}"}
        admin = AdminClient(servers)
        for created in admin.create_topics([NewTopic("orders"), NewTopic("orders.dlq")]).values():
            created.result()
        producer = Producer(servers)
        for value in (b"first", b"second"):
            producer.produce("orders", value)
        producer.produce("orders.dlq", b"bad")
        assert producer.flush(10) == 0
        with closing(Consumer(servers | {"group.id": "group"})) as consumer:
            patiently(lambda: consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=False))

    def assert_filled(self) -> None:
        assert self.database.query("SELECT trade_id FROM trades") == [("kept",)]
        servers = {"bootstrap.servers": f"localhost:{self.broker_port}", "enable.auto.commit": False}
        with closing(Consumer(servers | {"group.id": "group"})) as consumer:
            places = [TopicPartition("orders", 0), TopicPartition("orders.dlq", 0, 0)]
            committed = patiently(lambda: consumer.committed(places[:1], timeout=20))
            assert [place.offset for place in committed] == [1]
            places[0].offset = 0
            consumer.assign(places)
            messages = consumer.consume(3, timeout=20)
            assert sorted(message.value() for message in messages) == [b"bad", b"first", b"second"]


def share_jars(folder: Path) -> None:
    """Let a copy of the project share the jars of this one, so that missing ones are downloaded only once."""
    JARS.mkdir(parents=True, exist_ok=True)
    (folder / ".local").mkdir()
    (folder / ".local" / "jars").symlink_to(JARS)


@contextmanager
def copied() -> Iterator[Stack]:
    """Copy the project files; at the end, kill whatever of the copy still runs."""
    with tempfile.TemporaryDirectory(prefix="trades stäck ☕ #", ignore_cleanup_errors=True) as folder:
        copy = Stack(Path(folder))
        yield copy
        copy.kill_all()
        for script in copy.started:
            script.kill()


@pytest.fixture
def fresh_stack() -> Iterator[Stack]:
    """A copy that has never been started."""
    with copied() as stack:
        yield stack


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a stack that was started, filled and stopped."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    script = stack.start_and_wait()
    stack.fill()
    assert script.stop() == 0
    return stack.data


@pytest.fixture(scope="module")
def running(prepared: Path) -> Iterator[Stack]:
    """A stack that runs, for tests that leave it running."""
    with copied() as stack:
        take_over(prepared, stack)
        stack.start_and_wait()
        yield stack


@pytest.fixture
def stack(fresh_stack: Stack, prepared: Path) -> Stack:
    """A copy with the data of one that was started and filled before, on other ports."""
    take_over(prepared, fresh_stack)
    return fresh_stack


def take_over(prepared: Path, stack: Stack) -> None:
    for name in ("kafka", "postgres"):
        subprocess.run(["cp", "-a", str(prepared / name), str(stack.data)], check=True)


def gone(processes: Sequence[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def one_line(text: str) -> str:
    assert "Traceback" not in text
    assert text.count("\n") == 0, text
    return text


@pytest.mark.parametrize("words", [[], ["--cluster"], ["kafka-topics", "--list"]])
def test_ctrl_c_during_the_imports_is_a_graceful_shutdown(fresh_stack: Stack, words: list[str]) -> None:
    script = fresh_stack.start(*words)
    eventually(lambda: script.takes_signals, every=0.001)
    assert script.stop() == 0
    assert script.stderr == ""
    assert fresh_stack.servers() == []


def test_a_stop_ends_what_prepares_a_folder_and_the_next_start_does_it_again(fresh_stack: Stack) -> None:
    for program in ("StorageTool", "initdb"):
        fresh_stack.stop_while_it_hangs(fresh_stack.start(), program)
    script = fresh_stack.start_and_wait()
    assert script.stop() == 0


def test_it_says_where_the_services_are_and_ctrl_c_leaves_none(fresh_stack: Stack) -> None:
    """A script that waits for PostgreSQL meanwhile never finds it without its database."""
    script = fresh_stack.start()
    assert not [said for said in refusals_until_ready(fresh_stack, script) if "does not exist" in said]
    for port in (fresh_stack.broker_port, fresh_stack.database_port):
        assert f"localhost:{port}" in script.wait_for_line("🟢 Kafka")
    assert fresh_stack.database.count() == 0
    servers = fresh_stack.servers()
    assert len(servers) > 2
    assert script.stop(signal.SIGINT) == 0
    assert gone(servers)
    assert fresh_stack.listens() == []
    assert script.stdout.splitlines()[-1] == "Local stack stopped."
    assert script.stderr == ""


def refusals_until_ready(stack: Stack, script: Script) -> Iterator[str]:
    """Yield what a script that waits for PostgreSQL is told meanwhile."""
    while "Ctrl-C stops both" not in script.stdout:
        assert script.running, script.stderr
        try:
            stack.database.connect().close()
        except psycopg2.OperationalError as error:
            yield str(error)
        time.sleep(0.005)


def test_a_stop_during_a_start_leaves_nothing(stack: Stack) -> None:
    script = stack.start()
    eventually(stack.servers)
    assert script.stop(signal.SIGTERM) == 0
    assert script.stderr == ""
    assert stack.servers() == []
    assert stack.listens() == []


def test_killed_and_started_again_on_other_ports_it_has_everything(stack: Stack) -> None:
    stack.start_and_wait().kill()  # its servers run on
    servers = stack.servers()
    script = stack.start_and_wait()
    assert gone(servers)
    assert "Preparing" not in script.stdout
    stack.assert_filled()
    stack.kill_all()
    script = stack.start_and_wait()
    stack.assert_filled()
    assert script.stop() == 0
    assert script.stderr == ""
    assert stack.listens() == []


def test_root_in_a_container_finds_a_server_that_runs_as_another_user(own_postgres: Postgres) -> None:
    """Without CAP_SYS_PTRACE, as in Docker, root may not see in which folder another user's process works."""
    drop = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
    if own_postgres.user is None or subprocess.run([*drop, "true"]).returncode != 0:
        pytest.skip("PostgreSQL runs as another user only if root starts it")
    kill = (
        "import sys; from pathlib import Path; from pipeline.local_stack.postgres_server import PostgresServer as S; "
    )
    kill += "S(Path(sys.argv[1]), sys.argv[2]).kill()"
    arguments = [sys.executable, "-c", kill, str(own_postgres.folder), own_postgres.url]
    subprocess.run([*drop, *arguments], cwd=ROOT, check=True, timeout=60)
    eventually(lambda: not own_postgres.running)
    own_postgres.start()
    assert own_postgres.database.count() == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@localhost:5432,localhost:5433/trades",
        "postgresql://user:secret@localhost:99999/trades",
        "postgresql://user@localhost:5432/trades",
        "postgresql://localhost:5432/trades",
        "postgresql:///trades",
    ],
)
def test_a_url_that_does_not_say_what_it_needs_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs postgresql://user:password@localhost:port/database"):
        PostgresServer(tmp_path, url)


def test_a_folder_of_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to another user"), server.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    kafka = KafkaServer(tmp_path, server.Address("127.0.0.1", free_port()))
    kafka.log.write_text("line\nOutOfMemoryError: too small\n\n")
    assert str(kafka.failure()).endswith("which ends with: OutOfMemoryError: too small")


def test_who_works_in_a_servers_folder_but_is_no_server_lives_on(tmp_path: Path) -> None:
    kafka = KafkaServer(tmp_path, server.Address("127.0.0.1", free_port()))
    kafka.data.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=kafka.data, stdin=subprocess.PIPE) as stranger:
        kafka.kill()  # as before each start
        assert stranger.poll() is None


@pytest.mark.parametrize(("file", "version"), [("kafka/version", "99.1.0"), ("postgres/PG_VERSION", "17\n")])
def test_data_of_another_version_are_refused_and_kept(fresh_stack: Stack, file: str, version: str) -> None:
    path = fresh_stack.data / file
    path.parent.mkdir()
    path.write_text(version)
    script = fresh_stack.start()
    assert script.wait(60) == 1
    line = one_line(script.stderr)
    assert version.strip() in line
    assert str(path.parent.resolve()) in line
    assert path.read_text() == version


def test_data_of_another_user_are_refused_and_kept(stack: Stack) -> None:
    script = stack.start(DATABASE_URL=stack.database.url.replace(PASSWORD, "another"))
    assert script.wait() == 1
    assert "DATABASE_URL" in one_line(script.stderr)
    stack.start_and_wait()
    stack.assert_filled()


def test_a_full_disk_is_one_line_and_with_room_again_it_has_everything(stack: Stack) -> None:
    disk = stack.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220m,mode=755", "tmpfs", str(disk)]).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    try:
        small = disk / ".local"
        subprocess.run(["cp", "-a", str(stack.data), str(small)], check=True)
        shutil.move(stack.data, stack.folder / "large")
        stack.data.symlink_to(small)
        script = stack.start_and_wait()
        producer = Producer({"bootstrap.servers": f"localhost:{stack.broker_port}", "message.timeout.ms": 60_000})
        while script.running:
            with suppress(BufferError):
                producer.produce("orders.dlq", b"x" * 500_000)
            producer.poll(0.01)
        producer.purge()
        assert script.wait() == 1
        line = one_line(script.stderr)
        assert "no space left" in line
        assert str(small.resolve()) in line
        assert stack.listens() == []
        subprocess.run(["mount", "-o", "remount,size=600m", str(disk)], check=True)
        stack.start_and_wait()
        assert stack.database.query("SELECT trade_id FROM trades") == [("kept",)]
        stack.kill_all()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_kafkas_tools_run_on_it_by_their_names(running: Stack) -> None:
    made = running.start("kafka-topics", "--create", "--topic", "made", "--partitions", "3")
    assert made.wait() == 0, made.stdout + made.stderr
    here = ("--bootstrap-server", f"localhost:{running.broker_port}")
    described = running.start("kafka-topics", "--describe", "--topic", "made", *here, KAFKA_BOOTSTRAP_SERVERS="other:1")
    assert described.wait() == 0
    assert "PartitionCount: 3" in described.stdout
    assert described.stderr == made.stderr == ""


def test_a_second_one_from_the_same_folder_is_refused(running: Stack) -> None:
    second = running.start()
    assert second.wait() == 1
    assert f"already running from this folder (process {running.started[0].pid})" in one_line(second.stderr)
    assert running.started[0].running
    assert len(running.listens()) == 2


@pytest.mark.parametrize("variable", ["KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"])
def test_a_port_that_is_taken_is_named_with_the_variable_to_change(fresh_stack: Stack, variable: str) -> None:
    port = fresh_stack.broker_port if variable.startswith("KAFKA") else fresh_stack.database_port
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        script = fresh_stack.start()
        assert script.wait() == 1
    line = one_line(script.stderr)
    assert str(port) in line
    assert variable in line
    assert fresh_stack.listens() == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "nonsense"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka.example.com:9092"),
        ("DATABASE_URL", "postgresql://user@localhost:port/db"),
        ("DATABASE_URL", "postgresql://user:secret@db.example.com/db"),
    ],
)
def test_an_address_it_cannot_serve_is_refused_in_one_line(fresh_stack: Stack, variable: str, value: str) -> None:
    script = fresh_stack.start(**{variable: value})
    assert script.wait() != 0
    assert variable in one_line(script.stderr)


@pytest.mark.parametrize("program", ["java", "postgres"])
def test_a_server_that_ends_by_itself_ends_the_stack_with_one_line(stack: Stack, program: str) -> None:
    script = stack.start_and_wait()
    servers = stack.servers()
    next(server for server in servers if server.name() == program).kill()
    assert script.wait() == 1
    assert {"java": "kafka.log", "postgres": "postgres.log"}[program] in one_line(script.stderr)
    eventually(lambda: gone(servers))


def test_a_server_that_takes_too_long_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_START", 0.1)
    kafka = Kafka()
    with pytest.raises(UserError, match=r"^Apache Kafka .* does not answer after 0\.1 s: see .*kafka\.log$"):
        kafka.start()
    assert not kafka.processes()
    shutil.rmtree(kafka.folder)


def test_a_log_that_has_become_long_begins_anew(running: Stack) -> None:
    log = running.data / "kafka.log"
    with log.open("a") as file:
        file.write("x\n" * (3 << 20))
    eventually(lambda: log.stat().st_size < 1 << 20)
    assert log.with_suffix(".log.1").stat().st_size >= 6 << 20


def test_a_stop_lets_a_client_finish_its_transaction(stack: Stack) -> None:
    script = stack.start_and_wait()
    with closing(stack.database.connect()) as connection:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO trades (trade_id) VALUES ('last')")
            script.process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses_new_clients(stack.database))
        connection.commit()
    assert script.wait() == 0
    assert stack.start_and_wait().running
    assert sorted(stack.database.query("SELECT trade_id FROM trades")) == [("kept",), ("last",)]


def refuses_new_clients(database: Database) -> bool:
    try:
        database.connect().close()
    except psycopg2.OperationalError:
        return True
    return False
