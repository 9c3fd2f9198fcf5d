"""The messages of the recording producer: trades in every spelling, and invalid messages."""

import json
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from confluent_kafka import KafkaError, Message, Producer

from tests.messages import SPELLINGS
from tests.services import eventually

PARTITIONS = 3  # when the topic is created; it may get more
INVALID_EVERY = 200  # messages
BURST_EVERY = 8  # faults
TICKERS = ("AAPL", "MSFT", "GOOGL", "AMZN", "TSLA", "META", "NVDA", "BRK.B", "7203.T", "株式会社")
IDENTITY = "00000000-0000-7000-8000-"  # how every trade_id here begins
FIRST_MOMENT = datetime(2026, 1, 31, 8, 30, tzinfo=UTC)


def message(number: int) -> tuple[bytes, bytes | None]:
    """Return key and value of message `number`: always the same, and different from any other message."""
    return invalid_message(number) if is_invalid(number) else valid_message(number)


def is_invalid(number: int) -> bool:
    """Return whether message `number` is an invalid one."""
    return number % INVALID_EVERY == INVALID_EVERY - 1


def valid_message(number: int) -> tuple[bytes, bytes]:
    """Return key and value of trade `number`, in one of the spellings of `tests/messages.py`."""
    spell, options = SPELLINGS[sorted(SPELLINGS)[number // 2 % len(SPELLINGS)]]
    fields = fields_of(number, spell)
    return str(fields["ticker"]).encode(), json.dumps(fields, **options).encode()


def fields_of(number: int, spell: Callable[[datetime], str]) -> dict[str, object]:
    """Return the fields of trade `number`, plus an unknown one, in an order that depends on the number."""
    trade_id = f"{IDENTITY}{number:012x}"
    fields = {
        "trade_id": trade_id if number % 2 else trade_id.upper(),
        "ticker": TICKERS[number % len(TICKERS)],
        "price": (number * 7919 % 9_999_999 + 1) / 100,
        "volume": number % 2_147_483_647 + 1,
        "side": ("buy", "sell")[number // 3 % 2],
        "timestamp": spell(FIRST_MOMENT + timedelta(microseconds=number)),
        "venue": {"name": "XNAS", "sequence": number},
    }
    names = list(fields)
    random.Random(number).shuffle(names)
    return {name: fields[name] for name in names}


def invalid_message(number: int) -> tuple[bytes, bytes | None]:
    """Return key and value of an invalid message."""
    fields = fields_of(number, datetime.isoformat)
    kinds: tuple[bytes | None, ...] = (
        None,
        b"",
        b"not JSON",
        b"\xff\xfe\x00",
        b"x" * 100_000,
        json.dumps(fields)[:-1].encode(),
        *(json.dumps(fields | wrong).encode() for wrong in WRONG_FIELDS),
    )
    return b"invalid-%d" % number, kinds[number // INVALID_EVERY % len(kinds)]


WRONG_FIELDS: tuple[dict[str, object], ...] = (
    {"trade_id": "4711"},
    {"ticker": "A\0"},
    {"ticker": "ELEVENCHARS"},
    {"price": -1},
    {"price": 0.001},
    {"volume": 1.5},
    {"volume": 2**31},
    {"side": "BUY"},
    {"timestamp": "tomorrow"},
)


def trade_number(trade_id: str) -> int | None:
    """Return the number behind a trade's id, or None if it is not from the recording producer."""
    return int(trade_id.removeprefix(IDENTITY), 16) if trade_id.startswith(IDENTITY) else None


class RecordingProducer(threading.Thread):
    """Produces `messages` messages over the campaign, and records which of them Kafka has acknowledged."""

    def __init__(self, bootstrap_servers: str, topic: str, messages: int, progress: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self.acknowledged = bytearray(messages)
        self.refused: list[KafkaError] = []
        self.stopped = threading.Event()
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._messages = messages
        self._progress = progress
        self._held = threading.Event()
        self._quiet = threading.Event()
        self._producer = self._connect()

    def _connect(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "reconnect.backoff.max.ms": 1000,
                "topic.metadata.refresh.interval.ms": 2000,  # so that it soon fills partitions that are added
                "linger.ms": 5,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        """Produce messages, as many as `progress` allows at each moment."""
        for number in range(self._messages):
            while number > self._progress() * self._messages and not self.stopped.is_set():
                self._producer.poll(0.01)
                self._rest()
            self._rest()
            while not self._enqueue(number) and not self.stopped.is_set():
                self._producer.poll(0.1)
            if self.stopped.is_set():
                break
        while (self._producer.flush(0.5) or self._held.is_set()) and not self.stopped.is_set():
            self._rest()

    def hold(self) -> None:
        """Pause producing; return once every message sent is acknowledged."""
        self._quiet.clear()
        self._held.set()
        eventually(lambda: self._quiet.is_set() or not self.is_alive(), timeout=60)

    def go_on(self) -> None:
        """Resume with a new producer, because the topic may have been recreated."""
        self._producer = self._connect()
        self._held.clear()

    def _rest(self) -> None:
        while self._held.is_set() and not self.stopped.is_set():
            if not self._producer.flush(0.1):
                self._quiet.set()
                time.sleep(0.05)

    def _enqueue(self, number: int) -> bool:
        key, value = message(number)
        try:
            # With keys alone, the third of three partitions would get no trades.
            partition = number // 2 % PARTITIONS if number % 2 else -1
            self._producer.produce(self._topic, value, key, partition, partial(self._delivered, number))
        except BufferError:
            return False
        self._producer.poll(0)
        return True

    def _delivered(self, number: int, error: KafkaError | None, _: Message) -> None:
        if error:
            self.refused.append(error)
        else:
            self.acknowledged[number] = 1


class Pace:
    """Says what share of the messages may be sent by now: half of it evenly, half in bursts when a fault begins."""

    def __init__(self, faults: int) -> None:
        self._faults = faults
        self._begun = self._ended = 0
        self._first = self._last = time.monotonic()

    def begin_fault(self) -> None:
        """Count a fault that begins; every `BURST_EVERY`th releases a burst."""
        self._begun += 1

    def end_fault(self) -> None:
        """Count a fault that is over."""
        self._ended += 1
        self._last = time.monotonic()

    def progress(self) -> float:
        """Return the share, from 0 to 1."""
        if self._ended >= self._faults:
            return 1.0
        usual = (self._last - self._first) / self._ended if self._ended else 5.0  # seconds a fault
        even = self._ended + min(1.0, (time.monotonic() - self._last) / usual)
        bursts = self._begun // BURST_EVERY * BURST_EVERY
        return (even + bursts) / 2 / self._faults
