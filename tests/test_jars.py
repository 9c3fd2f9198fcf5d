"""Downloads of jars, from a local server that cuts off the answer, sends garbage or falls silent."""

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.script import Script
from tests.services import eventually, free_port
from tests.test_local_stack import Stack

CONTENT = {f"jar-{number}-1.0.jar": random.Random(number).randbytes(300_000) for number in range(3)}
PROGRAM = """
import runpy
import sys
from pathlib import Path
import jgo.constants
from pipeline.command import parser, run
from pipeline.local_stack import jars
jars.SECONDS_OF_SILENCE = 1
_, jgo.constants.MAVEN_CENTRAL_URL, folder, what, *sys.argv[1:] = sys.argv
jars.JARS = Path(folder)
if what == "local_stack.py":
    runpy.run_path(what, run_name="__main__")
else:
    sys.exit(run(parser(""), lambda *_: print(*jars.jars(Path(what), "Three jars"))))
"""


class Repository(ThreadingHTTPServer):
    """Serves the jars; `broken` says how the transfer of a jar fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Download)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        self.broken: dict[str, str] = {}
        self.over = threading.Event()


class Download(BaseHTTPRequestHandler):
    """Handles one request."""

    server: Repository

    def do_GET(self) -> None:
        *_, name = self.path.split("/")
        self.server.asked[name] += 1
        content = CONTENT.get(name, b"x" * 300_000)
        fault = self.server.broken.get(name, self.server.broken.get("every", ""))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[::-1] if fault == "damaged" else content[: 150_000 if fault else None])
        if fault == "silent":
            self.server.over.wait(60)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def repository() -> Iterator[Repository]:
    with Repository() as server:
        serving = threading.Thread(target=server.serve_forever, args=[0.02])
        serving.start()
        yield server
        server.over.set()
        server.shutdown()
        serving.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    lines = [
        f"org.example:{name.removesuffix('-1.0.jar')}:1.0 {hashlib.sha256(content).hexdigest()} {len(content)}\n"
        for name, content in CONTENT.items()
    ]
    path = tmp_path / "three.lock"
    path.write_text("# from nowhere\n" + "".join(lines))
    return path


def download(url: str, folder: Path, lock: Path) -> Script:
    """Start a download of the jars of a lock file."""
    return Script(["-c", PROGRAM, url, str(folder), str(lock)], dict(os.environ))


def whole(folder: Path) -> set[str]:
    """Return the names of the jars that would be used, after checking that they are complete."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.jar")}
    assert all(CONTENT[name] == content for name, content in found.items())
    return set(found)


@pytest.mark.parametrize("fault", ["cut off", "damaged"])
def test_a_download_that_fails_is_told_and_completed_by_the_next_run(
    repository: Repository, lock: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "jars"
    repository.broken["jar-1-1.0.jar"] = fault
    failed = download(repository.url, folder, lock)
    assert failed.wait() == 1
    [line] = failed.stderr_lines
    assert "Three jars could not be downloaded" in line
    assert "docker compose up -d" in line
    present = whole(folder)
    assert "jar-1-1.0.jar" not in present

    repository.broken.clear()
    completed = download(repository.url, folder, lock)
    assert completed.wait() == 0
    assert "Downloading Three jars, once" in completed.stdout
    assert whole(folder) == set(CONTENT)
    assert not list(folder.glob("*.unfinished"))
    assert repository.asked["jar-1-1.0.jar"] == 2
    assert all(repository.asked[name] == 1 for name in present), "it did not go on where it stopped"

    again = download("http://127.0.0.1:1", folder, lock)  # no longer needs the network
    assert again.wait() == 0
    assert "Downloading" not in again.stdout


def local_stack(folder: Path, url: str, *words: str) -> Script:
    """Start a copy of local_stack.py that has no jars yet."""
    stack = Stack(folder)
    jars = str(folder / "jars")
    return Script(["-c", PROGRAM, url, jars, "local_stack.py", *words], stack.environment, stack.folder)


@pytest.mark.parametrize("words", [(), ("kafka-topics", "--list")])
def test_a_machine_that_cannot_reach_the_jars_is_told_in_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    failed = local_stack(tmp_path, f"http://127.0.0.1:{free_port()}", *words)
    assert failed.wait() == 1
    [line] = failed.stderr_lines
    assert "Apache Kafka" in line
    assert "docker compose up -d" in line


@pytest.mark.parametrize("words", [(), ("kafka-topics", "--list")])
def test_a_stop_during_the_download_is_orderly(repository: Repository, tmp_path: Path, words: tuple[str, ...]) -> None:
    repository.broken["every"] = "silent"
    stopped = local_stack(tmp_path, repository.url, *words)
    eventually(lambda: len(repository.asked) == 4)  # the number downloaded at once
    assert stopped.stop() == 0
    assert not stopped.stderr_lines
    assert not list((tmp_path / "jars").glob("*.jar"))
