"""A topic full of trades, in the JSON spellings of different producers."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from json import dumps
from pathlib import Path

from confluent_kafka import Producer
from msgspec.structs import asdict

from benchmarks.command import show
from pipeline.trade import Trade, encode
from tests.services import Kafka

TICKERS = ("AAPL", "MSFT", "GOOGL", "AMZN", "TSLA", "META", "NVDA")


def isoformat(trade: Trade) -> bytes:
    """Spell the trade as Python does by default: spaces, offset +00:00, no fraction of a second when it is zero."""
    moment = datetime.fromisoformat(trade.timestamp)
    return dumps(asdict(trade) | {"timestamp": moment.isoformat()}).encode()


def javascript(trade: Trade) -> bytes:
    """Spell the trade as JSON.stringify() does: milliseconds, Z."""
    return dumps(asdict(trade) | {"timestamp": f"{trade.timestamp[:23]}Z"}, separators=(",", ":")).encode()


def java(trade: Trade) -> bytes:
    """Spell the trade as Jackson does, with an Instant in nanoseconds, and add a field that is not ours."""
    fields = {"venue": "XNAS"} | asdict(trade) | {"timestamp": f"{trade.timestamp[:26]}123Z"}
    return dumps(fields, separators=(",", ":")).encode()


def local(trade: Trade) -> bytes:
    """Spell the trade with New York's UTC offset."""
    moment = datetime.fromisoformat(trade.timestamp).timestamp() - 5 * 3600
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "-05:00")
    return dumps(asdict(trade) | {"timestamp": text}).encode()


_TURNS = cycle((encode, isoformat, javascript))

SPELLINGS: dict[str, Callable[[Trade], bytes]] = {
    "ours": encode,
    "isoformat": isoformat,
    "javascript": javascript,
    "java": java,
    "local": local,
    "mixed": lambda trade: next(_TURNS)(trade),  # ours, isoformat and javascript in turn
}


@dataclass(frozen=True)
class Backlog:
    """What is in a topic, and therefore has to be in the table in the end."""

    trades: int
    first: datetime  # UTC
    volume: int
    price: float


def make_trades(count: int) -> Iterator[Trade]:
    """Make trades 10 µs apart, starting now, with keys and times in ascending order, like the producer's."""
    generator = random.Random(1)
    prices = {ticker: 300.0 for ticker in TICKERS}
    started = time.time_ns() // 1_000_000 * 1000  # µs, a whole millisecond
    for number in range(count):
        moment = started + 10 * number
        digits = f"{moment // 1000:012x}7{moment % 1000:03x}{generator.getrandbits(62) | 1 << 63:016x}"
        seconds, microseconds = divmod(moment, 1_000_000)
        ticker = TICKERS[number % len(TICKERS)]
        prices[ticker] = round(max(100.0, prices[ticker] + (generator.getrandbits(3) - 3.5) / 50), 2)
        yield Trade(
            trade_id=f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            ticker=ticker,
            price=prices[ticker],
            volume=1 + generator.getrandbits(10),
            side="buy" if generator.random() < 0.5 else "sell",
            timestamp=f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{microseconds:06}Z",
        )


def fill(broker: Kafka, topics: dict[str, str], count: int, rows_file: Path) -> Backlog:
    """Produce the same trades to every topic, each in its spelling, and write the same rows to a file for psql."""
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    first, volume, cents = "", 0, 0
    with rows_file.open("w") as rows:
        for number, trade in enumerate(make_trades(count)):
            first = first or trade.timestamp
            volume += trade.volume
            cents += round(trade.price * 100)
            rows.write(
                f"{trade.trade_id}\t{trade.ticker}\t{trade.price:.2f}\t{trade.volume}\t{trade.side}\t{trade.timestamp}\n"
            )
            for topic, spelling in topics.items():
                value = SPELLINGS[spelling](trade)
                while not _enqueue(producer, topic, value, trade.ticker):
                    producer.poll(0.05)
            if number % 50_000 == 0:
                show(f"filling {len(topics)} topic(s): {number:,} of {count:,}")
    unsent = producer.flush(60)
    assert not unsent, f"{unsent} messages not acknowledged"
    return Backlog(count, datetime.fromisoformat(first).replace(tzinfo=None), volume, cents / 100)


def _enqueue(producer: Producer, topic: str, value: bytes, key: str) -> bool:
    try:
        producer.produce(topic, value, key)
    except BufferError:
        return False
    return True
