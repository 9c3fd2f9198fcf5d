"""Where a consumer group starts reading: at its committed offsets or, the first time, where the user chose.

Until something is committed, librdkafka's own `auto.offset.reset=latest` decides again at every start: a consumer
killed before its first batch would skip the trades made in between, and a partition added later would lose its first
trades. So a new group's starting offsets are committed before anything is read: for all partitions in one commit, by
the member that has partition 0, so that only one member does it. From then on, a partition without an offset is one
that was added or recreated, and is read from its oldest trade.

Kafka deletes the offsets of a topic along with the topic. So each commit carries the topic's id, and an offset with
another id is ignored. The group also leaves a trace that outlives the topic: a committed offset in the dead-letter
topic, which the group never reads (its lag counts the dead letters; committing it takes READ permission on that topic).
Kafka cannot remember a group once all its offsets are deleted. Such a group starts as new: one that had no members for
longer than the broker's `offsets.retention.minutes`, or none while its topic and dead-letter topic were both deleted.
"""

import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.kafka import TopicWatch, client
from pipeline.settings import Settings

SECONDS_TO_ANSWER = 2.0  # for each of three requests; a stop may wait for all of them
# The trace is renewed because it expires (nobody subscribes to the dead-letter topic) or goes with a deleted topic.
SECONDS_BETWEEN_TRACES = 5.0


class StartingOffsets:
    """Decides the starting offsets of one group, and notices when its topic is recreated."""

    def __init__(self, consumer: Consumer, settings: Settings, from_beginning: bool, new_group: bool = True) -> None:
        """`new_group` is False if the caller knows that the group exists already."""
        self.consumer = consumer
        self._admin = client(AdminClient, settings.kafka)
        self._topic = settings.topic
        self._watch = TopicWatch(self._admin, settings.topic)
        self._trace = TopicPartition(settings.dead_letter_topic, 0, 0)
        self._latest = settings.auto_offset_reset == "latest" and not from_beginning and new_group
        self._rewind = from_beginning
        self._rewound: set[int] = set()
        self._started = False  # whether the group has committed its starting offsets
        self._next_trace = 0.0

    def of(self, assigned: list[TopicPartition]) -> list[TopicPartition] | None:
        """Return the partitions with their starting offsets, or None until all are committed: then call it again.

        Raises `KafkaException`. Never call it from a callback: further requests by the same consumer would abort the
        process ("CallState_get: Assertion `cs != NULL' failed"; confluent-kafka 2.16.1).
        """
        topic = self._watch.describe()
        if str(topic.topic_id) != self._watch.id:
            return None  # from now on; `made_again` reports why
        mine = {partition.partition for partition in assigned}
        known = self._committed({partition.id for partition in topic.partitions} | mine)
        if known is None:
            if 0 in mine:
                self._start_group({partition.id for partition in topic.partitions})
            return None
        new = {n for n in mine if n not in known or (self._rewind and n not in self._rewound)}
        starts = known | self._list_offsets(new, OffsetSpec.earliest())
        if changed := {n: starts[n] for n in new if starts[n] != known.get(n)}:
            self._commit(changed)
            return None
        self._rewound |= mine
        self._started = True
        return [TopicPartition(self._topic, n, starts[n]) for n in mine]

    def labelled(self, positions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Return the known positions, labelled with the topic's id, ready to commit."""
        return [TopicPartition(p.topic, p.partition, p.offset, self._label) for p in positions if p.offset >= 0]

    def keep_trace(self) -> bool:
        """Commit the trace again if it is due; return whether it was. Returns at once."""
        if due := self._started and time.monotonic() >= self._next_trace:
            self._next_trace = time.monotonic() + SECONDS_BETWEEN_TRACES
            self.consumer.commit(offsets=[self._trace], asynchronous=True)
        return due

    def made_again(self) -> bool:
        """Return whether the topic was recreated since it was first seen. Returns at once."""
        return self._watch.made_again()

    @property
    def _label(self) -> str:
        """The metadata of each commit."""
        return f"topic={self._watch.id}"

    def _committed(self, numbers: set[int]) -> dict[int, int] | None:
        """Return the group's committed offsets by partition, or None if the group has never started."""
        asked = [*(TopicPartition(self._topic, number) for number in numbers), self._trace]
        *offsets, trace = self.consumer.committed(asked, timeout=SECONDS_TO_ANSWER)
        for offset in offsets:
            if offset.error:
                raise KafkaException(offset.error)
        offsets = [offset for offset in offsets if offset.offset >= 0]
        if not offsets and trace.offset < 0:
            return None
        # Other tools commit without a label.
        ours = [o for o in offsets if o.metadata == self._label or not (o.metadata or "").startswith("topic=")]
        return {offset.partition: offset.offset for offset in ours}

    def _start_group(self, numbers: set[int]) -> None:
        oldest = self._list_offsets(numbers, OffsetSpec.earliest())
        starts = self._list_offsets(numbers, OffsetSpec.latest()) if self._latest else oldest
        if skipped := sum(starts.values()) - sum(oldest.values()):
            told = f"older messages skipped: {skipped:,} (--from-beginning reads them)"
            print(f"A new group starts at the latest offset; {told}.", flush=True)
        self._commit(starts, self._trace)

    def _commit(self, offsets: dict[int, int], *more: TopicPartition) -> None:
        positions = [TopicPartition(self._topic, number, offset) for number, offset in offsets.items()]
        self.consumer.commit(offsets=[*self.labelled(positions), *more], asynchronous=True)

    def _list_offsets(self, numbers: set[int], which: OffsetSpec) -> dict[int, int]:
        asked = {TopicPartition(self._topic, number): which for number in numbers}
        answers = self._admin.list_offsets(asked, request_timeout=SECONDS_TO_ANSWER) if asked else {}
        return {partition.partition: answer.result().offset for partition, answer in answers.items()}
