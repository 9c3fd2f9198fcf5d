"""What the consumer prints: each trade while there are few, one line a second when there are many."""

import logging
import time

from confluent_kafka import Consumer, Message

from pipeline.command import first_line, printable
from pipeline.consumer.table import Stored
from pipeline.metrics import ConsumerMetrics
from pipeline.trade import READABLE_RATE, decode, describe

log = logging.getLogger(__name__)


class Progress:
    """Counts what became of the messages, and prints it."""

    def __init__(self, metrics: ConsumerMetrics) -> None:
        self.metrics = metrics
        self.total = Stored()
        self.dead_letters = 0
        self.second_began = time.monotonic()
        self.stored_this_second = 0
        self.shown_this_second = 0

    def stored(self, messages: list[Message], stored: Stored) -> None:
        """Count a stored batch, and print its trades while there are few."""
        self.total.inserted += stored.inserted
        self.total.repeated += stored.repeated
        self.metrics.batch(stored.inserted, stored.repeated)
        self.stored_this_second += stored.inserted
        for index, message in enumerate(messages[: max(0, READABLE_RATE - self.shown_this_second)]):
            if index not in stored.refused:
                print(f"📥 {printable(describe(decode(message.value())))}", flush=True)
        self.shown_this_second += len(messages)

    def dead_letter(self, message: Message, reason: Exception) -> None:
        """Count a message that goes to the dead-letter topic, and log why."""
        self.dead_letters += 1
        self.metrics.dead_letter(reason)
        if self.shown_this_second < READABLE_RATE:
            place = f"partition {message.partition()}, offset {message.offset()}"
            log.warning("⚠️  Dead letter (%s): %s", place, printable(first_line(reason)))
        self.shown_this_second += 1

    def show_rate(self, consumer: Consumer) -> None:
        """Print one line for the past second, if it had too many trades to print them one by one."""
        now = time.monotonic()
        if now - self.second_began < 1:
            return
        if self.shown_this_second > READABLE_RATE:
            rate = self.stored_this_second / (now - self.second_began)
            print(f"📥 {rate:,.0f} trades/s, {lag(consumer):,} behind; {self.summary()}", flush=True)
        self.second_began, self.stored_this_second, self.shown_this_second = now, 0, 0

    def summary(self) -> str:
        """Return the totals since the start, in words."""
        return (
            f"{self.total.inserted:,} trades stored, {self.total.repeated:,} repeated, "
            f"{self.dead_letters:,} dead letters"
        )


def lag(consumer: Consumer) -> int:
    """Return the number of messages that wait in the assigned partitions, as of the last fetch."""
    behind = 0
    for position in consumer.position(consumer.assignment()):
        _, newest = consumer.get_watermark_offsets(position, cached=True)
        behind += max(0, newest - position.offset) if position.offset >= 0 else 0
    return behind
