"""The dead-letter topic: it keeps each invalid message as it came, with the reason in its headers.

`python -m pipeline.maintenance.replay` sends dead letters back.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from pipeline.kafka import PRODUCER_DEFAULTS, PURGED, TopicWatch, client, ensure_topic
from pipeline.outage import Outage
from pipeline.reasons import Headers, headers_of, reason_headers, size_of
from pipeline.settings import Settings
from pipeline.user_error import UserError

# A dead letter is its message plus headers, so it can be larger than anything the source topic accepts. It keeps its
# message's timestamp, which may be long ago: with a retention limit, it could expire as soon as it is written.
TOPIC_CONFIG = {"max.message.bytes": "104857600", "retention.ms": "-1", "retention.bytes": "-1"}
MAX_OUTSTANDING = 10_000  # dead letters
MAX_OUTSTANDING_BYTES = 16 << 20
SECONDS_BETWEEN_ATTEMPTS = 1.0, 30.0  # backoff: first, longest
SECONDS_TO_PURGE = 1.0

KAFKA_DEFAULTS = PRODUCER_DEFAULTS | {"message.max.bytes": 1_000_000_000}  # no limit but the topic's own
# A duplicate dead letter is harmless, whereas an idempotent producer could end in a fatal error.
KAFKA_MUSTS = {"enable.idempotence": False, "acks": "all"}


@dataclass(eq=False)
class _Letter:
    message: Message
    headers: Headers  # not the exception: its traceback would keep the whole batch in memory
    size: int  # bytes
    acknowledged: Callable[[], None]


class DeadLetters:
    """Publishes messages to the dead-letter topic, retrying with backoff until Kafka has acknowledged them."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.dead_letter_topic
        self._outage = Outage(f"The dead-letter topic {self._topic}")
        self._settings = settings
        self._config = KAFKA_DEFAULTS | settings.kafka | KAFKA_MUSTS
        self._producer = client(Producer, self._config)
        self._watch = TopicWatch(client(AdminClient, settings.kafka), self._topic)
        self._outstanding: set[_Letter] = set()  # not acknowledged yet ...
        self._bytes = 0
        self._refused: list[_Letter] = []  # ... and those of them to resend
        self._delay = SECONDS_BETWEEN_ATTEMPTS[0]
        self._next_attempt = 0.0

    @property
    def full(self) -> bool:
        """Return whether too many dead letters are unacknowledged to read more messages."""
        return len(self._outstanding) >= MAX_OUTSTANDING or self._bytes >= MAX_OUTSTANDING_BYTES

    @property
    def in_flight(self) -> bool:
        """Return whether Kafka has yet to answer for any dead letter."""
        return len(self._outstanding) > len(self._refused)

    def publish(self, message: Message, reason: Exception, acknowledged: Callable[[], None]) -> None:
        """Send the message's key and value untouched; call `acknowledged` (from `poll`) once Kafka has it."""
        headers = headers_of(message) + reason_headers(message, reason)
        letter = _Letter(message, headers, size_of(message), acknowledged)
        self._outstanding.add(letter)
        self._bytes += letter.size
        self._send(letter)

    def poll(self, seconds: float = 0) -> None:
        """Handle Kafka's answers, waiting up to `seconds` for one; resend what it refused once the backoff is over."""
        self._producer.poll(seconds)
        if self._watch.made_again():
            self._renew()
        if self._watch.missing:
            self._make_topic()
        if self._refused and time.monotonic() >= self._next_attempt:
            self._delay = min(2 * self._delay, SECONDS_BETWEEN_ATTEMPTS[1])
            refused, self._refused = self._refused, []
            for letter in refused:
                if letter in self._outstanding:
                    self._send(letter)

    def forget(self) -> None:
        """Drop unacknowledged letters: Kafka redelivers their messages to whoever has the partitions by then."""
        self._outstanding.clear()
        self._refused.clear()
        self._bytes = 0
        self._producer.purge(in_flight=False)

    def _make_topic(self) -> None:
        self._watch.missing = False  # until the next look
        try:
            ensure_topic(self._settings, self._topic, patience=0, **TOPIC_CONFIG)
        except UserError as error:
            self._outage.report(str(error))
        else:
            if not self._outstanding:
                self._outage.end()

    def _renew(self) -> None:
        """Switch to a new client: the old one would keep sending to the old topic's leaders (see producer.py)."""
        self._producer.purge()  # whatever is left counts as refused
        self._producer.flush(SECONDS_TO_PURGE)
        self._producer = client(Producer, self._config)
        self._watch.id = ""
        self._next_attempt = 0.0

    def _send(self, letter: _Letter) -> None:
        message = letter.message
        _, timestamp = message.timestamp()
        timestamp = min(max(timestamp, 0), int(1000 * time.time()))  # Kafka refuses those far in the future
        try:
            self._producer.produce(
                self._topic, message.value(), message.key(), timestamp=timestamp, headers=letter.headers,
                on_delivery=partial(self._on_delivery, letter),
            )  # fmt: skip
        except BufferError:
            self._refuse(letter)
        except KafkaException as exception:
            self._refuse(letter, exception.args[0])

    def _on_delivery(self, letter: _Letter, error: KafkaError | None, _: Message) -> None:
        if letter not in self._outstanding:
            return
        if error is not None:
            self._refuse(letter, error)
            return
        self._outstanding.discard(letter)
        self._bytes -= letter.size
        if not self._outstanding:  # one success says nothing about refused ones, which may be too large
            self._outage.end()
            self._delay = SECONDS_BETWEEN_ATTEMPTS[0]
        letter.acknowledged()

    def _refuse(self, letter: _Letter, error: KafkaError | None = None) -> None:
        if error is not None and error.code() not in PURGED:
            self._outage.report(error.str())
        if not self._refused:
            self._next_attempt = time.monotonic() + self._delay
        self._refused.append(letter)
