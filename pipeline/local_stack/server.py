"""A server as a process: start it, stop it, kill it, and find it again if an earlier run left it behind."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import psutil

from pipeline.stop import stop_requested, wait_for_stop
from pipeline.user_error import UsageError, UserError

BROKERS = "KAFKA_BOOTSTRAP_SERVERS"
SECONDS_TO_START = 120  # even on a busy machine
SECONDS_TO_STOP = 10
LOG_LIMIT = 4 << 20  # bytes; the previous log is kept


class Address(NamedTuple):
    """Where a server listens, and the environment variable that changes it."""

    host: str
    port: int
    variable: str = "PORT"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def check_usable(self) -> None:
        """Raise `UserError` unless the address is on localhost and nothing listens there yet."""
        if self.host not in ("localhost", "127.0.0.1"):
            raise UserError(f"{self.variable} names {self.host}: the local stack listens on localhost only")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise UserError(
                    f"port {self.port} cannot be used ({error.strerror}): stop what listens there, "
                    f"or set {self.variable} to another port, for every script"
                ) from None


def read_addresses(bootstrap_servers: str) -> list[Address]:
    """Parse the value of KAFKA_BOOTSTRAP_SERVERS: host:port,host:port,... Raises `UsageError`."""
    addresses = []
    for each in bootstrap_servers.split(","):
        host, _, port = each.strip().rpartition(":")
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(f"{BROKERS}={bootstrap_servers}: give host:port")
        addresses.append(Address(host, int(port), BROKERS))
    return addresses


_ports = count(997 * os.getpid())  # far from the ports that another process is about to use


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on and that this process has not been given before.

    It is below the ephemeral ports: otherwise, while a server is down, a client that tries to reconnect could be given
    the server's own port for its end of the connection, and keep it.
    """
    while True:
        port = 20_000 + next(_ports) % 12_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A server that keeps its data in its working directory, `folder/name`; it can be restarted after `stop` or `kill`.

    A subclass defines what to run (`command`), what to do before (`prepare`) and when it is ready (`answers`).
    """

    title: ClassVar[str]
    program: ClassVar[str]  # its name in the process list
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    user: ClassVar[str | None] = None  # to run as

    def __init__(self, folder: Path, name: str, address: Address) -> None:
        self.folder = folder.resolve()
        self.name = name
        self.address = address
        self.data = self.folder / name
        self.log = self.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Do what a start requires, unless the user asks to stop. Raises `UserError`."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether the server serves its clients."""
        raise NotImplementedError

    def start(self) -> None:
        """Start or restart, and wait until the server answers or the user asks to stop. Raises `UserError`."""
        try:
            self.launch()
            self.wait_until_ready()
        except BaseException:  # whatever it is, leave no orphaned server behind
            self.kill()
            raise

    def check(self) -> None:
        """End what an earlier, killed run left behind; raise `UserError` if the server cannot start."""
        self.kill()
        self.address.check_usable()

    def launch(self) -> None:
        """Start without waiting. Raises `UserError`."""
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self.log.replace(self.log.with_suffix(".log.1"))
        self.prepare()
        if not stop_requested():
            self.process = self.run(self.command(), self.data)

    def wait_until_ready(self) -> None:
        """Wait until the server answers or the user asks to stop. Raises `UserError` if it ends or takes too long."""
        deadline = time.monotonic() + SECONDS_TO_START
        while not stop_requested() and not self.answers():
            if not self.running:
                raise self.failure()
            if time.monotonic() > deadline:
                raise UserError(f"{self.title} does not answer after {SECONDS_TO_START} s: see {self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut down gracefully; a server that takes too long is killed, and recovers on the next start."""
        self.signal_and_wait(self.stop_signal, SECONDS_TO_STOP)
        self.kill()

    def signal_and_wait(self, number: signal.Signals, seconds: float) -> None:
        """Send a signal, and wait up to `seconds` for the server to end."""
        if self.process is not None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)

    def kill(self) -> None:
        """Crash: end the server and all its children with SIGKILL."""
        processes = self.processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, SECONDS_TO_STOP)
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def running(self) -> bool:
        """Return whether the process is running."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """The process id, once started."""
        assert self.process is not None
        return self.process.pid

    def processes(self) -> list[psutil.Process]:
        """Find the server and its children, whoever started them, by the folder they work in.

        In a container, root may not see where another user's process works, but its command line also has the folder.
        """
        return [
            process
            for process in psutil.process_iter(["name", "cwd", "cmdline"])
            if process.info["name"] == self.program
            and str(self.data) in (process.info["cwd"], *(process.info["cmdline"] or ()))
        ]

    def failure(self) -> UserError:
        """Return an error that says in one line why the server ended."""
        lines: list[str] = []
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").split("\n")
        if any("No space left on device" in line for line in lines):
            return UserError(f"{self.title} has no space left in {self.folder}: make room, and start again")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return UserError(f"{self.title} ended by itself: see {self.log}, which ends with: {last}")

    def trim_log(self) -> None:
        """Rotate the log once it is too long."""
        with suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT:
                shutil.copy(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)  # safe, because the server appends

    def run(self, command: list[str], folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a program as the server's user, working in `folder`; what it prints goes to the log."""
        as_user: dict[str, Any] = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        with self.log.open("ab") as log:
            # Its own session: a Ctrl-C meant for local_stack.py must not stop a server before its clients.
            io: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "start_new_session": True}
            return subprocess.Popen(command, cwd=folder, **io, **as_user)

    def run_to_end(self, command: list[str], folder: Path | None = None, text: str = "") -> None:
        """Run a program with `text` on stdin until it ends or the user asks to stop. Raises `UserError` if it fails."""
        if stop_requested():
            return
        process = self.run(command, folder)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())
        while process.poll() is None:
            if wait_for_stop(0.02):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0 and not stop_requested():
            raise self.failure()


@contextmanager
def locked(folder: Path, refusal: str = "") -> Iterator[None]:
    """Lock a folder; even a killed process releases it. If another holds it, wait, or raise `UserError(refusal)`.

    Raises `UserError` for a folder of another user, too: neither could use what the other puts into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder} belongs to another user (sudo?): start as that user, or move the folder away")
    with (folder / "lock").open("a+") as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB if refusal else LOCK_EX)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{refusal} (process {lock.read()})") from None
        lock.truncate(0)
        print(os.getpid(), end="", file=lock, flush=True)
        yield


def all_at_once(*actions: Callable[[], None]) -> None:
    """Start servers concurrently, each in its own thread. Raises `UserError`."""
    with ThreadPoolExecutor() as executor:
        for done in [executor.submit(action) for action in actions]:
            done.result()
