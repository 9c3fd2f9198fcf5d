"""The dead-letter topic: what is not a trade is kept there as it came, with the reason in its headers.

The way back, `python -m pipeline.maintenance.replay`, is in pipeline/maintenance/replay.py.
"""

# isort: off
import pipeline.command  # noqa: F401 — first: from here on Ctrl-C is an orderly end
# isort: on

import sys
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from pipeline.outage import Outage
from pipeline.settings import Settings

# A dead letter is its message plus headers, so it can be larger than anything the source topic takes.
TOPIC_CONFIG = {"max.message.bytes": "104857600"}
MAX_REASON_LENGTH = 1000  # characters
REASON_PREFIX = "__connect.errors."  # of the headers, as Kafka Connect names them (KIP-298)


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
        self._producer = Producer(defaults | settings.kafka)

    def publish(self, message: Message, reason: Exception, acknowledged: Callable[[], None]) -> None:
        """Send the message's key and value untouched; call `acknowledged` (from `poll`) once Kafka has it."""

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self._outage.end()
                acknowledged()
            else:
                self._outage.report(error.str())
                self.publish(message, reason, acknowledged)

        headers = [*(message.headers() or []), *_reason_headers(message, reason)]
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


def _reason_headers(message: Message, reason: Exception) -> list[tuple[str, bytes]]:
    """Name them as Kafka Connect does, so that its users' tools read them."""
    kind = type(reason)
    values = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "exception.class.name": f"{kind.__module__}.{kind.__qualname__}",
        "exception.message": str(reason)[:MAX_REASON_LENGTH],
    }
    return [(REASON_PREFIX + name, str(value).encode(errors="replace")) for name, value in values.items()]


def reasons(message: Message) -> dict[str, str]:
    """Read the headers that `_reason_headers` wrote, without their prefix."""
    return {
        name.removeprefix(REASON_PREFIX): (value or b"").decode(errors="replace")
        for name, value in message.headers() or []
        if name.startswith(REASON_PREFIX)
    }


if __name__ == "__main__":
    from pipeline.maintenance.replay import main

    sys.exit(main())
