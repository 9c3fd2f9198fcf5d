"""docker-compose.yml and Dockerfile, tested for real as far as that is possible without a Docker engine."""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import jsonschema
import psycopg2
import pytest

from pipeline.local_stack.kafka_server import CLUSTER_ID, KafkaServer
from pipeline.local_stack.postgres_server import OPTIONS
from pipeline.local_stack.server import Address
from pipeline.postgres import table_problem
from pipeline.settings import DEFAULT_DATABASE_URL, read_settings
from tests.conftest import RunScript
from tests.containers import (
    COMPOSE,
    SERVICES,
    environment_in_container,
    interpolated,
    run_kafka_tool,
    run_postgres_program,
)
from tests.script import ROOT
from tests.services import Kafka, Postgres, eventually, free_port

INFRASTRUCTURE = {"kafka", "postgres", "topic"}
SCRIPTS = {"producer", "consumer", "dashboard"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


# -- what the file says


def test_it_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).parent / "compose" / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_without_a_profile_it_is_infrastructure_only() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == INFRASTRUCTURE
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["app"]} == SCRIPTS


def test_docker_exec_finds_its_containers_and_a_script_can_be_scaled() -> None:
    named = {name: service["container_name"] for name, service in SERVICES.items() if "container_name" in service}
    assert named == {"kafka": "kafka", "postgres": "postgres"}


def test_every_port_is_published_on_the_loopback_address_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:5432:5432", "127.0.0.1:8501:8501", "127.0.0.1:9092:9092"]


def test_kafka_keeps_what_it_keeps_without_docker() -> None:
    """By size alone: Kafka's default would delete trades after a week, stored or not."""
    environment, ours = SERVICES["kafka"]["environment"], KafkaServer(ROOT, Address("localhost", 9092)).properties()
    for name in ("log.retention.ms", "log.retention.bytes", "log.segment.bytes", "offsets.retention.minutes"):
        assert environment[f"KAFKA_{name.replace('.', '_').upper()}"] == ours[name]


def test_every_script_runs_the_code_that_is_here() -> None:
    assert {SERVICES[name]["pull_policy"] for name in SCRIPTS} == {"build"}


def test_every_image_is_pinned_to_one_release() -> None:
    images = [service["image"] for service in SERVICES.values()] + re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(re.search(r":\d+\.\d+(\.\d+)?(-slim-\w+)?$", image) for image in images), images


def test_who_goes_on_running_has_a_health_check_and_waits_for_those_it_needs() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"topic"}
    waits = {
        name: {needed: how["condition"] for needed, how in service["depends_on"].items()}
        for name, service in SERVICES.items()
        if "depends_on" in service
    }
    kafka = {"kafka": "service_healthy", "topic": "service_completed_successfully"}
    database = {"postgres": "service_healthy"}
    assert waits == {
        "topic": {"kafka": "service_healthy"},
        "producer": kafka,
        "consumer": kafka | database,
        "dashboard": database,
    }


def test_every_named_volume_is_declared_and_used_where_the_image_keeps_its_data() -> None:
    mounted = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    places = {source: target for source, target, *_ in mounted}
    assert places == {
        "kafka-data": "/var/lib/kafka/data",
        "postgres-data": "/var/lib/postgresql",  # since version 18 of the image; it was …/data before
        "./sql": "/docker-entrypoint-initdb.d",
    }
    assert set(COMPOSE["volumes"]) == {"kafka-data", "postgres-data"}
    assert SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"] == places["kafka-data"]


# -- what the scripts read of it


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_script_in_a_container_finds_kafka_and_postgres(script: str) -> None:
    settings = read_settings(environment_in_container(script))
    assert f"//{settings.bootstrap_servers}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings.bootstrap_servers.partition(":")[0] in SERVICES
    assert_is_the_database_of_compose(settings.database_url, host="postgres")
    assert settings.kafka == {"bootstrap.servers": settings.bootstrap_servers}
    defaults = read_settings({})
    assert (settings.topic, settings.group_id) == (defaults.topic, defaults.group_id)


