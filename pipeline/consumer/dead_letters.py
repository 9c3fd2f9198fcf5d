"""The dead-letter topic: what is not a trade is kept there as it came, with the reason in its headers.

The way back is `python -m pipeline.maintenance.replay`.
"""

from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from pipeline.kafka import client
from pipeline.outage import Outage
from pipeline.reasons import headers_of, reason_headers
from pipeline.settings import Settings

# A dead letter is its message plus headers, so it can be larger than anything the source topic takes.
# It keeps the time of its message, which may be long ago: no retention, or it could expire as it is written.
TOPIC_CONFIG = {"max.message.bytes": "104857600", "retention.ms": "-1"}


class DeadLetters:
    """Publishes messages to the dead-letter topic until Kafka has acknowledged them."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.dead_letter_topic
        self._outage = Outage(f"The dead-letter topic {self._topic}")
        defaults: dict[str, Any] = {
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # for as long as it takes
            "message.max.bytes": 1_000_000_000,  # the topic's own limit decides
            "log_level": 0,
        }
        self._producer = client(Producer, defaults | settings.kafka)

    def publish(self, message: Message, reason: Exception, acknowledged: Callable[[], None]) -> None:
        """Send the message's key and value untouched; call `acknowledged` (from `poll`) once Kafka has it."""

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self._outage.end()
                acknowledged()
            else:
                self._outage.report(error.str())
                self.publish(message, reason, acknowledged)

        headers = [*headers_of(message), *reason_headers(message, reason)]
        _, timestamp = message.timestamp()
        while True:
            try:
                self._producer.produce(
                    self._topic, message.value(), message.key(),
                    headers=headers, timestamp=max(timestamp, 0), on_delivery=on_delivery,
                )  # fmt: skip
                return
            except BufferError:  # the queue is full: let it drain
                self._producer.poll(0.1)

    def poll(self) -> None:
        """Take what Kafka acknowledged since."""
        self._producer.poll(0)

    def flush(self, seconds: float) -> None:
        """Wait for the acknowledgements of all that was published, at most that long."""
        self._producer.flush(seconds)
