"""Store every trade of a Kafka topic in PostgreSQL, exactly once in effect.

    python consumer.py                     # trades from now on
    python consumer.py --from-beginning    # first those that the topic still holds

Two threads, so that decoding one batch overlaps with storing the one before: the main thread alone talks to
Kafka, a writer thread alone to PostgreSQL. A batch is closed when the writer is free, so it is one trade when
trades are rare and grows by itself when they are not; no trade is ever held back to fill one.

Keys ascend with time (UUID version 7), so the rows of one partition come in the order of the primary key, which is the
cheapest for PostgreSQL. Several partitions mix them: then a batch is sorted by key.

What is guaranteed, on the lines marked [n]:
  [1] rows are committed to PostgreSQL before their offsets are committed to Kafka. Whatever is killed in between,
      Kafka delivers those trades again, and the primary key makes the repetition harmless.
  [2] a new group's starting offsets are committed before its first message is read.
  [3] an invalid message, or a row that PostgreSQL refuses, is acknowledged by the dead-letter topic before its offset
      is committed. Only the offsets wait for that, no row does.
  [4] a fault of the environment stops consumption, not the consumer: the batch is kept, the place in the group too.
"""

from pipeline.stop import stop_requested, take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import gc
import logging
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import psycopg2
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.command import first_line, parser, run
from pipeline.consumer.dead_letters import TOPIC_CONFIG, DeadLetters
from pipeline.consumer.progress import Progress
from pipeline.consumer.starting_offsets import StartingOffsets
from pipeline.consumer.table import Stored, TradesTable, copy_file
from pipeline.kafka import client, ensure_topic, reason_of
from pipeline.metrics import ConsumerMetrics, add_option
from pipeline.outage import Outage
from pipeline.postgres import prepare_table
from pipeline.settings import Settings
from pipeline.trade import InvalidTrade, copy_rows
from pipeline.user_error import UserError

BATCH_SIZE = 40_000  # trades; more costs memory and gains no speed
BATCH_BYTES = 16 << 20  # of their messages, which bounds the memory where messages are large
CHUNK_SIZE = 1_000  # trades decoded between two looks at the writer
WRITES_IN_FLIGHT = 2  # one being stored, one waiting, so that PostgreSQL never does
SECONDS_UNNOTICED = 0.05  # that a stop or a rebalance may wait
SECONDS_BEFORE_PAUSE = 1.0  # that the writer may be busy before fetching pauses
SECONDS_TO_HAND_OVER = 5.0  # that a rebalance waits for the batches in flight
SECONDS_TO_STOP = 3.0  # that a stop waits for them, and then once more to leave the group
SECONDS_BETWEEN_ATTEMPTS = 0.1, 5.0  # first, longest
SECONDS_TO_JOIN = 10.0  # after which a group that cannot be joined is an outage

KAFKA_DEFAULTS: dict[str, Any] = {
    "enable.auto.commit": False,
    # Where a group starts is decided in pipeline/consumer/starting_offsets.py. This is for an offset that the topic no
    # longer has (deleted by retention): go on with the oldest message left, and say so.
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 6000,  # a killed consumer's partitions move on after this
    "heartbeat.interval.ms": 1000,
    # Also how long a rebalance waits for a member that died in the middle of joining. We poll at least every eight
    # seconds: so long StartingOffsets may wait for its answers.
    "max.poll.interval.ms": 10_000,
    # All partitions are given back in a rebalance and every open batch is dropped: with an incremental protocol, a
    # dropped batch of a partition that we keep would be lost.
    "partition.assignment.strategy": "range",
    "fetch.wait.max.ms": 100,  # that partitions just assigned may wait for a fetch which asked an empty one alone
    "fetch.queue.backoff.ms": 10,  # with the default, a second, a full queue would run empty before it is filled again
    "queued.max.messages.kbytes": 32_768,  # bounds the memory, however long the backlog
    "statistics.interval.ms": 1000,  # for the metrics
    "log_level": 4,  # warnings; what else matters comes through error_cb
}