def test_a_script_on_this_machine_finds_them_without_a_setting() -> None:
    settings = read_settings({})
    assert f"//{settings.bootstrap_servers}," in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert_is_the_database_of_compose(DEFAULT_DATABASE_URL, host="localhost")


def assert_is_the_database_of_compose(url: str, host: str) -> None:
    parts, variables = urlsplit(url), SERVICES["postgres"]["environment"]
    assert (parts.hostname, parts.port) == (host, 5432)
    assert (parts.username, parts.password, parts.path.lstrip("/")) == (
        variables["POSTGRES_USER"],
        variables["POSTGRES_PASSWORD"],
        variables["POSTGRES_DB"],
    )


@pytest.mark.parametrize("partitions", ["1", "6"])
def test_one_variable_sets_the_partitions_for_the_topic_and_the_scripts(partitions: str) -> None:
    assert interpolated(SERVICES["topic"]["command"][-1], {"KAFKA_TOPIC_PARTITIONS": partitions}) == partitions
    in_container = environment_in_container("producer", KAFKA_TOPIC_PARTITIONS=partitions)
    assert read_settings(in_container).topic_partitions == int(partitions)


def test_postgres_has_the_options_of_the_local_stack() -> None:
    assert options_of_postgres().items() < OPTIONS.items()


def options_of_postgres() -> dict[str, str]:
    return dict(word.split("=", 1) for word in SERVICES["postgres"]["command"] if "=" in word)


# -- what the containers run


def test_postgres_starts_with_its_options_and_its_health_check_tells() -> None:
    check = SERVICES["postgres"]["healthcheck"]["test"][1:]
    with Postgres(**options_of_postgres()) as server:
        assert run_postgres_program(check, server.url).returncode == 0
        assert server.database.query("SHOW max_wal_size") == [("4GB",)]
        server.stop()
        assert run_postgres_program(check, server.url).returncode != 0


def test_the_init_folder_makes_the_table(postgres: Postgres) -> None:
    database = postgres.fresh_database()
    database.query("DROP TABLE trades")
    # The image's entrypoint runs these with psql in name order, and skips names without this suffix.
    for path in sorted((ROOT / "sql").iterdir()):
        assert path.is_file() == path.name.endswith(".sql")
        if path.is_file():
            in_container = ["psql", "-v", "ON_ERROR_STOP=1", "--username=kafka_user", "--no-password", "--no-psqlrc"]
            name = urlsplit(database.url).path.lstrip("/")
            done = run_postgres_program([*in_container, f"--dbname={name}"], database.url, path.read_text())
            assert done.returncode == 0, done.stdout
    with closing(psycopg2.connect(database.url)) as connection:
        connection.cursor().execute((ROOT / "sql" / "temporary" / "incoming.sql").read_text())
        connection.commit()
        assert table_problem(connection) is None
    postgres.drop_database(database)


class ComposeKafka(Kafka):
    """A broker with the settings that Compose gives its container, except for the addresses and the folder."""

    memory = ("-Xmx1g",)  # as in Kafka's own image

    def properties(self) -> dict[str, object]:
        # As the image does: KAFKA_NODE_ID=1 becomes node.id=1.
        properties: dict[str, object] = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): value
            for name, value in environment_in_container("kafka").items()
            if name.startswith("KAFKA_")
        }
        ports = {"9092": self.address.port, "29092": free_port(), "29093": self.voters[self.node_id]}
        for name, value in properties.items():
            if name.endswith(("listeners", "voters")):
                local = re.sub(r"(?<=[/@])(0\.0\.0\.0|kafka|localhost)(?=:)", "127.0.0.1", str(value))
                properties[name] = re.sub(r"\d+(?=,|$)", lambda found: str(ports[found[0]]), local)
        return properties | {"log.dirs": self.data / "topics"}


