"""Regenerate lock files of jars: `make lock`.

    python -m tests.lock_jars pipeline/local_stack/kafka.lock

A lock file begins with the Maven coordinates it is generated from, one `# from` line each; `alone` after them leaves
out that jar's dependencies. Then comes one line per jar: its coordinates, SHA-256 and size in bytes.
"""

import hashlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from jgo.maven import MavenContext


def write_lock(lock: Path) -> None:
    head = [line for line in lock.read_text().splitlines() if line.startswith("#")]
    roots = [line.split()[2:] for line in head if line.startswith("# from ")]
    with TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache))
        alone = [context.create_dependency(root) for root, *mark in roots if mark == ["alone"]]
        given = [context.create_dependency(root) for root, *mark in roots if not mark]
        found, depended_on = context.resolver.resolve(given)
        lines = set()
        for dependency in (*alone, *found, *depended_on):
            data = dependency.artifact.resolve().read_bytes()
            coordinates = f"{dependency.groupId}:{dependency.artifactId}:{dependency.version}"
            lines.add(f"{coordinates} {hashlib.sha256(data).hexdigest()} {len(data)}")
    lock.write_text("\n".join([*head, *sorted(lines)]) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_lock(Path(name))
