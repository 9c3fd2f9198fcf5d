"""Store every trade of a Kafka topic in PostgreSQL, exactly once in effect.

    python consumer.py                     # resume where the group left off; a new group starts at the latest offset
    python consumer.py --from-beginning    # read everything the topic still holds, oldest first

Two threads, so that one batch is decoded while the previous one is stored: only the main thread talks to Kafka, only
the writer thread to PostgreSQL. A batch is closed as soon as the writer is free, so it holds a single trade when
traffic is light and grows by itself when it is heavy; no trade ever waits for a batch to fill up.

Keys ascend with time (UUID version 7), so the rows of one partition arrive in primary-key order, which is the cheapest
for PostgreSQL to insert. Several partitions interleave, so their batches are sorted by key.

Guarantees, kept on the lines marked [n]:
  [1] rows are committed to PostgreSQL before their offsets are committed to Kafka. Whatever is killed in between,
      Kafka redelivers those trades, and the primary key makes the redelivery harmless.
  [2] a new group's starting offsets are committed before its first message is read.
  [3] an invalid message, or a row that PostgreSQL refuses, is acknowledged by the dead-letter topic before its offset
      is committed. Only offsets wait for that, rows never do.
  [4] a fault in the environment stops consumption, not the consumer: it keeps its batch and its place in the group.
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
from pipeline.reasons import size_of
from pipeline.settings import Settings
from pipeline.trade import InvalidTrade, copy_rows
from pipeline.user_error import UserError

BATCH_SIZE = 40_000  # trades; a larger batch costs memory and is no faster
BATCH_BYTES = 16 << 20  # total size of the messages; bounds memory when messages are large
CHUNK_SIZE = 1_000  # trades decoded between two checks on the writer
WRITES_IN_FLIGHT = 2  # one being stored, one queued, so that PostgreSQL never waits
SECONDS_UNNOTICED = 0.05  # how long a stop or a rebalance may go unnoticed
SECONDS_BEFORE_PAUSE = 1.0  # how long a full batch may wait for the writer before fetching pauses
SECONDS_TO_HAND_OVER = 5.0  # how long a rebalance waits for the batches in flight
SECONDS_TO_STOP = 3.0  # how long a stop waits for them, and then once more to leave the group
SECONDS_BETWEEN_COMMITS = 0.05  # of offsets; one after each small batch would be a sixth of the broker's work
SECONDS_BETWEEN_ATTEMPTS = 0.1, 5.0  # backoff: first, longest
SECONDS_TO_JOIN = 10.0  # taking longer to join the group is reported as an outage

KAFKA_DEFAULTS: dict[str, Any] = {
    "enable.auto.commit": False,
    # Where a group starts is decided in pipeline/consumer/starting_offsets.py. This covers an offset that the topic no
    # longer has (deleted by retention): resume at the oldest message left, and log it.
    "auto.offset.reset": "earliest",
    "session.timeout.ms": 6000,  # a killed consumer's partitions are reassigned after this
    "heartbeat.interval.ms": 1000,
    # Also how long a rebalance waits for a member that died while joining. We poll at least every eight seconds, the
    # longest that StartingOffsets waits for its answers (DeadLetters: seven).
    "max.poll.interval.ms": 10_000,
    # A rebalance revokes all partitions and drops every open batch: with an incremental protocol, a dropped batch from
    # a partition that we keep would be lost.
    "partition.assignment.strategy": "range",
    "fetch.wait.max.ms": 100,  # new partitions wait up to this long for a fetch already waiting on an empty one
    "fetch.queue.backoff.ms": 10,  # at the default, a second, a full queue would run empty before it is refilled
    "queued.max.messages.kbytes": 32_768,  # bounds memory, however large the backlog
    "statistics.interval.ms": 1000,  # for the metrics
    "log_level": 4,  # warnings; everything else that matters comes through error_cb
}

TOPIC_TROUBLE = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART}

log = logging.getLogger("consumer")
librdkafka_log = logging.getLogger("librdkafka")
librdkafka_log.addFilter(lambda record: "offset reset" in record.getMessage())


@dataclass
class Batch:
    """Trades on their way to PostgreSQL, and the offsets to commit once they are stored."""

    messages: list[Message] = field(default_factory=list)  # kept for the dead-letter topic
    size: int = 0  # bytes of all messages, about
    rows: list[bytes] = field(default_factory=list)  # one per message ...
    content: bytes = b""  # ... and all of them joined, for COPY
    offsets: list[TopicPartition] = field(default_factory=list)
    dead_letters: int = 0
    unacknowledged: int = 0  # dead letters that Kafka has not acknowledged yet
    abandoned: threading.Event = field(default_factory=threading.Event)

    def __len__(self) -> int:
        return len(self.messages) + self.dead_letters

    @property
    def full(self) -> bool:
        """Return whether the batch must be stored before it takes more messages."""
        return len(self) >= BATCH_SIZE or self.size >= BATCH_BYTES

    def acknowledge_dead_letter(self) -> None:
        """Count one dead letter as acknowledged."""
        self.unacknowledged -= 1

    def close(self, sort: bool) -> None:
        """Join the rows for COPY; if `sort`, first put rows and messages in key order (a row starts with its key)."""
        if sort:
            order = sorted(range(len(self.rows)), key=self.rows.__getitem__)
            self.rows = [self.rows[index] for index in order]
            self.messages = [self.messages[index] for index in order]
        self.content = copy_file(self.rows)

    def release(self) -> None:
        """Free the messages and rows."""
        self.messages, self.rows, self.content = [], [], b""


Write = Future[Stored | None]


class TradeConsumer:
    """Moves trades from the topic into the table."""

    def __init__(self, settings: Settings, from_beginning: bool) -> None:
        self.settings = settings
        self.kafka_outage = Outage(f"Kafka at {settings.bootstrap_servers}")
        self.topic_outage = Outage(f"The topic {settings.topic}")
        self.database_outage = Outage("PostgreSQL")
        self.metrics = ConsumerMetrics(database_up=lambda: not self.database_outage.ongoing)
        self.dead_letters = DeadLetters(settings)
        self.table = TradesTable(settings.database_url)
        self.to_write: SimpleQueue[tuple[Batch, Write]] = SimpleQueue()
        self.writes: deque[tuple[Batch, Write]] = deque()  # the same, until they are done
        self.to_commit: deque[Batch] = deque()  # stored; the oldest waits for its dead letters or the commit in flight
        self.committing = False  # a commit is in flight
        self.next_commit = 0.0
        self.batch = Batch()
        self.full_since: float | None = None
        self.paused = False
        self.joining_since: float | None = None  # None: we are a member, with or without partitions
        self.assigned: list[TopicPartition] = []  # partitions that are ours but have no starting offsets yet ...
        self.reading: list[TopicPartition] = []  # ... and those that have; asking librdkafka takes 0.1 ms
        self.next_attempt = 0.0
        self.delay = SECONDS_BETWEEN_ATTEMPTS[0]
        self.broker_trouble = ""  # why a broker was last unreachable
        self.times_down = 0  # how often all of them were down since Kafka last answered
        self.progress = Progress(self.metrics)
        self.consumer = self.new_client()
        self.join()
        self.starting_offsets = StartingOffsets(self.consumer, settings, from_beginning)

    def run(self) -> None:
        """Consume until the user asks to stop."""
        # A daemon thread, because a write that hangs on a dead connection must not keep the process alive.
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
        """Add available messages to the batch, or wait for messages or the writer, whichever comes first."""
        if self.batch.full or self.dead_letters.full:
            self.hold()
            return
        self.full_since = None
        if self.paused:
            self.paused = False
            self.consumer.resume(self.reading)
        if not self.writes:
            joining = self.assigned or self.joining_since is not None  # poll keeps waiting after our callbacks
            first = self.consumer.poll(0.01 if joining else 0.2)
            if first is not None:
                self.add([first, *self.consumer.consume(CHUNK_SIZE, timeout=0)])
        elif messages := self.consumer.consume(CHUNK_SIZE, timeout=0):
            self.add(messages)
        else:  # either may come first; during an outage, neither comes soon
            self.wait_for_writer(SECONDS_UNNOTICED if self.database_outage.ongoing else 0.001)

    def add(self, messages: list[Message]) -> None:
        """Add messages to the batch; report those that are Kafka errors."""
        if errors := [error for message in messages if (error := message.error()) is not None]:
            messages = [message for message in messages if message.error() is None]
            for error in errors:
                self.on_error(error)
        if messages:
            headers = size_of(messages[0]) - len(messages[0])  # and key, of one for all: a sum would cost a tenth
            self.batch.size += sum(map(len, messages)) + headers * len(messages)
            self.topic_outage.end()
            self.decode(messages)

    def decode(self, messages: list[Message]) -> None:
        """Decode messages into the batch; if any is invalid, decode them one by one and make it a dead letter."""
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
        """Send the message to the dead-letter topic; the batch's offsets wait for its acknowledgement [3]."""
        batch.dead_letters += 1
        batch.unacknowledged += 1
        self.dead_letters.publish(message, reason, batch.acknowledge_dead_letter)
        self.progress.dead_letter(message, reason)

    def hold(self) -> None:
        """Read no more until there is room; if that takes long, pause fetching and stay in the group [4]."""
        self.full_since = self.full_since or time.monotonic()
        if not self.paused and time.monotonic() - self.full_since > SECONDS_BEFORE_PAUSE:
            self.paused = True
            self.consumer.pause(self.reading)
        if self.paused and (message := self.consumer.poll(0)) is not None:
            self.add([message])  # in flight when the partition was paused
        self.wait_for_writer()

    def wait_for_writer(self, seconds: float = SECONDS_UNNOTICED) -> None:
        """Wait up to `seconds` for the oldest write or, if there is none, for answers to dead letters."""
        if self.writes:
            wait([self.writes[0][1]], seconds)
        else:
            self.dead_letters.poll(seconds)

    # -- storing: rows first, offsets after

    def start_write(self) -> None:
        """Hand the batch to the writer if it is free; a full batch may also queue behind the one being stored."""
        free = not self.writes or (self.batch.full and len(self.writes) < WRITES_IN_FLIGHT)
        if not free or not len(self.batch):
            return
        batch, self.batch = self.batch, Batch()
        batch.offsets = self.starting_offsets.labelled(self.consumer.position(self.reading))
        batch.close(sort=len(self.reading) > 1)  # here, because PostgreSQL waits while the writer works
        self.writes.append((batch, Future()))
        self.to_write.put(self.writes[-1])

    def write_for_ever(self) -> None:
        """Store batches one after another, in the writer thread."""
        while True:
            batch, write = self.to_write.get()
            try:
                write.set_result(self.store(batch))
            except Exception as error:
                write.set_exception(error)

    def store(self, batch: Batch) -> Stored | None:
        """Store the batch, retrying with backoff; return None if it is abandoned meanwhile."""
        delay, longest = SECONDS_BETWEEN_ATTEMPTS
        while not batch.abandoned.is_set():
            try:
                with self.metrics.commit_seconds.time():
                    stored = self.table.store(batch.rows, batch.content)  # [1] rows first
            except psycopg2.Error as error:  # [4] no row is to blame, so the whole batch waits
                self.database_outage.report(first_line(error))
                self.table.disconnect()
                batch.abandoned.wait(delay)
                delay = min(2 * delay, longest)
            else:
                self.database_outage.end()
                return stored
        return None

    def finish_writes(self) -> None:
        """Collect finished writes in order; commit their offsets once their dead letters are acknowledged."""
        self.dead_letters.poll()
        while self.writes and self.writes[0][1].done():
            batch, write = self.writes.popleft()
            if (stored := write.result()) is not None:
                for index, reason in stored.refused.items():
                    self.publish_dead_letter(batch, batch.messages[index], reason)
                self.progress.stored(batch.messages, stored)
                batch.release()
                if self.to_commit and not self.to_commit[-1].unacknowledged:
                    self.to_commit.pop()  # the newer offsets cover its own
                self.to_commit.append(batch)
        if not self.committing and time.monotonic() >= self.next_commit:
            self.commit()

    def commit(self) -> None:
        """Commit the offsets of stored batches.

        Kafka answers the requests on a connection in order, so a commit that waits for a dead broker holds up all that
        is sent after it, heartbeats included. So only one commit is in flight at a time, except the last (in `settle`).
        """
        offsets = None
        while self.to_commit and not self.to_commit[0].unacknowledged:  # [3] dead letters first
            offsets = self.to_commit.popleft().offsets
        if offsets is not None:
            self.committing = True
            self.next_commit = time.monotonic() + SECONDS_BETWEEN_COMMITS
            self.consumer.commit(offsets=offsets, asynchronous=True)  # [1] then offsets

    # -- the group: partitions come and go

    def new_client(self) -> Consumer:
        """Return a client that has not joined the group yet."""
        return client(
            Consumer,
            KAFKA_DEFAULTS
            | self.settings.kafka
            | {"group.id": self.settings.group_id, "error_cb": self.on_error, "on_commit": self.on_commit}
            | {"stats_cb": self.metrics.on_statistics, "logger": librdkafka_log},
        )

    def join(self) -> None:
        """Join the group."""
        self.committing = False
        self.lost = False  # whether the group has expelled us, or must have by now
        self.joining_since = time.monotonic()
        self.consumer.subscribe(
            [self.settings.topic],
            on_assign=self.on_assign,
            on_revoke=self.on_revoke,
            on_lost=self.on_lost,
        )

    def rejoin(self, seconds: float) -> None:
        """Leave the group, waiting for at most `seconds`, and join it again with a new client."""
        old, self.consumer = self.consumer, self.new_client()  # callbacks of the old one are not ours from here on
        leave(old, seconds)
        self.abandon()  # and what the old one was assigned since
        self.join()

    def on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Remember the partitions; reading starts once their starting offsets are known, which may take retries."""
        if consumer is not self.consumer:  # but an earlier client that is still leaving
            return
        consumer.assign([])
        self.assigned = partitions
        self.joining_since = None
        if not partitions:  # otherwise the outage ends once their offsets are known
            self.end_outage()

    def on_revoke(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        """Give the partitions back once what is in flight is finished, or after SECONDS_TO_HAND_OVER."""
        if consumer is self.consumer:
            self.settle(SECONDS_TO_HAND_OVER)
            self.joining_since = time.monotonic()

    def on_lost(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        """Drop all work, because the partitions already belong to others; `start_reading` joins again."""
        if consumer is self.consumer:
            self.abandon()
            self.lost = True

    def start_reading(self) -> None:
        """Read new partitions from where the group left off; commit a new group's starting offsets first [2]."""
        if self.joining_since is not None and time.monotonic() - self.joining_since > SECONDS_TO_JOIN:
            self.kafka_outage.report(f"still waiting to join the group {self.settings.group_id}")
        if self.starting_offsets.made_again():
            log.warning("⚠️  The topic %s was recreated: reading it from its oldest message.", self.settings.topic)
            self.start_write()
            self.settle(SECONDS_TO_HAND_OVER)  # Kafka cannot redeliver what the old topic held
            # The old client would keep that topic's leader epochs, and never fetch again (librdkafka's issue 4898).
            self.rejoin(SECONDS_TO_STOP)
            self.starting_offsets = StartingOffsets(self.consumer, self.settings, False, new_group=False)
        elif self.lost:
            # With a new client: in the old one, a commit that still waits for the broker would fail once it is back and
            # end the new membership, too; its remains would hold up the group until another session has timed out.
            self.rejoin(0)
            self.starting_offsets.consumer = self.consumer
        if not self.committing and self.joining_since is None:
            self.committing = self.starting_offsets.keep_trace()
        if not self.assigned or time.monotonic() < self.next_attempt:
            return
        starts = None
        try:
            starts = self.starting_offsets.of(self.assigned)
        except KafkaException as exception:
            if self.delay > SECONDS_BETWEEN_ATTEMPTS[0]:  # the first attempt may just come too early
                self.kafka_outage.report(f"the topic {self.settings.topic}: {reason_of(exception)}")
        if starts is None:
            self.next_attempt = time.monotonic() + self.delay
            self.delay = min(2 * self.delay, SECONDS_BETWEEN_ATTEMPTS[1])
            return
        self.delay = SECONDS_BETWEEN_ATTEMPTS[0]
        self.end_outage()
        self.topic_outage.end()
        self.assigned = []
        # The starts are committed, so we let librdkafka look them up: then it knows the lag from the first second.
        self.reading = [TopicPartition(start.topic, start.partition) for start in starts]
        self.consumer.assign(self.reading)
        self.consumer.resume(self.reading)  # a pause would survive the rebalance
        self.paused = False

    def settle(self, seconds: float) -> None:
        """Finish what is in flight within `seconds`; Kafka redelivers the rest."""
        deadline = time.monotonic() + seconds
        self.finish_writes()
        while (self.writes or (self.to_commit and self.dead_letters.in_flight)) and time.monotonic() < deadline:
            self.wait_for_writer()
            self.finish_writes()
        self.commit()
        self.abandon()

    def abandon(self) -> None:
        """Drop all unfinished work. Its offsets are not committed, so Kafka redelivers it."""
        for batch, _ in self.writes:
            batch.abandoned.set()
            batch.release()
        self.writes.clear()
        self.to_commit.clear()
        self.dead_letters.forget()
        self.batch = Batch()
        self.assigned, self.reading = [], []
        self.full_since = None

    # -- trouble

    def on_error(self, error: KafkaError) -> None:
        """Report a Kafka error; librdkafka keeps retrying by itself. Raises `KafkaException` for a fatal one."""
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        if error.code() in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self.broker_trouble = error.str()  # one broker's; it is an outage when all are down
            return
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # does not say why
            self.times_down += 1
            if self.times_down > 1:  # once is no outage: localhost is also ::1, a broker may listen on 127.0.0.1 only
                self.kafka_outage.report(self.broker_trouble or error.str())
            return
        outage = self.topic_outage if error.code() in TOPIC_TROUBLE else self.kafka_outage
        outage.report(error.str())

    def end_outage(self) -> None:
        """Record that Kafka answers."""
        self.kafka_outage.end()
        self.broker_trouble, self.times_down = "", 0

    def on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """Handle the result of a commit. The next commit or a redelivery covers a failure."""
        self.committing = False
        if error is None:
            self.end_outage()
            self.next_attempt = 0.0  # it may have committed the starting offsets that we wait for
        elif error.code() not in (KafkaError._NO_OFFSET, KafkaError._STATE):
            log.info("offsets not committed (%s): these trades may be delivered again", error.str())

    def close(self) -> None:
        """Store what was received, leave the group and print a summary."""
        self.start_write()
        self.settle(SECONDS_TO_STOP)
        leave(self.consumer, SECONDS_TO_STOP)
        print(f"Consumer stopped: {self.progress.summary()}.", flush=True)