log = logging.getLogger("consumer")
librdkafka_log = logging.getLogger("librdkafka")
librdkafka_log.addFilter(lambda record: "offset reset" in record.getMessage())


@dataclass
class Batch:
    """Trades on their way to PostgreSQL, and the offsets to commit once they are there."""

    messages: list[Message] = field(default_factory=list)  # kept for the dead-letter topic
    size: int = 0  # bytes of all messages
    rows: list[bytes] = field(default_factory=list)  # one a message ...
    content: bytes = b""  # ... and all together, for COPY
    offsets: list[TopicPartition] = field(default_factory=list)
    dead_letters: int = 0
    unacknowledged: int = 0  # dead letters that Kafka has not confirmed
    abandoned: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.messages) + self.dead_letters

    @property
    def full(self) -> bool:
        """Tell whether it has to be stored before it may grow."""
        return len(self) >= BATCH_SIZE or self.size >= BATCH_BYTES

    def acknowledge_dead_letter(self) -> None:
        """Count one confirmation."""
        self.unacknowledged -= 1

    def close(self, sort: bool) -> None:
        """Put the rows together, if need be sorted by key, with which a row starts; the messages with them."""
        if sort:
            order = sorted(range(len(self.rows)), key=self.rows.__getitem__)
            self.rows = [self.rows[index] for index in order]
            self.messages = [self.messages[index] for index in order]
        self.content = copy_file(self.rows)

    def release(self) -> None:
        """Let go of the messages."""
        self.messages, self.rows, self.content = [], [], b""


Write = Future[Stored | None]


