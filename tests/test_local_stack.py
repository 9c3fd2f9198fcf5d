"""local_stack.py as a process, from a folder of its own: what it prints, refuses, keeps and leaves behind."""

import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.services import PASSWORD, ROOT, USER, Database, Script, environment_of, eventually, free_port


class Stack:
    """A copy of the project's files that the local stack needs, and free ports for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "sql"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "local_stack.py", folder)
        self.started: list[Script] = []
        self.broker_port, self.database_port = free_port(), free_port()
        self.database = Database(f"postgresql://{USER}:{PASSWORD}@localhost:{self.database_port}/kafka_db")
        self.environment = environment_of(f"localhost:{self.broker_port}", self.database.url, "orders", "group")

    def start(self, **variables: str) -> Script:
        self.started.append(Script(["local_stack.py"], self.environment | variables, self.folder))
        return self.started[-1]

    def start_and_wait(self) -> Script:
        script = self.start()
        script.wait_for_line("Ctrl-C ends both")
        return script

    def kill_all(self) -> None:
        for script in self.started:
            script.kill()
        for server in self.servers():
            server.kill()

    def servers(self) -> list[psutil.Process]:
        """The servers that run for this copy, whoever is their parent."""
        found = []
        for path in (self.folder / ".local").glob("*.pid"):
            try:
                server = psutil.Process(int(path.read_text()))
                found += [server, *server.children(recursive=True)]
            except psutil.NoSuchProcess:
                pass
        return found

    def listens(self) -> list[int]:
        """Those of its ports that something listens on."""
        ports = []
        for port in (self.broker_port, self.database_port):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    ports.append(port)
        return ports


@pytest.fixture
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="trades-stack-", ignore_cleanup_errors=True) as folder:
        copy = Stack(Path(folder))
        yield copy
        copy.kill_all()


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def one_line(text: str) -> str:
    assert "Traceback" not in text
    assert text.count("\n") == 0, text
    return text


def test_it_says_where_the_services_are_and_ctrl_c_leaves_none(stack: Stack) -> None:
    script = stack.start_and_wait()
    assert f"localhost:{stack.broker_port}" in script.wait_for_line("🟢 Kafka")
    assert f"localhost:{stack.database_port}" in script.wait_for_line("🟢 PostgreSQL")
    assert "memory only" in script.stdout
    assert stack.database.count() == 0
    servers = stack.servers()
    assert len(servers) > 2
    assert script.stop(signal.SIGINT) == 0
    assert gone(servers)
    assert stack.listens() == []
    assert script.stdout.splitlines()[-1] == "Local stack stopped."
    assert script.stderr == ""


@pytest.mark.parametrize("moment", ["Preparing PostgreSQL", None])
def test_a_stop_while_it_starts_leaves_nothing(stack: Stack, moment: str | None) -> None:
    script = stack.start()
    if moment:
        script.wait_for_line(moment)
    else:
        eventually(stack.servers)
    servers = stack.servers()
    assert script.stop(signal.SIGTERM) == 0
    assert script.stderr == ""
    assert gone(servers)
    assert stack.listens() == []


def test_killed_and_started_again_it_clears_up_and_keeps_the_rows(stack: Stack) -> None:
    first = stack.start_and_wait()
    stack.database.query("INSERT INTO trades (trade_id) VALUES ('kept')")
    servers = stack.servers()
    first.kill()
    second = stack.start_and_wait()
    assert gone(servers)
    assert stack.database.query("SELECT trade_id FROM trades") == [("kept",)]
    assert second.stop() == 0
    assert stack.listens() == []


def test_stopped_and_started_again_it_keeps_the_rows(stack: Stack) -> None:
    first = stack.start_and_wait()
    stack.database.query("INSERT INTO trades (trade_id) VALUES ('kept')")
    assert first.stop() == 0
    second = stack.start_and_wait()
    assert "Preparing" not in second.stdout
    assert stack.database.query("SELECT trade_id FROM trades") == [("kept",)]


def test_a_second_one_from_the_same_folder_is_refused(stack: Stack) -> None:
    first = stack.start_and_wait()
    second = stack.start()
    assert second.wait() == 1
    assert "already running" in one_line(second.stderr)
    assert first.running
    assert len(stack.listens()) == 2


@pytest.mark.parametrize("variable", ["KAFKA_BOOTSTRAP_SERVERS", "DATABASE_URL"])
def test_a_port_that_is_taken_is_named_with_the_variable_to_change(stack: Stack, variable: str) -> None:
    port = stack.broker_port if variable.startswith("KAFKA") else stack.database_port
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        script = stack.start()
        assert script.wait() == 1
    line = one_line(script.stderr)
    assert str(port) in line
    assert variable in line
    assert stack.listens() == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "nonsense"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka.example.com:9092"),
        ("DATABASE_URL", "postgresql://user@localhost:port/db"),
        ("DATABASE_URL", "postgresql://user@db.example.com/db"),
    ],
)
def test_an_address_it_cannot_serve_is_refused_in_one_line(stack: Stack, variable: str, value: str) -> None:
    script = stack.start(**{variable: value})
    assert script.wait() == 1
    assert variable in one_line(script.stderr)


def test_a_service_that_ends_by_itself_ends_the_stack_with_one_line(stack: Stack) -> None:
    script = stack.start_and_wait()
    broker_process = psutil.Process(int((stack.folder / ".local" / "broker.pid").read_text()))
    servers = stack.servers()
    broker_process.kill()
    assert script.wait() == 1
    assert "broker.log" in one_line(script.stderr)
    assert gone(servers)


def test_who_waits_for_postgres_never_meets_it_without_the_database(stack: Stack) -> None:
    script = stack.start()
    said = set()
    while "Ctrl-C ends both" not in script.stdout:
        assert script.running, script.stderr
        try:
            stack.database.connect().close()
        except psycopg2.OperationalError as error:
            said.add(str(error))
    assert not [refusal for refusal in said if "does not exist" in refusal]


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
    assert stack.database.query("SELECT trade_id FROM trades") == [("last",)]


def refuses_new_clients(database: Database) -> bool:
    try:
        database.connect().close()
    except psycopg2.OperationalError:
        return True
    return False
