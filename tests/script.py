"""The project's scripts as processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS_TO_END = 10  # how long a script may take to end after a stop signal


def environment_of(bootstrap_servers: str, database_url: str, topic: str, group: str) -> dict[str, str]:
    """Return this process's environment with the given settings in place of the user's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "DATABASE_URL"))}
    return inherited | {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
        "KAFKA_TOPIC": topic,
        "KAFKA_GROUP_ID": group,
        "DATABASE_URL": database_url,
    }


class Script:
    """A Python process that runs one of the project's scripts; its output is collected as it runs."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], folder: Path = ROOT) -> None:
        # In its own session: Ctrl-C in the terminal interrupts the tests, and must not reach the script.
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment | {"PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.words = " ".join(words)
        self.stdout_lines: deque[str] = deque()
        self.stderr_lines: deque[str] = deque()
        self._readers = [
            threading.Thread(target=lines.extend, args=[(line.rstrip("\n") for line in pipe)], daemon=True)
            for pipe, lines in ((self.process.stdout, self.stdout_lines), (self.process.stderr, self.stderr_lines))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def stdout(self) -> str:
        """What the script has printed on stdout so far."""
        return "\n".join(self.stdout_lines.copy())

    @property
    def stderr(self) -> str:
        """What the script has printed on stderr so far."""
        return "\n".join(self.stderr_lines.copy())

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the script is still running."""
        return self.process.poll() is None

    @property
    def takes_signals(self) -> bool:
        """Whether the script handles SIGTERM yet; Python itself does not (proc_pid_status(5))."""
        caught = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{self.pid}/status").read_text())
        return bool(int(caught[0], 16) >> (signal.SIGTERM - 1) & 1)

    def lines(self) -> list[str]:
        """Return every line so far, stdout's before stderr's."""
        return [*self.stdout_lines.copy(), *self.stderr_lines.copy()]

    def wait_for_line(self, text: str, timeout: float = 30) -> str:
        """Wait until a line on stdout or stderr contains the text, and return that line. Raises `AssertionError`."""
        deadline = time.monotonic() + timeout
        while True:
            ended = not self.running
            if ended:
                self._drain()
            for line in self.lines():
                if text in line:
                    return line
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{self.words}: no line with {text!r}\n{self._story()}")
            time.sleep(0.02)

    def wait(self, timeout: float = 30) -> int:
        """Wait until the script ends by itself; return its exit code. Raises `AssertionError`."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.words}: still running after {timeout:g} s\n{self._story()}") from None
        self._drain()
        return self.process.returncode

    def stop(self, with_signal: signal.Signals = signal.SIGINT, timeout: float = SECONDS_TO_END) -> int:
        """Send the signal, wait for the script to end, return its exit code. Raises `AssertionError`."""
        self.process.send_signal(with_signal)
        return self.wait(timeout)

    def kill(self) -> None:
        """Kill the script with SIGKILL if it is still running."""
        self.process.kill()
        self.wait()

    def _drain(self) -> None:
        for reader in self._readers:
            reader.join(5)  # a grandchild may hold the pipe open

    def _story(self) -> str:
        code = self.process.poll()
        return f"exit code: {code}\nstdout:\n{self.stdout[-4000:]}\nstderr:\n{self.stderr[-4000:]}"