class TradeConsumer:
    """Takes trades from the topic into the table."""

    def __init__(self, settings: Settings, from_beginning: bool) -> None:
        self.settings = settings
        self.kafka_outage = Outage(f"Kafka at {settings.bootstrap_servers}")
        self.database_outage = Outage("PostgreSQL")
        self.metrics = ConsumerMetrics(database_up=lambda: not self.database_outage.ongoing)
        self.dead_letters = DeadLetters(settings)
        self.table = TradesTable(settings.database_url)
        self.to_write: SimpleQueue[tuple[Batch, Write]] = SimpleQueue()
        self.writes: deque[tuple[Batch, Write]] = deque()  # the same, until they are stored
        self.to_commit: deque[Batch] = deque()  # stored; the oldest waits for its dead letters, or for the last commit
        self.committing = False  # a commit waits for its answer
        self.batch = Batch()
        self.full_since: float | None = None
        self.paused = False
        self.joining_since: float | None = None  # None: a member, with partitions or without
        self.assigned: list[TopicPartition] = []  # partitions that are ours, but have no starting offsets yet
        self.next_attempt = 0.0
        self.delay = SECONDS_BETWEEN_ATTEMPTS[0]
        self.broker_trouble = ""  # why one was last away
        self.times_down = 0  # that all were, since Kafka last answered
        self.progress = Progress(self.metrics)
        self.join(from_beginning)

    def run(self) -> None:
        """Consume until the user asks to stop."""
        # A daemon, because a write that hangs in a dead connection must not keep the process alive.
        threading.Thread(target=self.write_for_ever, daemon=True).start()
        print("🟢 Consumer started. Waiting for trades...", flush=True)
        while not stop_requested():
            self.start_reading()
            self.collect()
            self.finish_writes()
            self.start_write()
            self.progress.show_rate(self.consumer)

    # -- collecting: the batch grows while the writer is busy

    def collect(self) -> None:
        """Add what Kafka has to the batch; wait for whichever comes first, messages or the writer."""
        if self.batch.full or self.dead_letters.full:
            self.hold()
            return
        self.full_since = None
        if self.paused:
            self.paused = False
            self.consumer.resume(self.consumer.assignment())
        if not self.writes:
            joining = self.assigned or self.joining_since is not None  # poll waits on after it has called us back
            first = self.consumer.poll(0.01 if joining else 0.2)
            if first is not None:
                self.add([first, *self.consumer.consume(CHUNK_SIZE, timeout=0)])
        elif messages := self.consumer.consume(CHUNK_SIZE, timeout=0):
            self.add(messages)
        else:  # either may come first; in an outage, neither soon
            self.wait_for_writer(SECONDS_UNNOTICED if self.database_outage.ongoing else 0.001)

    def add(self, messages: list[Message]) -> None:
        """Add messages to the batch; those that are errors of Kafka's are told."""
        if errors := [error for message in messages if (error := message.error()) is not None]:
            messages = [message for message in messages if message.error() is None]
            for error in errors:
                self.on_error(error)
        self.batch.size += sum(map(len, messages))
        if messages:
            self.decode(messages)

    def decode(self, messages: list[Message]) -> None:
        """Decode messages into the batch; an invalid one, which is then looked for, becomes a dead letter."""
        try:
            self.batch.rows += copy_rows([message.value() for message in messages])
            self.batch.messages += messages
        except InvalidTrade as reason:
            if len(messages) == 1:
                self.publish_dead_letter(self.batch, messages[0], reason)
                return
            for message in messages:
                self.decode([message])

    def publish_dead_letter(self, batch: Batch, message: Message, reason: Exception) -> None:
        """Keep the message in the dead-letter topic; the batch's offsets wait for it [3]."""
        batch.dead_letters += 1
        batch.unacknowledged += 1
        self.dead_letters.publish(message, reason, batch.acknowledge_dead_letter)
        self.progress.dead_letter(message, reason)

    def hold(self) -> None:
        """Read no more until there is room; when it takes long, pause and keep the place in the group [4]."""
        self.full_since = self.full_since or time.monotonic()
        if not self.paused and time.monotonic() - self.full_since > SECONDS_BEFORE_PAUSE:
            self.paused = True
            self.consumer.pause(self.consumer.assignment())
        if self.paused and (message := self.consumer.poll(0)) is not None:
            self.add([message])  # was on its way when the partition was paused
        self.wait_for_writer()

    def wait_for_writer(self, seconds: float = SECONDS_UNNOTICED) -> None:
        """Wait until the oldest write is done, or else for dead letters; for at most that long."""
        if self.writes:
            wait([self.writes[0][1]], seconds)
        else:
            self.dead_letters.poll(seconds)

    # -- storing: rows first, offsets after

    def start_write(self) -> None:
        """Hand the batch to the writer: at once when it is free, and one ahead when the batch is full."""
        free = not self.writes or (self.batch.full and len(self.writes) < WRITES_IN_FLIGHT)
        if not free or not len(self.batch):
            return
        batch, self.batch = self.batch, Batch()
        partitions = self.consumer.assignment()
        batch.offsets = self.starting_offsets.labelled(self.consumer.position(partitions))
        batch.close(sort=len(partitions) > 1)  # here, because PostgreSQL waits for whatever the writer has to do
        self.writes.append((batch, Future()))
        self.to_write.put(self.writes[-1])

    def write_for_ever(self) -> None:
        """Store one batch after the other. The writer thread."""
        while True:
            batch, write = self.to_write.get()
            try:
                write.set_result(self.store(batch))
            except Exception as error:
                write.set_exception(error)

    def store(self, batch: Batch) -> Stored | None:
        """Store the batch, with retries and backoff; None if it was abandoned meanwhile."""
        delay, longest = SECONDS_BETWEEN_ATTEMPTS
        while not batch.abandoned.is_set():
            try:
                with self.metrics.commit_seconds.time():
                    stored = self.table.store(batch.rows, batch.content)  # [1] first the rows
            except psycopg2.Error as error:  # [4] no row is to blame, so all of them wait
                self.database_outage.report(first_line(error))
                self.table.disconnect()
                batch.abandoned.wait(delay)
                delay = min(2 * delay, longest)
            else:
                self.database_outage.end()
                return stored
        return None

    def finish_writes(self) -> None:
        """Take over the batches that are stored, in their order; commit offsets once their dead letters are safe."""
        self.dead_letters.poll()
        while self.writes and self.writes[0][1].done():
            batch, write = self.writes.popleft()
            if (stored := write.result()) is not None:
                for index, reason in stored.refused.items():
                    self.publish_dead_letter(batch, batch.messages[index], reason)
                self.progress.stored(batch.messages, stored)
                batch.release()
                if self.to_commit and not self.to_commit[-1].unacknowledged:
                    self.to_commit.pop()  # the newer offsets include its own
                self.to_commit.append(batch)
        if not self.committing:
            self.commit()

    def commit(self) -> None:
        """Commit the offsets of what is stored.

        While a commit waits for a broker that died, whatever is sent after it waits too, heartbeats for instance: Kafka
        answers the requests of one connection one by one. So there is one commit at a time, save for the last.
        """
        offsets = None
        while self.to_commit and not self.to_commit[0].unacknowledged:  # [3] the dead letters first
            offsets = self.to_commit.popleft().offsets
        if offsets is not None:
            self.committing = True
            self.consumer.commit(offsets=offsets, asynchronous=True)  # [1] then the offsets

    # -- the group: partitions come and go

    def join(self, from_beginning: bool, new_group: bool = True) -> None:
        """Join the group as a client of its own."""
        self.consumer = client(
            Consumer,
            KAFKA_DEFAULTS
            | self.settings.kafka
            | {"group.id": self.settings.group_id, "error_cb": self.on_error, "on_commit": self.on_commit}
            | {"stats_cb": self.metrics.on_statistics, "logger": librdkafka_log},
        )
        self.starting_offsets = StartingOffsets(self.consumer, self.settings, from_beginning, new_group)
        self.committing = False
        self.joining_since = time.monotonic()
        self.consumer.subscribe(
            [self.settings.topic],
            on_assign=self.on_assign,
            on_revoke=lambda consumer, _: self.give_back(consumer, SECONDS_TO_HAND_OVER),
            on_lost=lambda consumer, _: self.give_back(consumer, 0),  # others have the partitions already
        )

    def leave(self) -> None:
        """Leave the group at once.

        While the brokers are away librdkafka's close() can wait for them without an end: whoever does not leave in time
        just goes, and the group notices after the session's time-out.
        """
        leaving = threading.Thread(target=self.consumer.close, daemon=True)
        leaving.start()
        leaving.join(SECONDS_TO_STOP)

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Note the partitions. They are read once their starting offsets are known, which may take retries."""
        consumer.assign([])
        self.assigned = partitions
        self.joining_since = None
        if not partitions:  # else it is known when their offsets are
            self.end_outage()

    def give_back(self, consumer: Consumer, seconds: float) -> None:
        """Give the partitions back, once what is in flight is finished, or after that long."""
        if consumer is self.consumer:  # not one that is still leaving
            self.settle(seconds)
            self.joining_since = time.monotonic()

    def start_reading(self) -> None:
        """Read new partitions from where the group left off; a new group's start is committed first [2]."""
        if self.joining_since is not None and time.monotonic() - self.joining_since > SECONDS_TO_JOIN:
            self.kafka_outage.report(f"still waiting to join the group {self.settings.group_id}")
        self.starting_offsets.keep_trace()
        if self.starting_offsets.made_again():
            log.warning("⚠️  The topic %s was made again: it is read from its oldest message.", self.settings.topic)
            self.abandon()
            self.leave()  # librdkafka would keep the old topic's leader epochs, and never fetch again (its issue 4898)
            self.join(from_beginning=False, new_group=False)
        if not self.assigned or time.monotonic() < self.next_attempt:
            return
        starts = None
        try:
            starts = self.starting_offsets.of(self.assigned)
        except KafkaException as exception:
            if self.delay > SECONDS_BETWEEN_ATTEMPTS[0]:  # the first may just be early
                self.kafka_outage.report(f"the topic {self.settings.topic}: {reason_of(exception)}")
        if starts is None:
            self.next_attempt = time.monotonic() + self.delay
            self.delay = min(2 * self.delay, SECONDS_BETWEEN_ATTEMPTS[1])
            return
        self.delay = SECONDS_BETWEEN_ATTEMPTS[0]
        self.end_outage()
        self.assigned = []
        # Those are committed, so librdkafka can look them up itself: then it knows the lag from the first second on.
        self.consumer.assign([TopicPartition(start.topic, start.partition) for start in starts])
        self.consumer.resume(starts)  # a pause would survive the rebalance
        self.paused = False

    def settle(self, seconds: float) -> None:
        """Finish what is in flight, for at most that long; what cannot be finished is delivered again."""
        deadline = time.monotonic() + seconds
        self.finish_writes()
        while (self.writes or (self.to_commit and self.dead_letters.in_flight)) and time.monotonic() < deadline:
            self.wait_for_writer()
            self.finish_writes()
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Forget what is not stored yet. Its offsets are not committed, so Kafka delivers it again."""
        for batch, _ in self.writes:
            batch.abandoned.set()
            batch.release()
        self.writes.clear()
        self.to_commit.clear()
        self.dead_letters.forget()
        self.batch = Batch()
        self.assigned = []
        self.full_since = None

    # -- trouble

    def on_error(self, error: KafkaError) -> None:
        """Say what Kafka reports, once; librdkafka goes on trying by itself. Raises what nothing can mend."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        if error.code() in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self.broker_trouble = error.str()  # one broker's: an outage is when none works
            return
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # says that, but not why
            self.times_down += 1
            if self.times_down > 1:  # the first is none: localhost is ::1, too, and a broker may listen on 127.0.0.1
                self.kafka_outage.report(self.broker_trouble or error.str())
            return
        self.kafka_outage.report(error.str())

    def end_outage(self) -> None:
        """Note that Kafka answers."""
        self.kafka_outage.end()
        self.broker_trouble, self.times_down = "", 0

    def on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """Take the answer to a commit. The next commit or a redelivery covers a failure."""
        self.committing = False
        if error is None:
            self.end_outage()
            self.next_attempt = 0.0  # starting offsets may be what is committed
        elif error.code() not in (KafkaError._NO_OFFSET, KafkaError._STATE):
            log.info("offsets not committed (%s): these trades may be delivered again", error.str())

    def close(self) -> None:
        """Store what was received, leave the group, and say what was done."""
        self.start_write()
        self.settle(SECONDS_TO_STOP)
        self.leave()
        print(f"Consumer stopped: {self.progress.summary()}.", flush=True)


