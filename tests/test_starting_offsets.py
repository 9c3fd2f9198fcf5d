"""Where a group starts, decided against a real broker by consumers that share a group."""

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from pipeline.consumer.starting_offsets import StartingOffsets
from pipeline.settings import read_settings
from tests.messages import trade
from tests.services import Kafka

Start = Callable[..., dict[int, int]]


@pytest.fixture
def start(broker: Kafka, topic: str, environment: dict[str, str]) -> Iterator[Start]:
    """Decide the starting offsets of partitions for a new member: {partition: offset}."""
    members: list[Consumer] = []

    def start(*partitions: int, from_beginning: bool = False, **variables: str) -> dict[int, int]:
        settings = read_settings(environment | variables)
        member = Consumer(settings.kafka | {"group.id": settings.group_id, "enable.auto.commit": False, "log_level": 0})
        members.append(member)
        decide = StartingOffsets(member, settings, from_beginning)
        return {at.partition: at.offset for at in decide.of([TopicPartition(topic, number) for number in partitions])}

    yield start
    for member in members:
        member.close()


def test_latest_is_the_end_when_the_group_first_joined(broker: Kafka, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}, "that was traded after the group joined"


def test_earliest_is_the_oldest_trade(broker: Kafka, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0, KAFKA_AUTO_OFFSET_RESET="earliest") == {0: 0}


def test_from_the_beginning_rewinds_a_group(broker: Kafka, topic: str, start: Start) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}
    assert start(0, from_beginning=True) == {0: 0}
    assert start(0) == {0: 0}, "the new start is committed"


def test_members_that_start_a_group_together_all_start_at_its_end(broker: Kafka, topic: str, start: Start) -> None:
    if not broker.keeps_topics:
        pytest.skip("the embedded broker keeps no metadata with an offset, so the second member starts at 0")
    broker.create_topic(topic, partitions=2)
    broker.produce(topic, [trade() for _ in range(10)], key=b"AAPL")
    broker.produce(topic, [trade() for _ in range(10)], key=b"MSFT")
    ends = {message.partition(): (message.offset() or 0) + 1 for message in broker.read(topic)}
    assert start(0) | start(1) == {0: ends.get(0, 0), 1: ends.get(1, 0)}


def test_a_partition_added_later_starts_at_its_first_trade(broker: Kafka, topic: str, start: Start) -> None:
    if not broker.keeps_topics:
        pytest.skip("the embedded broker cannot add partitions")
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    assert start(0) == {0: 1}
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_partitions([NewPartitions(topic, 2)])[topic].result()
    added = [str(number).encode() for number in range(20)]
    for key in added:
        broker.produce(topic, [trade()], key=key)
    assert any(message.partition() == 1 for message in broker.read(topic))
    assert start(0, 1) == {0: 1, 1: 0}
