"""The replay of dead letters, as a process on a real broker: what it lists, what it replays, and how often."""

import re
from collections.abc import Callable

import pytest
from confluent_kafka import KafkaException, Producer

from pipeline.consumer.dead_letters import DeadLetters
from pipeline.maintenance.replay import MARK, send, transactional_producer, unreplayed
from pipeline.settings import read_settings
from pipeline.trade import InvalidTrade
from tests.conftest import RunScript
from tests.services import KafkaClient

Command = Callable[..., str]

REASONS = {
    b"not JSON": "JSON is malformed: invalid character (byte 1)",
    b"dear": "price has more than two decimals: 1.005",
    b"dearer": "price has more than two decimals: 2.005",
    b"\x1b[2J": "\x1b[2J\nand a second line",
}


@pytest.fixture
def letters(broker: KafkaClient, topic: str, environment: dict[str, str]) -> None:
    """Four messages that became dead letters, with their keys, headers and reasons."""
    broker.create_topic(topic, partitions=2)
    broker.create_topic(f"{topic}.dlq")
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    for value in REASONS:
        producer.produce(topic, value, b"\xfe key", partition=1, headers={"trace": b"7"})
    producer.flush(10)
    publish(broker, topic, environment)


def publish(broker: KafkaClient, topic: str, environment: dict[str, str]) -> None:
    """Make a dead letter of each message in the topic."""
    dead_letters = DeadLetters(read_settings(environment))
    messages = broker.read(topic)
    acknowledged: list[bool] = []
    for message in messages:
        reason = InvalidTrade(REASONS[message.value() or b""])
        dead_letters.publish(message, reason, lambda: acknowledged.append(True))
    while len(acknowledged) < len(messages):
        dead_letters.poll(30)


@pytest.fixture
def command(run_script: RunScript) -> Command:
    """Run the command to its end; return what it printed."""

    def run(*words: str) -> str:
        script = run_script("-m", "pipeline.maintenance.replay", *words)
        assert script.wait() == 0, script.stderr
        assert not script.stderr
        return script.stdout

    return run


def values(broker: KafkaClient, topic: str) -> list[bytes]:
    return sorted(message.value() or b"" for message in broker.read(topic))


@pytest.mark.usefixtures("letters")
def test_they_are_listed_with_place_origin_reason_and_first_bytes(command: Command, topic: str) -> None:
    *listed, total, first, second, third = command().splitlines()
    assert listed == [
        f"0:0  from {topic} 1:0  JSON is malformed: invalid character (byte 1)  b'not JSON'",
        f"0:1  from {topic} 1:1  price has more than two decimals: 1.005  b'dear'",
        f"0:2  from {topic} 1:2  price has more than two decimals: 2.005  b'dearer'",
        f"0:3  from {topic} 1:3  �[2J  b'\\x1b[2J'",
    ]
    assert total == "4 dead letters not replayed yet, by reason:"
    assert first.split(maxsplit=1) == ["2", "price has more than two decimals"]
    assert {second.split(maxsplit=1)[1], third.split(maxsplit=1)[1]} == {"JSON is malformed", "�[2J"}
    assert command("--reason", "2.005").startswith("0:2")


@pytest.mark.usefixtures("letters")
def test_a_replay_leaves_key_value_and_headers_as_they_came(broker: KafkaClient, command: Command, topic: str) -> None:
    assert command("--replay", "0:1") == f"1 dead letters replayed to {topic}."
    [*_, replayed] = sorted(broker.read(topic), key=lambda message: message.timestamp())
    assert (replayed.value(), replayed.key(), replayed.headers()) == (b"dear", b"\xfe key", [("trace", b"7")])
    assert len(broker.read(topic)) == len(REASONS) + 1


@pytest.mark.usefixtures("letters")
def test_nothing_is_replayed_twice_by_running_it_twice(broker: KafkaClient, command: Command, topic: str) -> None:
    assert command("--replay", "--reason", "two decimals").startswith("2 dead")
    assert command("--replay", "--reason", "two decimals").startswith("0 dead")
    assert "2 dead letters not replayed yet" in command()
    assert command("--replay", "--all").startswith("2 dead")
    assert command("--replay", "--all").startswith("0 dead")
    assert command() == "0 dead letters not replayed yet."
    assert values(broker, topic) == sorted([*REASONS, *REASONS])


