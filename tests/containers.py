"""Run what the containers of docker-compose.yml would run, without Docker: their programs, on the tests' servers."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.local_stack.kafka_server import TOOLS, java
from pipeline.local_stack.postgres_server import BINARIES
from tests.script import ROOT
from tests.services import PASSWORD

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

POSTGRES_PROGRAMS = ("psql", "pg_isready")


def interpolated(value: object, variables: Mapping[str, str]) -> str:
    """Return a value of the Compose file as Compose reads it: `${NAME:-default}` replaced."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], str(value))


def environment_in_container(service: str, **variables: str) -> dict[str, str]:
    """Return the environment that the service's container gets when Compose runs with these variables."""
    return {name: interpolated(value, variables) for name, value in SERVICES[service]["environment"].items()}


def run_kafka_tool(
    words: Sequence[str], bootstrap_servers: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run `kafka-topics …` as in the container `kafka`, but on another broker."""
    tool, *arguments = words
    addressed = [bootstrap_servers if word in ("localhost:9092", "kafka:29092") else word for word in arguments]
    return _run(java(TOOLS[tool], *addressed))


def run_postgres_program(
    words: Sequence[str], database_url: str, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `psql …` as in the container `postgres`, but on another server, with `text` on stdin."""
    program, *arguments = words
    assert program in POSTGRES_PROGRAMS
    port = urlsplit(database_url).port
    variables = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGPASSWORD": PASSWORD, "PAGER": "cat"}
    return _run([str(BINARIES / program), *arguments], os.environ | variables, text)


def _run(
    command: list[str], environment: Mapping[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        input=text or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
