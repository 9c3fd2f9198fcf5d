"""README.md and docs/ are right: each command in them runs, each name exists, each message is one that is printed."""

import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
import streamlit.web.server

from pipeline.local_stack.kafka_server import TOOLS
from pipeline.metrics import ConsumerMetrics, ProducerMetrics
from pipeline.settings import OWN_VARIABLES, read_settings
from pipeline.trade import COLUMNS, decode
from tests.conftest import RunScript
from tests.containers import (
    COMPOSE,
    POSTGRES_PROGRAMS,
    SERVICES,
    run_kafka_tool,
    run_postgres_program,
)
from tests.messages import trade
from tests.script import ROOT, Script, environment_of
from tests.services import Kafka, KafkaClient, Postgres, eventually, free_port
from tests.test_contract import CONTRACT

README = (ROOT / "README.md").read_text()
PAGES = README + "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


@dataclass
class Command:
    """One line of a shell block: `NAME=value program word … < input`."""

    line: str
    variables: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    input: Path | None = None

    def __post_init__(self) -> None:
        words = shlex.split(self.line)
        if "<" in words:
            self.input = ROOT / words[-1]
            words = words[: words.index("<")]
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            self.variables[name] = value
        self.words = words

    @property
    def options(self) -> list[str]:
        return [word for word in self.words if word.startswith("--")]


def commands(*program: str) -> list[Command]:
    """Return the commands of the shell blocks that begin with these words, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGES, re.MULTILINE | re.DOTALL)
    every = [Command(line) for block in blocks for line in block.splitlines()]
    return [command for command in every if tuple(command.words[: len(program)]) == program]


def table_after(heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without the header row."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGES, flags=re.MULTILINE)[1]
    rows = re.findall(r"^\|(.+)\|$", re.split(r"^#", section, flags=re.MULTILINE)[0], re.MULTILINE)
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


# -- commands


def test_every_command_is_of_a_kind_that_is_tried_here() -> None:
    kinds = [
        ("make",),
        ("python",),
        ("python3", "-m", "venv"),
        (".",),
        ("pip", "install"),
        ("streamlit", "run"),
        ("psql",),
    ]
    tried = [
        command.line for kind in (*kinds, ("docker", "compose"), ("docker", "exec")) for command in commands(*kind)
    ]
    assert sorted(tried) == sorted(command.line for command in commands())
    assert len(tried) > 30


@pytest.mark.parametrize("command", commands("make"), ids=lambda command: str(command.line))
def test_make_has_the_target(command: Command) -> None:
    [target] = command.words[1:]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_environment_is_made_from_files_that_are_here() -> None:
    [made], [activated] = commands("python3", "-m", "venv"), commands(".")
    assert activated.words[1] == f"{made.words[-1]}/bin/activate"
    installed = [command.words[-1] for command in commands("pip", "install", "-r")]
    assert installed == ["requirements.txt", "requirements-local.txt"]


def scripts() -> list[Command]:
    """Return the commands that run our own scripts; Kafka's tools have their own test."""
    return [command for command in commands("python") if not command.words[2:] or command.words[2] not in TOOLS]


def script_of(command: Command) -> list[str]:
    return command.words[1:3] if command.words[1] == "-m" else command.words[1:2]


@pytest.mark.parametrize("script", sorted({" ".join(script_of(command)) for command in scripts()}))
def test_a_script_has_the_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the handlers are pytest's
    monkeypatch.setattr("sys.argv", [script.split()[-1], "--help"])
    module = script.removeprefix("-m ")
    monkeypatch.delitem(sys.modules, module, raising=False)
    execute = partial(runpy.run_module, module, alter_sys=True) if module != script else partial(runpy.run_path, script)
    with pytest.raises(SystemExit) as end:  # in this process, which has imported most of it already
        execute(run_name="__main__")
    assert end.value.code == 0
    said = capsys.readouterr().out
    for command in scripts():
        if script_of(command) == script.split():
            assert all(option in said for option in command.options), command


def makes_trades() -> list[Command]:
    """Return the commands of the producer that need no file."""
    return [command for command in commands("python", "producer.py") if "--replay" not in command.words]


@pytest.mark.parametrize("command", makes_trades(), ids=lambda command: str(command.line))
def test_the_producer_runs(command: Command, run_script: RunScript) -> None:
    few = ["1000" if word == "1000000" else word for word in command.words[1:]]
    script = run_script(*few, **command.variables)
    script.wait_for_line("📤" if "max" not in few else "acknowledged")
    if "--count" not in few:
        script.process.send_signal(signal.SIGINT)
    assert script.wait() == 0
    assert script.stderr == ""


def test_the_consumer_runs_and_reads_from_the_beginning(run_script: RunScript, broker: KafkaClient, topic: str) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert "`python consumer.py --from-beginning`" in PAGES
    script = run_script("consumer.py", "--from-beginning")
    script.wait_for_line("🟢 Consumer started. Waiting for trades...")
    script.wait_for_line("📥")
    assert script.stop() == 0


