"""Where a consumer group starts to read: at its own committed offsets or, the first time, where it was told to.

librdkafka's own `auto.offset.reset=latest` decides anew at every start until something is committed: a consumer killed
before its first batch would skip what was traded in between, and a partition added later would lose its first trades.
So a new group's starting offsets are committed before anything is read, with the time of that moment as
their metadata. It tells whoever meets a partition without an offset later what "latest" meant for the group.
"""

import logging
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.command import stop_requested
from pipeline.settings import Settings

SECONDS_TO_ANSWER = 5.0
_JOINED = "joined="

log = logging.getLogger(__name__)


class StartingOffsets:
    """Decides the starting offsets of one group, and carries the time of its first start along."""

    def __init__(self, consumer: Consumer, settings: Settings, from_beginning: bool) -> None:
        self._consumer = consumer
        # The consumer has a list_topics, too, but within its callback on_assign that breaks the callbacks after it
        # (the process aborts: "CallState_get: Assertion `cs != NULL' failed"; confluent-kafka 2.16.1).
        self._admin = AdminClient(settings.kafka | {"log_level": 0})
        self._topic = settings.topic
        self._latest = settings.auto_offset_reset == "latest" and not from_beginning
        self._rewind = from_beginning
        self._rewound: set[int] = set()
        self._joined_ms: int | None = None

    def mark(self, positions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the positions to commit: those that are known, with the time of the group's first start."""
        metadata = f"{_JOINED}{self._joined_ms}"
        return [TopicPartition(p.topic, p.partition, p.offset, metadata) for p in positions if p.offset >= 0]

    def of(self, assigned: list[TopicPartition]) -> list[TopicPartition]:
        """Return the partitions with the offsets to start at, committed where they are new; [] if that cannot be.

        Waits for the broker as long as it takes.
        """
        while not stop_requested():
            try:
                return self._decide([partition.partition for partition in assigned])
            except KafkaException as exception:
                if not _is_passing(exception.args[0]):
                    log.warning("⚠️  Kafka took the partitions back at once: %s", exception.args[0].str())
                    return []
        return []

    def _decide(self, assigned: list[int]) -> list[TopicPartition]:
        committed = self._committed_by_partition()
        self._joined_ms = min(filter(None, map(_joined, committed.values())), default=None)
        starts = [self._start(number, committed) for number in assigned]
        self._joined_ms = self._joined_ms or int(time.time() * 1000)
        if fresh := [start for start in starts if start.offset != committed[start.partition].offset]:
            self._consumer.commit(offsets=self.mark(fresh), asynchronous=False)
        self._rewound.update(assigned)
        return starts

    def _start(self, number: int, committed: dict[int, TopicPartition]) -> TopicPartition:
        start = TopicPartition(self._topic, number)
        rewind = self._rewind and number not in self._rewound
        if committed[number].offset >= 0 and not rewind:
            start.offset = committed[number].offset
            return start
        oldest, newest = self._consumer.get_watermark_offsets(start, timeout=SECONDS_TO_ANSWER)
        group_is_new = all(partition.offset < 0 for partition in committed.values())
        if not self._latest:
            start.offset = oldest
        elif group_is_new:
            start.offset = newest
        else:  # another member has just started the group, or the partition was added since
            start.offset = self._offset_when_joined(start, oldest, newest)
        return start

    def _offset_when_joined(self, partition: TopicPartition, oldest: int, newest: int) -> int:
        if self._joined_ms is None:  # a group that did not start here; then rather too much than too little
            return oldest
        moment = TopicPartition(self._topic, partition.partition, self._joined_ms)
        [found] = self._consumer.offsets_for_times([moment], timeout=SECONDS_TO_ANSWER)
        return found.offset if found.offset >= 0 else newest

    def _committed_by_partition(self) -> dict[int, TopicPartition]:
        metadata = self._admin.list_topics(self._topic, timeout=SECONDS_TO_ANSWER)
        everything = [TopicPartition(self._topic, number) for number in metadata.topics[self._topic].partitions]
        return {c.partition: c for c in self._consumer.committed(everything, timeout=SECONDS_TO_ANSWER)}


def _joined(committed: TopicPartition) -> int | None:
    text = (committed.metadata or "").removeprefix(_JOINED)
    return int(text) if text.isdecimal() else None


def _is_passing(error: KafkaError) -> bool:
    return error.retriable() or error.code() in (
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
    )
