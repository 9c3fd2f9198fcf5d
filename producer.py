"""Publish the trades of a small, believable stock market to Kafka.

    python producer.py                              # one trade a second, each printed with its delivery
    python producer.py --rate 5000                  # 5,000 a second, evenly spread; one line a second
    python producer.py --rate max --count 1000000   # a million, as fast as Kafka takes them
    python producer.py --seed 7 --count 100         # the same hundred trades every time

What is guaranteed, on the lines marked [n]:
  [1] no trade is lost, doubled or put out of its ticker's order between here and Kafka, however often a request has
      to be repeated or a broker is away: the producer is idempotent and never gives a trade up.
  [2] when Kafka is slower than the market, the market waits. Nothing is thrown away to keep the pace.
  [3] only what Kafka has acknowledged is counted as acknowledged.
"""

from pipeline.command import parser, run, stop_requested, take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports, during which Ctrl-C ends a script in order, too

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from faker import Faker

from pipeline.kafka import client, ensure_topic
from pipeline.metrics import ProducerMetrics, add_option
from pipeline.outage import Outage
from pipeline.producer.pace import Pace
from pipeline.producer.tape import TradeProvider
from pipeline.settings import Settings
from pipeline.trade import decode, describe
from pipeline.user_error import UserError

READABLE_RATE = 20  # trades/s up to which each is printed
MAX_RATE = 1e9  # trades/s; more than any broker takes
NOMINAL_RATE = 250_000  # trades/s at which time passes for `--rate max --seed N`
CHUNK = 500  # trades between two looks at the clock
SECONDS_FOR_BROKER = 30.0  # that a start waits for Kafka
SECONDS_TO_STOP = 10.0  # that a stop waits for acknowledgements
SECONDS_OF_SILENCE = 3.0  # without an acknowledgement that are an outage
SECONDS_UNNOTICED = 0.1  # that a stop may go unnoticed

KAFKA_DEFAULTS: dict[str, Any] = {
    "enable.idempotence": True,  # [1]
    "message.timeout.ms": 0,  # [1] no limit
    "reconnect.backoff.max.ms": 1000,
    "linger.ms": 1,  # that a trade waits for others to share its request
    "statistics.interval.ms": 1000,  # for the metrics
    "log_level": 0,  # what matters of librdkafka's log comes through error_cb,
    "logger": logging.Logger("librdkafka", level=logging.CRITICAL + 1),  # the end of the world as an exception
}
FULL_SPEED = {"linger.ms": 5}  # small requests would cost the broker more than they save the trades

Trades = list[tuple[str, str]]  # ticker and JSON of one after the other
Tape = Callable[[int], Trades]  # makes so many, now