@pytest.mark.parametrize("command", commands("streamlit", "run"), ids=lambda command: str(command.line))
def test_the_page_starts(command: Command, run_script: RunScript) -> None:
    port = str(free_port())
    script = run_script("-m", *command.words, STREAMLIT_SERVER_PORT=port)
    script.wait_for_line(f":{port}")
    with urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=10) as answer:
        assert answer.status == 200
    assert script.stop() == 0


@pytest.mark.parametrize("command", commands("docker", "compose"), ids=lambda command: str(command.line))
def test_docker_compose_knows_the_profile_and_the_service(command: Command) -> None:
    words = iter(command.words[2:])
    rest = []
    for word in words:
        if word == "--profile":
            assert next(words) in {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
        elif word == "--scale":
            service, _, number = next(words).partition("=")
            assert "container_name" not in SERVICES[service]
            assert int(number) <= int(command.variables["KAFKA_TOPIC_PARTITIONS"])
        else:
            rest.append(word)
    assert rest in (["up", "-d"], ["logs", "-f"], ["down"])


def in_container(command: Command) -> tuple[str, list[str]]:
    """Return the container of a `docker exec` and the command that runs in it."""
    _, _, mode, container, *words = command.words
    assert mode == ("-i" if command.input else "-it")
    assert container in {service.get("container_name") for service in SERVICES.values()}
    return container, words


def test_the_commands_in_the_database_run_in_their_order() -> None:
    ran = 0
    with Postgres() as server:
        server.database.query("DROP TABLE trades")  # as if it had never been created
        for container, words, command in [(*in_container(command), command) for command in commands("docker", "exec")]:
            if container != "postgres":
                continue
            assert words[0] in POSTGRES_PROGRAMS
            text = command.input.read_text() if command.input else None
            done = run_postgres_program(words, server.url, text)
            assert done.returncode == 0, done.stdout
            assert "ERROR" not in done.stdout
            ran += 1
        assert server.database.count() == 0
    assert ran >= 5


def kafka_tools(container: bool) -> Iterator[list[str]]:
    """Yield the commands of Kafka's own tools, run in the container or through local_stack.py."""
    for command in commands(*(("docker", "exec") if container else ("python", "local_stack.py"))):
        if container and in_container(command)[0] == "kafka":
            yield in_container(command)[1]
        elif not container and len(command.words) > 2:
            yield command.words[2:]


def test_the_commands_in_kafka_run_in_their_order(own_broker: Kafka) -> None:
    """Without Docker, the commands are the same ones, and one more; `local_stack.py` adds the broker's address."""
    printed, without_docker = "", [*kafka_tools(container=False)]
    in_docker = [" ".join(words) for words in kafka_tools(container=True)]
    for words in without_docker:
        as_in_docker = [words[0], "--bootstrap-server localhost:9092", *words[1:]]
        assert " ".join(as_in_docker) in in_docker or words[0] == "kafka-configs"
    for words in kafka_tools(container=True):
        if "kafka-console-consumer" in words:
            own_broker.produce("orders", [trade() for _ in range(5)])
        if "kafka-consumer-groups" in words:
            consume_once(own_broker)
        done = run_kafka_tool(words, own_broker.bootstrap_servers)
        assert done.returncode == 0, done.stdout
        printed += done.stdout
    assert printed.count('"trade_id"') == 5
    assert re.search(r"^trades-consumer-group-v2 +orders +0 ", printed, re.MULTILINE)
    assert own_broker.partitions("orders") == 6
    [configure] = [words for words in without_docker if words[0] == "kafka-configs"]
    assert run_local_tool(configure, own_broker.bootstrap_servers).returncode == 0


def run_local_tool(words: list[str], bootstrap_servers: str) -> subprocess.CompletedProcess[str]:
    """Run `python local_stack.py kafka-topics …` on another broker."""
    environment = environment_of(bootstrap_servers, "", "orders", "nobody")
    command = [sys.executable, "local_stack.py", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def consume_once(broker: KafkaClient) -> None:
    """Let the consumer join its group and store the five messages."""
    with Postgres() as server:
        group = read_settings({}).group_id
        script = Script(
            ["consumer.py", "--from-beginning"], environment_of(broker.bootstrap_servers, server.url, "orders", group)
        )
        try:
            eventually(lambda: server.database.count() == 5)
            assert script.stop() == 0
        finally:
            script.kill()


def test_every_command_in_a_container_is_one_of_its_programs() -> None:
    for command in commands("docker", "exec"):
        container, [program, *_] = in_container(command)
        assert program in {"kafka": tuple(TOOLS), "postgres": POSTGRES_PROGRAMS}[container]


# -- names and values


def test_the_event_is_one_that_the_consumer_takes() -> None:
    [event] = re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert decode(event.encode())
    assert tuple(json.loads(event)) == COLUMNS


def test_the_table_of_the_event_is_the_contract() -> None:
    kinds = {str: "string", float: "number", int: "integer"}
    rows = [(name, kind, re.findall("`.+?`", column)[0]) for name, kind, column, _ in table_after("The event")]
    assert rows == [(f"`{name}`", kinds[kind], f"`{column}`") for name, (column, kind) in CONTRACT.items()]


def test_the_settings_are_those_that_are_read() -> None:
    defaults = {name.strip("`"): default.strip("`") for name, default, _ in table_after("Settings")}
    settings = read_settings({})
    assert defaults["KAFKA_BOOTSTRAP_SERVERS"] == settings.bootstrap_servers
    assert defaults["KAFKA_TOPIC"] == settings.topic
    assert defaults["KAFKA_GROUP_ID"] == settings.group_id
    assert defaults["KAFKA_AUTO_OFFSET_RESET"] == settings.auto_offset_reset
    assert defaults["KAFKA_TOPIC_PARTITIONS"] == str(settings.topic_partitions)
    assert defaults["DATABASE_URL"] == settings.database_url
    assert set(defaults) > OWN_VARIABLES
    read = set(re.findall(r"""environ(?:ment)?\.get\(\s*"(\w+)\"""", source()))
    assert read <= set(defaults), "a variable that the README does not name"


def test_the_variables_in_commands_are_known() -> None:
    ours = OWN_VARIABLES | {name.strip("`") for name, *_ in table_after("Settings")}
    for command in commands():
        for name, value in command.variables.items():
            assert name in ours or name.startswith("KAFKA_")
            read_settings({name: value})


def source() -> str:
    """Return the source of everything that prints messages, with texts split over several lines joined."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "pipeline").rglob("*.py"), ROOT / "Makefile"]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in paths))


def test_the_metrics_are_those_that_are_served() -> None:
    served: set[tuple[str, str]] = set()
    for script, metrics in (("producer", ProducerMetrics(lambda: 0)), ("consumer", ConsumerMetrics(lambda: True))):
        for family in metrics.registry.collect():
            if family.name.startswith("trades_"):
                served.add((family.name + ("_total" if family.type == "counter" else ""), script))
    assert {(name.strip("`"), script) for name, script, _ in table_after("Metrics")} == served


def messages() -> list[str]:
    return [message.strip("`") for message, _ in table_after("Troubleshooting")]


# Messages of make, Python and Docker. The rest are ours, or Streamlit's.
SAID_BY_OTHERS = {
    "make: *** [Makefile:…: run] Error 130",
    "ModuleNotFoundError: No module named 'confluent_kafka'",
    "Bind for 127.0.0.1:… failed: port is already allocated",
}


@pytest.mark.parametrize("message", [message for message in messages() if message not in SAID_BY_OTHERS])
def test_a_message_is_one_that_is_said(message: str) -> None:
    streamlits = "\n".join(path.read_text() for path in Path(streamlit.web.server.__file__).parent.rglob("*.py"))
    said = (source() + streamlits).replace("Address already in use", "")
    parts = [part for part in message.replace("Address already in use", "…").split("…") if part.strip(" .,:()")]
    pattern = r"[^\n]{0,80}?".join(re.escape(part.strip()) for part in parts)
    assert re.search(pattern, said), message


def test_what_others_say_is_in_the_table() -> None:
    assert set(messages()) > SAID_BY_OTHERS


def test_the_promises_are_marked_in_the_consumer() -> None:
    consumer = (ROOT / "consumer.py").read_text()
    docstring, code = consumer.split('"""', 2)[1:]
    for mark in re.findall(r"`(\[\d\])`", README.split("## What is promised")[1]):
        assert mark in docstring
        assert mark in code


@pytest.mark.parametrize("page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: str(page.name))
def test_every_heading_and_file_that_is_linked_to_is_there(page: Path) -> None:
    for link, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles], heading
    for name in re.findall(r"`((?:pipeline|sql|tests|benchmarks|docs|images)/[\w./]*)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_the_readme_is_a_shop_window() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 10_000


# -- the tree


def tree() -> Iterator[str]:
    """Yield every path in the README's tree."""
    block = re.findall(r"^```text\n(.*?)^```", README.split("## How a trade flows")[1], re.MULTILINE | re.DOTALL)[0]
    folder = ""
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0]
        if not line.startswith(" "):
            folder = names if names.endswith("/") else ""
        yield from (folder + name if line.startswith(" ") else name for name in names.split(", "))


def test_the_tree_is_the_one_that_is_here() -> None:
    listed = set(tree())
    for path in listed:
        assert (ROOT / path).exists(), path
        assert (ROOT / path).is_dir() == path.endswith("/"), path
    expected = {path.name for path in ROOT.glob("*.py")} | {"Makefile", "Procfile", "Dockerfile", "docker-compose.yml"}
    shared = [path for path in (ROOT / "pipeline").iterdir() if not path.name.startswith("__")]
    expected |= {f"pipeline/{path.name}" + ("/" if path.is_dir() else "") for path in shared}
    assert expected <= listed, expected - listed


def test_compose_and_the_readme_name_the_same_project() -> None:
    assert COMPOSE["name"] == re.findall(r'^name = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
