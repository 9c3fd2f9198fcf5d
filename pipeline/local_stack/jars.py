"""Jars, pinned in a .lock file by coordinates and checksum, and downloaded once into .local/jars/."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.command import first_line
from pipeline.local_stack.server import locked
from pipeline.stop import stop_requested
from pipeline.user_error import UserError

JARS = (Path(__file__).parents[2] / ".local" / "jars").resolve()
SECONDS_OF_SILENCE = 5  # after which a download fails; a stop may have to wait this long


class Jar(NamedTuple):
    """A line of a lock file."""

    coordinates: str  # group:artifact:version
    sha256: str
    size: int  # bytes

    @property
    def path(self) -> Path:
        """Where the complete jar is kept; an unfinished download has another name."""
        _, artifact, version = self.coordinates.split(":")
        return JARS / f"{artifact}-{version}.jar"


def read_lock(lock: Path) -> list[Jar]:
    """Return the jars of a lock file."""
    lines = [line.split() for line in lock.read_text().splitlines() if not line.startswith("#")]
    return [Jar(coordinates, sha256, int(size)) for coordinates, sha256, size in lines]


def jars(lock: Path, title: str) -> list[Path]:
    """Return the jars of a lock file; download missing ones unless the user asks to stop. Raises `UserError`."""
    wanted = read_lock(lock)
    if not all(jar.path.exists() for jar in wanted):
        with locked(JARS):  # another process may have downloaded them meanwhile
            if missing := [jar for jar in wanted if not jar.path.exists()]:
                _download(missing, title)
    return [jar.path for jar in wanted]


def _download(missing: list[Jar], title: str) -> None:
    done, total = 0, sum(jar.size for jar in missing)
    print(f"Downloading {title}, once: {total / 1e6:.0f} MB ...", flush=True)
    with ThreadPoolExecutor(4) as executor:
        try:
            for jar, _ in zip(missing, executor.map(_fetch, missing), strict=True):
                if (done + jar.size) * 5 // total > done * 5 // total:  # report each fifth
                    print(f"  {(done + jar.size) / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
                done += jar.size
        except OSError as error:  # which includes the exceptions of requests
            executor.shutdown(cancel_futures=True)
            if stop_requested():
                return
            raise UserError(
                f"{title} could not be downloaded: run this again when the network is there (finished jars are "
                f"kept), or use Docker: docker compose up -d ({type(error).__name__}: {first_line(error)[:200]})"
            ) from None


def _fetch(jar: Jar) -> None:
    """Download one jar. Raises `OSError`, in particular `InterruptedError` if the user asks to stop."""
    import requests  # imported here because later starts need neither
    from jgo.constants import MAVEN_CENTRAL_URL

    group, artifact, version = jar.coordinates.split(":")
    url = "/".join([MAVEN_CENTRAL_URL, *group.split("."), artifact, version, jar.path.name])
    unfinished, digest = jar.path.with_suffix(".unfinished"), hashlib.sha256()
    with requests.get(url, stream=True, timeout=SECONDS_OF_SILENCE) as response, unfinished.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(1 << 16):
            if stop_requested():
                raise InterruptedError
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != jar.sha256:
        raise OSError(f"{jar.path.name} does not match its checksum")
    unfinished.rename(jar.path)
