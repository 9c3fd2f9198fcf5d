"""Dead letters on a real broker: the unchanged message, the reason with it, and a callback once Kafka has it."""

from functools import partial
from weakref import ref

import pytest
from confluent_kafka import Message

from pipeline.consumer import dead_letters
from pipeline.consumer.dead_letters import DeadLetters
from pipeline.reasons import MAX_REASON_LENGTH, reasons, size_of
from pipeline.settings import read_settings
from pipeline.trade import InvalidTrade, copy_rows
from tests.services import Kafka, KafkaClient, eventually


def test_a_dead_letter_is_its_message_and_the_reason(
    broker: KafkaClient, topic: str, environment: dict[str, str]
) -> None:
    broker.create_topic(topic)
    broker.create_topic(f"{topic}.dlq")
    broker.produce(topic, [b"good", b"\x00\xff bad"], key=b"\xfe key")
    message = broker.read(topic)[1]
    letters = DeadLetters(read_settings(environment))
    acknowledged: list[bool] = []
    letters.publish(message, InvalidTrade("é" * 2 * MAX_REASON_LENGTH), lambda: acknowledged.append(True))
    assert not acknowledged, "Kafka cannot have answered before it was asked"
    letters.poll(30)
    assert acknowledged == [True]
    [letter] = broker.read(f"{topic}.dlq")
    assert (letter.value(), letter.key()) == (b"\x00\xff bad", b"\xfe key")
    assert letter.timestamp() == message.timestamp()
    assert reasons(letter) == {
        "topic": topic,
        "partition": "0",
        "offset": "1",
        "exception.class.name": "pipeline.trade.InvalidTrade",
        "exception.message": "é" * MAX_REASON_LENGTH,
    }


def test_a_broker_that_is_away_is_waited_for(own_broker: Kafka, topic: str, environment: dict[str, str]) -> None:
    own_broker.create_topic(topic)
    own_broker.create_topic(f"{topic}.dlq")
    own_broker.produce(topic, [b"bad"])
    [message] = own_broker.read(topic)
    letters = DeadLetters(read_settings(environment | {"KAFKA_BOOTSTRAP_SERVERS": own_broker.bootstrap_servers}))
    acknowledged: list[bool] = []
    own_broker.stop()
    letters.publish(message, InvalidTrade("bad"), lambda: acknowledged.append(True))
    letters.poll(1)
    assert not acknowledged
    own_broker.start()

    def arrived() -> bool:
        letters.poll(0.1)
        return bool(acknowledged)

    eventually(arrived, timeout=60)
    assert [letter.value() for letter in own_broker.read(f"{topic}.dlq")] == [b"bad"]


def test_refused_letters_are_bounded_retried_and_forgotten(
    broker: KafkaClient, topic: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "MAX_OUTSTANDING", 2)
    monkeypatch.setattr(dead_letters, "SECONDS_BETWEEN_ATTEMPTS", (0.01, 0.1))
    broker.create_topic(topic)
    broker.create_topic(f"{topic}.dlq")
    broker.configure(f"{topic}.dlq", max_message_bytes="10")
    broker.produce(topic, [b"first", b"second"])
    letters = DeadLetters(read_settings(environment))
    acknowledged: list[bytes] = []
    for message in broker.read(topic):
        letters.publish(message, InvalidTrade("bad"), partial(acknowledged.append, message.value() or b""))
    assert letters.full

    def refused() -> bool:
        letters.poll(0.1)
        return bool(letters._refused)

    eventually(refused)
    assert letters.full
    assert not acknowledged
    letters.forget()
    assert not letters.full
    broker.configure(f"{topic}.dlq", max_message_bytes="1000000")
    broker.produce(topic, [b"third"])
    letters.publish(broker.read(topic)[2], InvalidTrade("bad"), partial(acknowledged.append, b"third"))
    eventually(lambda: letters.poll(0.1) or acknowledged == [b"third"])
    assert [letter.value() for letter in broker.read(f"{topic}.dlq")] == [b"third"]


class Chunk(list[bytes]):
    """Messages decoded together; a list cannot be referred to weakly."""


def test_a_letter_that_waits_keeps_nothing_else_in_memory() -> None:
    letters = DeadLetters(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}))

    def publish(chunk: Chunk) -> None:
        try:
            copy_rows(chunk)
        except InvalidTrade as reason:
            letters.publish(Message(value=chunk[0], headers=[("a", b"b")]), reason, lambda: None)

    chunk = Chunk([b"no trade"])
    kept = ref(chunk)
    publish(chunk)
    del chunk
    assert kept() is None
    assert letters.in_flight


def test_keys_and_headers_count() -> None:
    assert size_of(Message(value=b"123", key=b"12", headers=[("1", b"1234"), ("1", None)])) == 11
    assert size_of(Message(value=None, key=None)) == 0


def test_a_message_from_the_far_future_is_taken(broker: KafkaClient, topic: str, environment: dict[str, str]) -> None:
    broker.create_topic(f"{topic}.dlq")
    letters = DeadLetters(read_settings(environment))
    acknowledged: list[bool] = []
    letters.publish(
        Message(topic=topic, value=b"x", timestamp=(1, 4_000_000_000_000)),
        InvalidTrade("bad"),
        lambda: acknowledged.append(True),
    )

    def arrived() -> bool:
        letters.poll(0.1)
        return bool(acknowledged)

    eventually(arrived)


@pytest.mark.parametrize("made_again", [False, True], ids=["deleted", "made again"])
def test_a_topic_that_is_deleted_is_made_again(
    broker: KafkaClient, topic: str, environment: dict[str, str], made_again: bool
) -> None:
    dead_letter_topic = f"{topic}.dlq"
    broker.create_topic(topic)
    broker.create_topic(dead_letter_topic)
    broker.produce(topic, [b"before", b"after"])
    before, after = broker.read(topic)
    letters = DeadLetters(read_settings(environment | {"KAFKA_TOPIC_METADATA_PROPAGATION_MAX_MS": "0"}))
    acknowledged: list[str] = []

    def told() -> list[str]:
        letters.poll(0.1)
        return acknowledged

    letters.publish(before, InvalidTrade("bad"), partial(acknowledged.append, "before"))
    eventually(lambda: told() == ["before"])
    broker.delete_topic(dead_letter_topic)
    eventually(lambda: dead_letter_topic not in broker.topics())
    if made_again:
        broker.create_topic(dead_letter_topic)
    letters.publish(after, InvalidTrade("bad"), partial(acknowledged.append, "after"))
    eventually(lambda: told() == ["before", "after"])
    assert [letter.value() for letter in broker.read(dead_letter_topic)] == [b"after"]
