"""Where a group starts, decided against a real broker by consumers that share a group."""

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from pipeline import kafka
from pipeline.consumer.starting_offsets import StartingOffsets
from pipeline.settings import read_settings
from tests.messages import trade
from tests.services import KafkaClient, eventually, patiently

Start = Callable[..., dict[int, int] | None]


@pytest.fixture
def start(broker: KafkaClient, topic: str, environment: dict[str, str]) -> Iterator[Start]:
    """Decide a new member's starting offsets: {partition: offset}, or None while the partitions have to wait."""
    members: list[Consumer] = []
    broker.create_topic(f"{topic}.dlq")

    def start(*partitions: int, from_beginning: bool = False, **variables: str) -> dict[int, int] | None:
        settings = read_settings(environment | variables)
        member = Consumer(settings.kafka | {"group.id": settings.group_id, "enable.auto.commit": False, "log_level": 0})
        members.append(member)
        decide = StartingOffsets(member, settings, from_beginning)
        assigned = [TopicPartition(topic, number) for number in partitions]
        starts = None
        for _ in range(2):  # the first call commits new starting offsets
            starts = eventually(lambda: answered(decide, assigned))[0]
        return None if starts is None else {at.partition: at.offset for at in starts}

    yield start
    for member in members:
        member.close()


def answered(decide: StartingOffsets, assigned: list[TopicPartition]) -> list[list[TopicPartition] | None]:
    """Return the answer in a list, which is empty if Kafka cannot answer yet, for example while a coordinator moves."""
    try:
        return [decide.of(assigned)]
    except KafkaException as exception:
        if exception.args[0].code() != KafkaError.NOT_COORDINATOR:
            raise
        return []


def make_again(broker: KafkaClient, topic: str, partitions: int = 1) -> None:
    broker.delete_topic(topic)
    eventually(lambda: topic not in broker.topics())
    broker.create_topic(topic, partitions)


def test_latest_is_the_end_when_the_group_first_joined(
    broker: KafkaClient, topic: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade(), trade()])
    assert start(0) == {0: 2}
    assert "older messages skipped: 2 (--from-beginning reads them)" in capsys.readouterr().out
    broker.produce(topic, [trade()])
    assert start(0) == {0: 2}, "that was traded after the group joined"
    assert capsys.readouterr().out == ""


def test_earliest_is_the_oldest_trade(broker: KafkaClient, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0, KAFKA_AUTO_OFFSET_RESET="earliest") == {0: 0}


def test_from_the_beginning_rewinds_a_group(broker: KafkaClient, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}
    assert start(0, from_beginning=True) == {0: 0}
    assert start(0) == {0: 0}, "the new start is committed"


def test_one_member_starts_the_group_for_all(broker: KafkaClient, topic: str, start: Start) -> None:
    broker.create_topic(topic, partitions=3)
    for partition in range(3):
        broker.produce(topic, [trade()] * (partition + 1), partition=partition)
    assert start(1, 2) is None, "the member with partition 0 has not come yet"
    assert start(0) == {0: 1}
    broker.produce(topic, [trade()], partition=2)
    assert start(1, 2) == {1: 2, 2: 3}


def test_a_partition_added_later_starts_at_its_first_trade(broker: KafkaClient, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result()
    eventually(lambda: broker.partitions(topic) == 2)
    broker.produce(topic, [trade()], partition=1)
    assert start(0, 1) == {0: 1, 1: 0}


def test_a_partition_that_the_broker_has_not_heard_of_is_asked_for_again(
    broker: KafkaClient, topic: str, start: Start
) -> None:
    broker.create_topic(topic)
    start(0)
    with pytest.raises(KafkaException):
        start(0, 7)


def test_a_partition_whose_offset_expired_skips_nothing(
    broker: KafkaClient, topic: str, environment: dict[str, str], start: Start
) -> None:
    broker.create_topic(topic, partitions=2)
    broker.produce(topic, [trade()], partition=1)
    other = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": environment["KAFKA_GROUP_ID"]})
    patiently(lambda: other.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False))
    other.close()
    assert start(0, 1) == {0: 0, 1: 0}


def test_a_topic_made_again_between_two_runs_is_read_from_its_oldest_trade(
    broker: KafkaClient, topic: str, start: Start
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()] * 3)
    assert start(0) == {0: 3}
    make_again(broker, topic)
    broker.produce(topic, [trade()] * 5)
    assert start(0) == {0: 0}


def test_an_offset_of_the_topic_that_was_there_before_is_none(
    broker: KafkaClient, topic: str, environment: dict[str, str], start: Start
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()] * 5)
    late = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": environment["KAFKA_GROUP_ID"]})
    patiently(lambda: late.commit(offsets=[TopicPartition(topic, 0, 3, "topic=another")], asynchronous=False))
    assert start(0) == {0: 0}
    late.commit(offsets=[TopicPartition(topic, 0, 3)], asynchronous=False)  # as kafka-consumer-groups does
    assert start(0) == {0: 3}
    late.close()


def test_a_topic_made_again_is_noticed(
    broker: KafkaClient, topic: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_topic(topic)
    settings = read_settings(environment)
    member = Consumer(settings.kafka | {"group.id": settings.group_id, "enable.auto.commit": False})
    offsets = StartingOffsets(member, settings, from_beginning=False)
    assert not offsets.made_again(), "nothing was decided yet"
    offsets.of([TopicPartition(topic, 0)])
    monkeypatch.setattr(kafka, "SECONDS_BETWEEN_LOOKS", 0.0)
    for _ in range(100_000):
        assert not offsets.made_again()
    make_again(broker, topic)
    eventually(offsets.made_again, timeout=10)
    member.close()