@pytest.mark.usefixtures("letters")
def test_a_letter_that_comes_back_is_another_one(
    broker: KafkaClient, command: Command, topic: str, environment: dict[str, str]
) -> None:
    command("--replay", "--all")
    publish(broker, topic, environment)  # all eight, as the consumer would
    assert "8 dead letters not replayed yet" in command()


@pytest.mark.usefixtures("letters")
def test_a_message_that_looks_like_a_mark_hides_no_letter(
    broker: KafkaClient, command: Command, topic: str, environment: dict[str, str]
) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    producer.produce(topic, b"dear", headers={MARK: b"0:0"})
    producer.flush(10)
    publish(broker, topic, environment)
    assert "9 dead letters not replayed yet" in command()


@pytest.mark.usefixtures("letters")
def test_a_replay_that_another_overtakes_is_as_if_it_had_never_been(
    broker: KafkaClient, command: Command, topic: str, environment: dict[str, str]
) -> None:
    settings = read_settings(environment)
    slow = transactional_producer(settings)
    slow.begin_transaction()
    send(slow, settings, list(unreplayed(settings)))
    assert command("--replay", "--all").startswith("4 dead")
    with pytest.raises(KafkaException, match="FENCED"):
        slow.commit_transaction()
    assert values(broker, topic) == sorted([*REASONS, *REASONS])


def test_the_letter_that_kafka_refuses_is_the_one_that_is_named(
    broker: KafkaClient, topic: str, run_script: RunScript, command: Command
) -> None:
    broker.create_topic(topic)
    broker.create_topic(f"{topic}.dlq")
    broker.configure(f"{topic}.dlq", max_message_bytes="8000000")
    broker.produce(f"{topic}.dlq", [b"one", b"x" * 3_000_000, *(b"%d" % number for number in range(50))])
    broker.configure(topic, max_message_bytes="1000000")
    script = run_script("-m", "pipeline.maintenance.replay", "--replay", "--all")
    assert script.wait() == 1
    assert "Kafka rejected 0:1: " in script.stderr
    assert "too large" in script.stderr
    assert values(broker, topic) == []
    assert command("--replay", "0:0").startswith("1 dead")


def test_a_letter_that_somebody_else_wrote_without_a_reason_is_one(
    broker: KafkaClient, topic: str, command: Command
) -> None:
    broker.create_topic(topic)
    broker.create_topic(f"{topic}.dlq")
    broker.produce(f"{topic}.dlq", [b"by hand"])
    assert command().splitlines()[0] == "0:0  from ? ?:?  no reason is given  b'by hand'"
    assert command("--replay", "--all") == f"1 dead letters replayed to {topic}."
    assert values(broker, topic) == [b"by hand"]
    assert command().startswith("0 dead letters")


def test_without_a_dead_letter_topic_there_are_none(broker: KafkaClient, command: Command) -> None:
    assert command() == "0 dead letters not replayed yet."
    assert command("--replay", "--all").startswith("0 dead")


@pytest.mark.parametrize(
    ("words", "variables", "exit_code", "said"),
    [
        (["--replay"], {}, 2, "--replay what? Give places"),
        (["first"], {}, 2, "first: give a place as it is listed"),
        ([], {"KAFKA_TOPIC_PARTITIONS": "none"}, 2, "KAFKA_TOPIC_PARTITIONS=none"),
        ([], {"KAFKA_NO_SUCH_THING": "1"}, 2, "no.such.thing"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    run_script: RunScript, words: list[str], variables: dict[str, str], exit_code: int, said: str
) -> None:
    script = run_script("-m", "pipeline.maintenance.replay", *words, **variables)
    assert script.wait() == exit_code
    assert said in script.stderr
    assert len(script.stderr_lines) == 1


def test_a_stop_while_it_waits_for_the_broker(run_script: RunScript) -> None:
    script = run_script("-m", "pipeline.maintenance.replay", "--replay", "--all", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    script.wait_for_line("⏳ Waiting for Kafka")
    assert script.stop() == 0
    assert script.stdout == "Stopped before it started."


def test_the_help_teaches(command: Command) -> None:
    assert re.search(r"--replay --reason .*\n.*--replay --all", command("--help"))
