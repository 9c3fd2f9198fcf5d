"""The Makefile, on a machine with nothing installed and on one with everything; `make run` from start to end."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from tests.script import ROOT, environment_of
from tests.services import PASSWORD, USER, Database, eventually, free_port
from tests.test_local_stack import gone, share_jars

TARGETS = ("help", "run", "cluster", "test", "chaos", "check", "install", "lock")


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=folder,
        env=environment_without_make() | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )


def environment_without_make() -> dict[str, str]:
    """Return the environment of a user's own shell, even if `make test` started the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def test_help_is_what_make_says_and_names_every_target() -> None:
    said = make(ROOT)
    assert said.returncode == 0
    assert re.findall(r"^  make ([\w-]+)  +\S", said.stdout, re.MULTILINE) == list(TARGETS)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder as after a clone, except that there is nothing to download."""
    folder = tmp_path / "my projects"  # a space in the path breaks many Makefiles
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements-local.txt", "requirements-dev.txt"):
        (folder / name).touch()
    return folder


def test_the_environment_is_set_up_once_and_again_when_a_requirement_changes(fresh: Path) -> None:
    (fresh / ".venv" / "bin").mkdir(parents=True)  # left by an interrupted run, or by a Python that is gone
    (fresh / ".venv" / "bin" / "python").symlink_to("/nowhere")
    first = make(fresh, "install", MAKEFLAGS="-j4", PIP_USER="1")  # as some users have for other projects
    assert first.returncode == 0, first.stdout
    for line, name in zip(first.stdout.splitlines(), ("requirements-local.txt", "requirements-dev.txt"), strict=True):
        assert line.startswith(f"Setting up .venv with the packages of {name}")
    assert (fresh / ".venv" / "bin" / "python").exists()
    assert "Setting up" not in make(fresh, "install").stdout
    (fresh / "requirements-local.txt").write_text("# another\n")
    assert make(fresh, "install").stdout.count("Setting up") == 1
    (fresh / ".venv" / "bin" / "python").unlink()  # as after an upgrade of the system's Python
    assert make(fresh, "--dry-run", "install").stdout.count("Setting up") == 2


def test_packages_elsewhere_are_not_taken_for_installed(fresh: Path) -> None:
    makefile = fresh / "Makefile"
    makefile.write_text(makefile.read_text() + "\nelsewhere:\n\t@env\n")
    done = make(fresh, "elsewhere", PYTHONPATH="/opt/ros", PYTHONHOME="/usr")
    assert "PATH=" in done.stdout
    assert not re.search("^PYTHON(PATH|HOME)=", done.stdout, re.MULTILINE)


def test_a_set_up_that_fails_says_why_and_is_done_again(fresh: Path) -> None:
    (fresh / "requirements-local.txt").write_text("no requirement!\n")
    failed = make(fresh, "install")
    assert failed.returncode != 0
    assert "Invalid requirement" in failed.stdout
    (fresh / "requirements-local.txt").write_text("")
    assert make(fresh, "install").returncode == 0


def test_without_a_python_that_is_new_enough_one_line_says_so(fresh: Path) -> None:
    done = make(fresh, "test", "PYTHON=")
    assert done.returncode != 0
    assert done.stdout.splitlines()[0].startswith("make: no Python 3.11 or newer found")


def test_without_the_means_to_make_an_environment_one_line_says_what_to_install(fresh: Path) -> None:
    programs = fresh / "programs"
    programs.mkdir()
    for program in ("sh", "id", "make", "rm"):  # and no apt-get
        (programs / program).symlink_to(shutil.which(program) or "")
    (programs / "python-without-ensurepip").write_text(
        '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) echo python3.12-venv;; esac\n'
    )
    (programs / "python-without-ensurepip").chmod(0o755)
    done = make(fresh, "test", "PYTHON=python-without-ensurepip", PATH=str(programs))
    assert done.returncode != 0
    assert "sudo apt-get install python3.12-venv" in done.stdout.splitlines()[0]


class Run:
    """`make run` in a copy of the project, on its own ports, leading a process group as if started in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "sql", ".streamlit"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (*ROOT.glob("*.py"), *ROOT.glob("requirements*.txt"), ROOT / "Makefile", ROOT / "Procfile"):
            shutil.copy(path, folder)
        share_jars(folder)
        self.ports = {name: free_port() for name in ("kafka", "postgres", "page")}
        self.database = Database(f"postgresql://{USER}:{PASSWORD}@localhost:{self.ports['postgres']}/kafka_db")
        self.lines: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        (self.folder / "environment").symlink_to(sys.prefix)  # the tests' own environment: nothing to install
        command = ["make", "run", "VENV=environment", "--assume-old=environment/requirements-local.txt"]
        settings = environment_of(f"localhost:{self.ports['kafka']}", self.database.url, "orders", "group")
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment_without_make() | settings | {"STREAMLIT_SERVER_PORT": str(self.ports["page"])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout
        threading.Thread(target=self.lines.extend, args=[self.process.stdout], daemon=True).start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def processes(self) -> list[psutil.Process]:
        assert self.process
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def page_answers(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.ports['page']}/_stcore/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def copy_to_run() -> Iterator[Run]:
    """Make a copy that is not started yet; kill whatever it started at the end."""
    with tempfile.TemporaryDirectory(prefix="trades-make-", ignore_cleanup_errors=True) as folder:
        everything = Run(Path(folder))
        try:
            yield everything
        finally:
            if everything.process and everything.process.poll() is None:
                for process in everything.processes():
                    process.kill()


@pytest.fixture
def run() -> Iterator[Run]:
    with copy_to_run() as everything:
        yield everything


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_make_run_starts_everything_and_every_ending_ends_everything(run: Run, ending: signal.Signals) -> None:
    run.start()
    assert run.process
    eventually(lambda: "📥" in run.output and run.page_answers(), timeout=60)
    assert run.database.count() > 0
    processes = run.processes()
    assert len(processes) > 10
    if ending is signal.SIGTERM:  # from another terminal or a service manager, sent only to make
        run.process.terminate()
    else:
        os.killpg(run.process.pid, ending)
    eventually(lambda: gone(processes))
    if ending is not signal.SIGHUP:  # after SIGHUP, nobody is left to read the output
        eventually(lambda: "Local stack stopped." in run.output)
        assert "Consumer stopped" in run.output
        assert "sending SIGKILL" not in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize("service", ["kafka", "postgres", "page"])
def test_a_port_that_is_taken_is_said_and_ends_everything(run: Run, service: str) -> None:
    port = run.ports[service]
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as stranger:
        try:
            assert stranger.stdout
            stranger.stdout.readline()
            run.start()
            assert run.process
            processes = run.processes()
            assert run.process.wait(90) != 0
        finally:
            stranger.terminate()
    eventually(lambda: f"ort {port} " in run.output)
    assert gone(processes)
    assert "Traceback" not in run.output