class TradeProducer:
    """Sends trades to Kafka at a rate (trades/s) and counts what becomes of them."""

    def __init__(self, settings: Settings, rate: float, count: int) -> None:
        """Connect in the background. Raises `UsageError` for a wrong KAFKA_… variable."""
        self.rate = rate
        self.count = count
        self.sent = 0  # trades handed to librdkafka
        self.errors = 0  # trades of them that Kafka refused
        self.refusal: KafkaError | None = None  # which waiting does not mend
        self._topic = settings.topic
        self._outage = Outage(f"Kafka at {settings.bootstrap_servers}")
        self._began = self._second_began = time.monotonic()
        self._sent_before = self._acknowledged_before = 0
        self._silent_for = 0.0  # seconds that trades wait for the next acknowledgement
        self.metrics = ProducerMetrics(in_flight=lambda: self.in_flight)
        callbacks = {
            "error_cb": self._on_error,
            "stats_cb": self.metrics.on_statistics,
            "on_delivery": self._on_delivery,
            "delivery.report.only.error": rate > READABLE_RATE,  # Python called once a trade would halve the speed
        }
        defaults = KAFKA_DEFAULTS | (FULL_SPEED if rate == MAX_RATE else {})
        self._producer = client(Producer, defaults | settings.kafka | callbacks)

    @property
    def in_flight(self) -> int:
        """Trades that Kafka has neither acknowledged nor refused."""
        return len(self._producer)

    @property
    def acknowledged(self) -> int:
        """Trades that are in Kafka for certain."""
        return self.sent - self.in_flight - self.errors  # [3]

    def run(self, tape: Tape) -> None:
        """Send until the count is reached and acknowledged, the user wants to stop, or Kafka refuses for good."""
        self._send(tape(1))
        self._await_acknowledgements()  # the first takes up to a second: better one trade waits for it than thousands
        self._second_began = time.monotonic()
        pace = Pace(self.rate, self._second_began)
        while self.sent < self.count and not self._ending():
            due = pace.due(time.monotonic(), min(CHUNK, self.count - self.sent))
            self._send(tape(due))
            self._serve(min(pace.wait(), SECONDS_UNNOTICED))
        self._await_acknowledgements()

    def close(self) -> None:
        """Wait for the acknowledgements that are still missing, then sum up."""
        if self.refusal is None:
            self._producer.flush(SECONDS_TO_STOP)
        lost = self.sent - self.acknowledged
        seconds = time.monotonic() - self._began
        sign = "⚠️ " if lost else "✅"
        print(f"{sign} {self.acknowledged:,} trades acknowledged by Kafka in {seconds:.1f} s, {lost:,} not delivered.")

    def _send(self, trades: Trades) -> None:
        produce, topic = self._producer.produce, self._topic
        for ticker, message in trades:
            try:
                produce(topic, message, ticker)
            except BufferError:
                if not self._send_later(ticker, message):
                    return
            self.sent += 1

    def _send_later(self, ticker: str, message: str) -> bool:
        """Wait until librdkafka's queue has room [2]; tell whether it took the trade before the end."""
        while not self._ending():
            self._serve(SECONDS_UNNOTICED)
            try:
                self._producer.produce(self._topic, message, ticker)
                return True
            except BufferError:
                continue
        return False

    def _await_acknowledgements(self) -> None:
        while self.in_flight and not self._ending():
            self._serve(SECONDS_UNNOTICED)

    def _ending(self) -> bool:
        return stop_requested() or self.refusal is not None

    def _serve(self, seconds: float) -> None:
        """Let librdkafka report for so long, or until it has; once a second, print a line and see if Kafka is back."""
        self._producer.poll(seconds)
        passed = time.monotonic() - self._second_began
        if passed < 1:
            return
        acknowledged = self.acknowledged
        self.metrics.sent.inc(self.sent - self._sent_before)
        self.metrics.acknowledged.inc(acknowledged - self._acknowledged_before)
        if acknowledged > self._acknowledged_before:
            self._silent_for = 0.0
            self._outage.end()
        elif self.in_flight:
            self._silent_for += passed
            if self._silent_for > SECONDS_OF_SILENCE:
                # To a broker that came back without its memory, librdkafka would offer the same trades for ever.
                self._outage.report("nothing is acknowledged (a broker started empty needs a new producer)")
        if self.rate > READABLE_RATE and self.sent > 1:
            rate = (self.sent - self._sent_before) / passed
            print(
                f"📤 {rate:,.0f} trades/s; {self.sent:,} sent, {acknowledged:,} acknowledged, "
                f"{self.in_flight:,} in flight, {self.errors:,} errors{self._progress(rate)}",
                flush=True,
            )
        self._second_began += passed
        self._sent_before, self._acknowledged_before = self.sent, acknowledged

    def _progress(self, rate: float) -> str:
        """Tell how far the count has come, and how long the rest takes at this rate (trades/s)."""
        if self.count == sys.maxsize:
            return ""
        left = timedelta(seconds=round((self.count - self.sent) / rate)) if rate else "unknown time"
        return f"; {self.sent / self.count:.0%} of {self.count:,}, {left} left"

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Take note of a refused trade, or print a delivered one."""
        if error is not None:
            self.errors += 1
            self.metrics.errors.inc()
            if error.code() != KafkaError._MSG_TIMED_OUT:  # that comes only of a user's own KAFKA_MESSAGE_TIMEOUT_MS
                self.refusal = error
            return
        print(
            f"📤 {describe(decode(message.value()))}"
            f"  → {message.topic()}, partition {message.partition()}, offset {message.offset()}"
            f"{self._progress(self.rate)}",
            flush=True,
        )

    def _on_error(self, error: KafkaError) -> None:
        """Say why a broker cannot be reached; librdkafka goes on trying. Fatal errors are raised by poll() instead."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # which follows on the one that says why
            self._outage.report(error.str())


def read_rate(text: str) -> float:
    """Read a rate in trades/s: a number above 0, or max for as many as Kafka takes."""
    if text == "max":
        return MAX_RATE
    if not text.replace(".", "", 1).isdecimal() or not 0 < float(text) <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text}: give trades per second, such as 1, 0.5 or 5000, or max")
    return float(text)


def read_count(text: str) -> int:
    """Read a number of trades."""
    if not text.isdecimal() or not 0 < int(text) < sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text}: give a number of trades, such as 1000")
    return int(text)


def options() -> argparse.ArgumentParser:
    """Return the command line's options; a wrong one is one line, exit code 2."""
    known = parser(__doc__)
    known.add_argument("--rate", type=read_rate, default=1.0, metavar="N|max", help="trades per second (default: 1)")
    known.add_argument("--count", type=read_count, default=sys.maxsize, metavar="N", help="end after so many trades")
    known.add_argument("--seed", type=int, metavar="N", help="the same trades every time, but for their timestamps")
    add_option(known)
    return known


def open_market(seed: int | None, rate: float) -> Tape:
    """Return a market's tape. With a seed, time passes there by the trade and not by the clock: prices repeat, too."""
    fake = Faker()
    if seed is None:
        return TradeProvider(fake).trade_messages
    fake.seed_instance(seed)
    step = round(1e9 / min(rate, NOMINAL_RATE))  # nanoseconds
    return TradeProvider(fake, market_clock=itertools.count(0, step).__next__).trade_messages


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run the producer."""
    ensure_topic(settings, settings.topic, SECONDS_FOR_BROKER)
    if stop_requested():
        print("Producer stopped before it started.")
        return
    producer = TradeProducer(settings, options.rate, options.count)
    producer.metrics.serve(options.metrics_port)
    try:
        producer.run(open_market(options.seed, options.rate))
    except KafkaException as exception:
        producer.refusal = exception.args[0]
    finally:
        producer.close()
    if producer.refusal is not None:
        raise UserError(f"Kafka takes no more trades: {producer.refusal.str()}")


if __name__ == "__main__":
    sys.exit(run(options(), main))
