"""Where a consumer group starts to read: at its own committed offsets or, the first time, where it was told to.

librdkafka's own `auto.offset.reset=latest` decides anew at every start until something is committed: a consumer killed
before its first batch would skip what was traded in between, and a partition added later would lose its first trades.
So a new group's starting offsets are committed before anything is read: of all partitions in one commit, by the member
that has partition 0, so that there is one such commit. From then on, a partition without an offset was added or made
again, and is read from its oldest trade.

Kafka forgets a topic's offsets when the topic is deleted. Therefore each commit names the topic's id, and an offset of
another topic's is none; and a trace outlives the topic: an offset in the dead-letter topic, which nobody reads from
there (its lag counts the dead letters; it takes the right to READ that topic). What Kafka cannot know is that a group
existed of which it has deleted everything: one without members for longer than the broker's
`offsets.retention.minutes`, or while its topic and its dead-letter topic were both deleted. It starts as new.
"""

import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.kafka import TopicWatch, client
from pipeline.settings import Settings

SECONDS_TO_ANSWER = 2.0  # for each of three requests; a stop waits for them
SECONDS_BETWEEN_TRACES = (
    5.0  # it would expire, as nobody subscribes to the dead-letter topic, which may be deleted, too
)


class StartingOffsets:
    """Decides the starting offsets of one group, and notices when its topic was made again."""

    def __init__(self, consumer: Consumer, settings: Settings, from_beginning: bool, new_group: bool = True) -> None:
        """`new_group` is False where the caller knows that the group existed."""
        self._consumer = consumer
        self._admin = client(AdminClient, settings.kafka)
        self._topic = settings.topic
        self._watch = TopicWatch(self._admin, settings.topic)
        self._trace = TopicPartition(settings.dead_letter_topic, 0, 0)
        self._latest = settings.auto_offset_reset == "latest" and not from_beginning and new_group
        self._rewind = from_beginning
        self._rewound: set[int] = set()
        self._started = False  # the group
        self._next_trace = 0.0

    def of(self, assigned: list[TopicPartition]) -> list[TopicPartition] | None:
        """Return the partitions with the offsets to start at; None until all of those are committed: ask again then.

        Raises `KafkaException`. Not for a callback: there, further requests of the same consumer abort the process
        ("CallState_get: Assertion `cs != NULL' failed"; confluent-kafka 2.16.1).
        """
        topic = self._watch.describe()
        if str(topic.topic_id) != self._watch.id:
            return None  # for good, as `made_again` tells
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
        """Return the positions as they are to be committed: those that are known, with the topic's id."""
        return [TopicPartition(p.topic, p.partition, p.offset, self._label) for p in positions if p.offset >= 0]

    def keep_trace(self) -> None:
        """Commit the trace again when it is time. Returns at once."""
        if self._started and time.monotonic() >= self._next_trace:
            self._next_trace = time.monotonic() + SECONDS_BETWEEN_TRACES
            self._consumer.commit(offsets=[self._trace], asynchronous=True)

    def made_again(self) -> bool:
        """Tell whether the topic is another one than was first seen. Returns at once."""
        return self._watch.made_again()

    @property
    def _label(self) -> str:
        """The metadata of each commit."""
        return f"topic={self._watch.id}"

    def _committed(self, numbers: set[int]) -> dict[int, int] | None:
        """Return the group's offsets of this topic by partition; None if the group has never started."""
        asked = [*(TopicPartition(self._topic, number) for number in numbers), self._trace]
        *offsets, trace = self._consumer.committed(asked, timeout=SECONDS_TO_ANSWER)
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
            told = f"{skipped:,} older messages are skipped (--from-beginning reads them)"
            print(f"A new group starts at the latest offset: {told}.", flush=True)
        self._commit(starts, self._trace)

    def _commit(self, offsets: dict[int, int], *more: TopicPartition) -> None:
        positions = [TopicPartition(self._topic, number, offset) for number, offset in offsets.items()]
        self._consumer.commit(offsets=[*self.labelled(positions), *more], asynchronous=True)

    def _list_offsets(self, numbers: set[int], which: OffsetSpec) -> dict[int, int]:
        asked = {TopicPartition(self._topic, number): which for number in numbers}
        answers = self._admin.list_offsets(asked, request_timeout=SECONDS_TO_ANSWER) if asked else {}
        return {partition.partition: answer.result().offset for partition, answer in answers.items()}