def options() -> argparse.ArgumentParser:
    """Return the command line's options."""
    known = parser(__doc__)
    known.add_argument(
        "--from-beginning",
        action="store_true",
        help="read the topic from its oldest trade; stored ones are not doubled",
    )
    add_option(known)
    return known


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run the consumer."""
    ensure_topic(settings, settings.topic, None)
    ensure_topic(settings, settings.dead_letter_topic, None, **TOPIC_CONFIG)
    prepare_table(settings.database_url)
    if stop_requested():
        print("Consumer stopped before it started.")
        return
    consumer = TradeConsumer(settings, options.from_beginning)
    consumer.metrics.serve(options.metrics_port)
    # The collector would look through all messages in flight again and again for cycles that are not there.
    gc.set_threshold(500_000)
    # Between two batches the writer needs the interpreter for microseconds, while PostgreSQL waits.
    sys.setswitchinterval(0.0005)  # seconds that it may take to get it; 5 ms by default
    try:
        consumer.run()
    except KafkaException as exception:  # a fatal one, raised by on_error: no commit would succeed
        consumer.abandon()
        again = "start it again, with a KAFKA_GROUP_INSTANCE_ID of its own if it has one"
        raise UserError(f"Kafka ended this consumer ({reason_of(exception)}): {again}") from None
    finally:
        consumer.close()


if __name__ == "__main__":
    sys.exit(run(options(), main))
