"""What a person sees of the consumer: each trade while there are few, one line a second when there are many."""

import logging
import time

from confluent_kafka import Consumer, Message

from pipeline.command import first_line, printable
from pipeline.consumer.table import Stored
from pipeline.metrics import ConsumerMetrics
from pipeline.trade import READABLE_RATE, decode, describe

log = logging.getLogger(__name__)


class Progress:
    """Counts what became of the messages, and says so."""

    def __init__(self, metrics: ConsumerMetrics) -> None:
        self.metrics = metrics
        self.total = Stored()
        self.dead_letters = 0
        self.second_began = time.monotonic()
        self.stored_this_second = 0
        self.shown_this_second = 0

    def stored(self, messages: list[Message], stored: Stored) -> None:
        """Count a batch that is safe."""
        self.total.inserted += stored.inserted
        self.total.repeated += stored.repeated
        self.metrics.batch(stored.inserted, stored.repeated)
        self.stored_this_second += stored.inserted
        for message in messages[: max(0, READABLE_RATE - self.shown_this_second)]:
            print(f"📥 {printable(describe(decode(message.value())))}", flush=True)
        self.shown_this_second += len(messages)

    def dead_letter(self, message: Message, reason: Exception) -> None:
        """Count a message that goes to the dead-letter topic, and say why."""
        self.dead_letters += 1
        self.metrics.dead_letter(reason)
        if self.shown_this_second < READABLE_RATE:
            place = f"partition {message.partition()}, offset {message.offset()}"
            log.warning("⚠️  Dead letter (%s): %s", place, printable(first_line(reason)))
        self.shown_this_second += 1

    def show_rate(self, consumer: Consumer) -> None:
        """Print a line for the second that has passed, if its trades were too many to be printed one by one."""
        now = time.monotonic()
        if now - self.second_began < 1:
            return
        if self.shown_this_second > READABLE_RATE:
            rate = self.stored_this_second / (now - self.second_began)
            print(f"📥 {rate:,.0f} trades/s, {lag(consumer):,} behind; {self.summary()}", flush=True)
        self.second_began, self.stored_this_second, self.shown_this_second = now, 0, 0

    def summary(self) -> str:
        """Count what was done since the start."""
        return (
            f"{self.total.inserted:,} trades stored, {self.total.repeated:,} repeated, "
            f"{self.dead_letters:,} dead letters"
        )


def lag(consumer: Consumer) -> int:
    """Count the messages that wait in the assigned partitions, as of the last fetch."""
    behind = 0
    for position in consumer.position(consumer.assignment()):
        _, newest = consumer.get_watermark_offsets(position, cached=True)
        behind += max(0, newest - position.offset) if position.offset >= 0 else 0
    return behind
