"""Headers that say why a message is a dead letter, named as in Kafka Connect (KIP-298), so that its tools apply."""

from confluent_kafka import Message

REASON_PREFIX = "__connect.errors."
MAX_REASON_LENGTH = 1000  # characters

Headers = list[tuple[str, bytes | None]]


def headers_of(message: Message) -> Headers:
    """Return a message's headers, or none if a header's name is not UTF-8, which confluent-kafka cannot return."""
    try:
        return list(message.headers() or [])
    except SystemError:  # raised instead of UnicodeDecodeError
        message.set_headers([])  # asked again, it would return invalid memory
        return []


def size_of(message: Message) -> int:
    """Return the bytes of a message's value, key and headers."""
    headers = sum(len(name) + len(value or b"") for name, value in headers_of(message))
    return len(message) + len(message.key() or b"") + headers


def reason_headers(message: Message, reason: Exception) -> Headers:
    """Return the headers that say where a message came from and why it is a dead letter."""
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
    """Return the headers that `reason_headers` wrote, without their prefix."""
    return {
        name.removeprefix(REASON_PREFIX): (value or b"").decode(errors="replace")
        for name, value in headers_of(message)
        if name.startswith(REASON_PREFIX)
    }