def test_kafka_starts_with_its_settings_its_topic_is_created_and_its_health_check_tells() -> None:
    assert SERVICES["kafka"]["environment"]["CLUSTER_ID"] == CLUSTER_ID
    check = SERVICES["kafka"]["healthcheck"]["test"][1:]
    create = [interpolated(word, {"KAFKA_TOPIC_PARTITIONS": "3"}) for word in SERVICES["topic"]["command"]]
    with ComposeKafka() as server:
        port = server.address.port
        in_container = [word.replace("/9092", f"/{port}") for word in check]
        assert subprocess.run(in_container).returncode == 0
        for _ in range(2):  # the second time, the topic exists
            done = run_kafka_tool(create, server.bootstrap_servers)
            assert done.returncode == 0, done.stdout
        assert server.partitions("orders") == 3
        server.stop()
        assert subprocess.run(in_container, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.parametrize("script", ["producer", "consumer"])
def test_the_command_of_a_script_runs_and_its_health_check_tells(script: str, run_script: RunScript) -> None:
    port = str(free_port())
    program, *words = [word.replace("0.0.0.0:9100", port) for word in SERVICES[script]["command"]]
    checker, *check = [word.replace("9100", port) for word in SERVICES[script]["healthcheck"]["test"][1:]]
    assert program == checker == "python"
    process = run_script(*words)
    eventually(lambda: b"trades_" in answer_of(f"http://127.0.0.1:{port}/metrics"))
    assert run_script(*check).wait() == 0
    assert process.stop() == 0
    assert run_script(*check).wait() != 0


def answer_of(url: str) -> bytes:
    try:
        with urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except URLError:
        return b""


# -- what is in the image


def copied() -> dict[str, str]:
    """Return what the Dockerfile copies: path -> destination."""
    pairs: dict[str, str] = {}
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = line.split()
        pairs |= dict.fromkeys(sources, target)
    return pairs


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the contents of the image's /app."""
    folder = tmp_path_factory.mktemp("image")
    for source, target in copied().items():
        if source.endswith("/"):
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / target)
    yield folder
    shutil.rmtree(folder)


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied())
    assert "*" in lines


def test_every_module_that_a_script_imports_is_in_the_image(image: Path) -> None:
    waiting, seen = [image / f"{script}.py" for script in SCRIPTS], set()
    while waiting:
        path = waiting.pop()
        assert path.is_file(), path
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
                module = image / (node.module or "").replace(".", "/")
                imported = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
                waiting += [imported] if imported not in seen and node.module != "pipeline" else []
    assert len(seen) > len(SCRIPTS)


def test_the_image_runs_as_nobody_special_on_a_python_that_is_supported() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] not in ("root", "0")
    assert re.search(r"^FROM python:3\.(11|12|13)\.\d+-slim-", DOCKERFILE, re.MULTILINE)


def test_every_requirement_is_pinned() -> None:
    requirements = (ROOT / "requirements.txt").read_text().replace("\\\n", "").splitlines()
    pinned = re.compile(r"[a-z0-9-]+==[\w.]+( ; .+)?( +--hash=sha256:[0-9a-f]{64})+")
    assert all(pinned.fullmatch(line.strip()) for line in requirements if not line.lstrip().startswith("#"))


def environment_of_the_image(folder: Path) -> Path:
    """Create an environment with the packages of requirements.txt and no others; return its bin folder.

    The packages are links to those of the Python that runs this test: pip would take a minute.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE):
        with suppress(PackageNotFoundError):  # a package for another platform
            package = distribution(name)
            for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                with suppress(FileExistsError):
                    (packages / top).symlink_to(str(package.locate_file(top)))
    return folder / "bin"


def test_the_image_has_every_package_that_a_script_needs(
    image: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    assert re.search(r"^RUN pip install .*-r requirements\.txt$", DOCKERFILE, re.MULTILINE)
    programs = environment_of_the_image(tmp_path / "venv")
    for script in ("producer.py", "consumer.py"):
        done = subprocess.run([programs / "python", script, "--help"], cwd=image, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    port = str(free_port())
    command = [programs / "python", "-m", *SERVICES["dashboard"]["command"], f"--server.port={port}"]
    check = [word.replace("8501", port) for word in SERVICES["dashboard"]["healthcheck"]["test"][2:]]

    def healthy() -> bool:
        return subprocess.run([programs / "python", *check], capture_output=True).returncode == 0

    page = subprocess.Popen(command, cwd=image, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(healthy)
    finally:
        page.send_signal(signal.SIGTERM)
        page.wait(10)
    assert not healthy()