def leave(consumer: Consumer, seconds: float) -> None:
    """Close a client, which leaves the group; wait for at most `seconds`.

    While the brokers are down, librdkafka's close() can wait for them forever. If it is not done in time, we go without
    it, and the group notices when the session times out.
    """
    leaving = threading.Thread(target=consumer.close, daemon=True)
    leaving.start()
    leaving.join(seconds)


def options() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    known = parser(__doc__)
    known.add_argument(
        "--from-beginning",
        action="store_true",
        help="read the topic from its oldest message; trades already stored are not duplicated",
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
    # The garbage collector would scan all messages in flight again and again for cycles that do not exist.
    gc.set_threshold(500_000)
    # Between two batches the writer needs the interpreter lock for microseconds, while PostgreSQL waits.
    sys.setswitchinterval(0.0005)  # seconds that it may wait for the lock; 5 ms by default
    try:
        consumer.metrics.serve(options.metrics_port)
        consumer.run()
    except KafkaException as exception:  # a fatal one, raised by on_error: no commit would succeed
        consumer.abandon()
        again = "start it again; if KAFKA_GROUP_INSTANCE_ID is set, make it unique to this consumer"
        raise UserError(f"Kafka ended this consumer ({reason_of(exception)}): {again}") from None
    finally:
        consumer.close()


if __name__ == "__main__":
    sys.exit(run(options(), main))
