"""Jars by exact coordinates and checksums, downloaded once into .local/jars/.

    python -m pipeline.local_stack.jars pipeline/local_stack/kafka.lock        # resolve again (make lock)

A lock file begins with the coordinates it was made from, one `# from` each; with `alone` behind it, what that jar
depends on is left out. Then one line for each jar: coordinates, SHA-256, bytes.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import NamedTuple

from pipeline.command import stop_requested
from pipeline.user_error import UserError

JARS = Path(__file__).parent.parent.parent / ".local" / "jars"
DOWNLOADS_AT_ONCE = 4


class Jar(NamedTuple):
    """A line of a lock file."""

    coordinates: str  # group:artifact:version
    sha256: str
    size: int  # bytes

    def path_in(self, folder: Path) -> Path:
        """Return where the jar is kept."""
        _, artifact, version = self.coordinates.split(":")
        return folder / f"{artifact}-{version}.jar"


def read_lock(lock: Path) -> list[Jar]:
    """Return the jars of a lock file."""
    lines = [line.split() for line in lock.read_text().splitlines() if not line.startswith("#")]
    return [Jar(coordinates, sha256, int(size)) for coordinates, sha256, size in lines]


def jars(lock: Path, title: str) -> list[Path]:
    """Return the jars of a lock file, after downloading those that are missing. Raises `UserError`."""
    folder = JARS.resolve()
    locked = read_lock(lock)
    if _missing(locked, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as one_at_a_time:
            flock(one_at_a_time, LOCK_EX)
            if missing := _missing(locked, folder):
                _download(missing, folder, Progress(title, sum(jar.size for jar in missing)))
    return [jar.path_in(folder) for jar in locked]


def _missing(locked: list[Jar], folder: Path) -> list[Jar]:
    """Jars get their names when they are complete and verified, so the size is check enough."""
    return [jar for jar in locked if not (path := jar.path_in(folder)).exists() or path.stat().st_size != jar.size]


@dataclass
class Progress:
    """Says what is downloaded, how much it is, and how far it has come."""

    title: str
    total: int  # bytes

    def __post_init__(self) -> None:
        self.done = self.said = 0
        self.lock = Lock()
        print(f"Downloading {self.title}, once: {self.total / 1e6:.0f} MB ...", flush=True)

    @contextmanager
    def __call__(self, file_name: str, size: int) -> Iterator[Callable[[int], None]]:
        """Give the function that takes the bytes of one file as they come."""
        yield self.add

    def add(self, count: int) -> None:
        """Count some bytes."""
        if stop_requested():
            raise InterruptedError("interrupted")
        with self.lock:
            self.done += count
            if self.done * 5 // self.total > self.said:
                self.said = self.done * 5 // self.total
                print(f"  {self.done / 1e6:.0f} of {self.total / 1e6:.0f} MB", flush=True)


def _download(missing: list[Jar], folder: Path, progress: Progress) -> None:
    """Download jars; each appears under its name only when it is whole. Raises `UserError`."""
    from jgo.maven import MavenContext, PythonResolver  # only the first start needs them

    unfinished = folder / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of a download that was cut off
    context = MavenContext(repo_cache=unfinished, resolver=PythonResolver(progress_callback=progress))

    def download(jar: Jar) -> None:
        group, artifact, version = jar.coordinates.split(":")
        path = context.project(group, artifact).at_version(version).artifact().resolve()
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != jar.sha256:
                raise OSError(f"{path.name} is not what its checksum says")
            os.fsync(file.fileno())
        path.replace(jar.path_in(folder))

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as executor:
        try:
            for _ in executor.map(download, missing):
                pass
        except (OSError, RuntimeError) as error:  # requests' exceptions are OSErrors
            executor.shutdown(cancel_futures=True)
            raise UserError(
                f"{progress.title} could not be downloaded ({_reason(error)}): "
                "try again when the network is there, or use Docker: docker compose up -d"
            ) from None
    shutil.rmtree(unfinished, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Return what a download failed of, without the addresses and objects around it."""
    return re.sub(r"^.*\[Errno -?\d+\] |https?://\S+|[()'\"{}]", "", str(error)).strip() or type(error).__name__


def write_lock(lock: Path) -> None:
    """Resolve a lock file's roots again and write it anew."""
    from jgo.maven import MavenContext

    head = [line for line in lock.read_text().splitlines() if line.startswith("#")]
    roots = [line.split()[2:] for line in head if line.startswith("# from ")]
    with TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache))
        alone, whole = (
            [context.create_dependency(root) for root, *mark in roots if bool(mark) is marked]
            for marked in (True, False)
        )
        found, depended_on = context.resolver.resolve(whole)
        lines = set()
        for dependency in (*alone, *found, *depended_on):
            data = dependency.artifact.resolve().read_bytes()
            coordinates = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
            lines.add(f"{coordinates} {hashlib.sha256(data).hexdigest()} {len(data)}")
    lock.write_text("\n".join([*head, *sorted(lines)]) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_lock(Path(name))
