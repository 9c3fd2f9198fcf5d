"""Metrics for Prometheus: with `--metrics-port 9101`, at http://127.0.0.1:9101/metrics.

They are updated once per batch or per second, where the scripts count for their printed lines, too. Bytes and lag are
librdkafka's own statistics, which arrive every second: https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md
"""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from pipeline.trade import COLUMNS
from pipeline.user_error import UserError

COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_COLUMN = re.compile("|".join(COLUMNS))

Address = tuple[str, int]


class Metrics:
    """Metrics of both scripts: the process's own figures, and the bytes sent to or received from Kafka."""

    def __init__(self, direction: str) -> None:
        """`direction` is "sent" or "received"."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._bytes = Counter(f"trades_{direction}_bytes", f"Message bytes {direction}.", registry=self.registry)
        self._bytes_before: dict[str, int] = {}  # by client: an earlier one may still be leaving
        self._bytes_key = "txmsg_bytes" if direction == "sent" else "rxmsg_bytes"

    def serve(self, address: Address | None) -> None:
        """Serve the metrics at `address`, in a thread that ends with the process. Raises `UserError`."""
        if address is None:
            return
        host, port = address
        try:
            start_http_server(port, host, self.registry)
        except (OSError, UnicodeError) as error:  # the latter for a host with an invalid name
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"metrics cannot be served on {host}:{port} ({reason}): give another --metrics-port"
            ) from None

    def on_statistics(self, text: str) -> None:
        """Take librdkafka's statistics (its `stats_cb`)."""
        self._take(json.loads(text))

    def _take(self, statistics: dict[str, Any]) -> None:
        name, total = statistics["name"], statistics[self._bytes_key]
        self._bytes.inc(max(0, total - self._bytes_before.get(name, 0)))  # the total drops when a topic is deleted
        self._bytes_before[name] = total


class ProducerMetrics(Metrics):
    """What becomes of the producer's trades."""

    def __init__(self, in_flight: Callable[[], int]) -> None:
        super().__init__("sent")
        self.sent = Counter("trades_sent", "Trades handed to the Kafka client.", registry=self.registry)
        self.acknowledged = Counter("trades_acknowledged", "Trades acknowledged by Kafka.", registry=self.registry)
        self.errors = Counter("trades_delivery_errors", "Deliveries of trades that failed.", registry=self.registry)
        waiting = Gauge("trades_in_flight", "Trades neither acknowledged nor refused.", registry=self.registry)
        waiting.set_function(in_flight)


class ConsumerMetrics(Metrics):
    """What becomes of the messages that the consumer reads."""

    def __init__(self, database_up: Callable[[], bool]) -> None:
        super().__init__("received")
        self._stored = Counter("trades_stored", "New rows.", registry=self.registry)
        self._repeated = Counter("trades_repeated", "Trades that were stored already.", registry=self.registry)
        self._batches = Counter("trades_batches_stored", "Transactions that stored trades.", registry=self.registry)
        self.commit_seconds = Histogram(
            "trades_commit_seconds",
            "Time of one attempt to store a batch and commit it to PostgreSQL.",
            buckets=COMMIT_SECONDS,
            registry=self.registry,
        )
        self._dead_letters = Counter(
            "trades_dead_letters",
            "Messages that went to the dead-letter topic, by exception and the column it names.",
            ["error", "column"],
            registry=self.registry,
        )
        self._lag = Gauge(
            "trades_consumer_lag_messages",
            "Messages of an assigned partition whose offsets are not committed yet.",
            ["partition"],
            registry=self.registry,
        )
        database = Gauge("trades_database_up", "1 unless PostgreSQL failed the last batch.", registry=self.registry)
        database.set_function(database_up)

    def batch(self, inserted: int, repeated: int) -> None:
        """Count a batch that is stored."""
        self._stored.inc(inserted)
        self._repeated.inc(repeated)
        self._batches.inc()

    def dead_letter(self, reason: Exception) -> None:
        """Count a dead letter. Labels are never free text, so there are only a few, whatever is sent."""
        column = _COLUMN.search(str(reason))
        self._dead_letters.labels(type(reason).__name__, column[0] if column else "").inc()

    def _take(self, statistics: dict[str, Any]) -> None:
        super()._take(statistics)
        self._lag.clear()  # drops partitions that others have now
        for topic in statistics["topics"].values():
            for number, partition in topic["partitions"].items():
                if partition["fetch_state"] == "active" and partition["consumer_lag"] >= 0:
                    self._lag.labels(number).set(partition["consumer_lag"])


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--metrics-port`; its value is an `Address` or None."""
    text = "serve metrics for Prometheus on this port (of 127.0.0.1 unless a host is given)"
    parser.add_argument("--metrics-port", type=_address, metavar="[HOST:]N", help=text)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text}: give a port, such as 9101, or host:port")
    return host or "127.0.0.1", int(port)
