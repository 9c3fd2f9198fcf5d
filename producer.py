"""Publish stock trades to Kafka, from a small simulated market or from a recording.

    python producer.py                              # one trade a second, each printed once delivered
    python producer.py --rate 5000                  # 5,000 a second, evenly spread; one line a second
    python producer.py --rate max --count 1000000   # a million, as fast as Kafka takes them
    python producer.py --seed 7 --count 100         # the same hundred trades every time

    python producer.py --replay trades.csv                # recorded trades, at their original pace
    python producer.py --replay trades.csv.gz --speed 10  # ten times as fast; --speed max: as fast as Kafka takes them
    python producer.py --replay trades.jsonl --now        # as if they happened now: with new ids and times

A recording is CSV with the columns of the table (trade_id,ticker,price,volume,side,timestamp, in any order), JSON lines
as kafka-console-consumer prints them, either of them gzipped, or Parquet. Ctrl-C prints the --skip to resume with.

Guarantees, kept on the lines marked [n]:
  [1] no trade is lost, duplicated or reordered within its ticker on the way to Kafka, however often a request is
      retried or a broker is down: the producer is idempotent and never gives up on a trade. (A known librdkafka bug,
      issue 4953, can duplicate a trade when a partition's leader changes, and so can an operator who deletes the
      topic meanwhile; the table still stores it only once.)
  [2] when Kafka cannot keep up, trades wait. None is thrown away to keep the pace.
  [3] only trades that Kafka has acknowledged are counted as acknowledged.
"""

from pipeline.stop import stop_requested, take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import itertools
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from faker import Faker
from msgspec.structs import replace

from pipeline.command import parser, run
from pipeline.kafka import PRODUCER_DEFAULTS, PURGED, TopicWatch, client, ensure_topic
from pipeline.metrics import ProducerMetrics, add_option
from pipeline.outage import Outage
from pipeline.producer.pace import MAX, Pace, Step, Trades
from pipeline.producer.recording import Recording
from pipeline.producer.tape import TradeProvider
from pipeline.settings import Settings
from pipeline.trade import READABLE_RATE, decode, describe, encode
from pipeline.user_error import UsageError, UserError

NOMINAL_RATE = 250_000  # trades/s that the market's clock assumes for `--rate max --seed N`
LONGEST = 1e9  # seconds; the longest time left that is told
ANY_PARTITION = -1  # the key decides, which is the ticker
CHUNK = 500  # trades between two checks of the clock
SECONDS_FOR_BROKER = 30.0  # how long a start waits for Kafka
SECONDS_TO_STOP = 10.0  # how long a stop waits for acknowledgements
SECONDS_OF_SILENCE = 3.0  # without an acknowledgement before it is an outage
SECONDS_UNNOTICED = 0.1  # how long a stop may go unnoticed

KAFKA_DEFAULTS: dict[str, Any] = PRODUCER_DEFAULTS | {
    "enable.idempotence": True,  # [1]
    "request.timeout.ms": 5000,  # then an unresponsive broker is abandoned for its successor
    "linger.ms": 0.2,  # how long a trade waits for the others of its tick (see pace.py) to share its request
    "statistics.interval.ms": 1000,  # for the metrics
    "logger": logging.Logger("librdkafka", level=logging.CRITICAL + 1),  # silent: fatal errors are raised anyway
}
FULL_SPEED = {"linger.ms": 5}  # small requests would cost the broker more than the latency they save

log = logging.getLogger(__name__)

Tape = Callable[[int], Trades]  # makes the given number of trades, dated now


def open_market(seed: int | None, rate: float) -> Tape:
    """Return a market's tape. With a seed, market time advances per trade, not by the clock, so prices repeat, too."""
    fake = Faker()
    if seed is None:
        return TradeProvider(fake).trade_messages
    fake.seed_instance(seed)
    step = round(1e9 / min(rate, NOMINAL_RATE))  # nanoseconds
    return TradeProvider(fake, market_clock=itertools.count(0, step).__next__).trade_messages


def market_steps(tape: Tape, rate: float, count: int) -> Iterator[Step]:
    """Yield trades at a rate (trades/s), the first one alone."""
    unit = 0.0 if count == sys.maxsize else 1 / count
    yield Step(tape(1), share=unit)
    pace, made = Pace(rate, time.monotonic()), 1
    while made < count:
        due = pace.due(time.monotonic(), min(CHUNK, count - made))
        made += due
        yield Step(tape(due), pace.wait(), made * unit)


def as_if_now(steps: Iterable[Step], tape: Tape) -> Iterator[Step]:
    """Yield recorded trades with new ids and timestamps: those of trades that the market makes at this moment."""
    for step in steps:
        present = [decode(message) for _, message in tape(len(step.trades))]
        trades = [
            (ticker, encode(replace(decode(message), trade_id=now.trade_id, timestamp=now.timestamp)).decode())
            for (ticker, message), now in zip(step.trades, present, strict=True)
        ]
        yield step._replace(trades=trades)


class TradeProducer:
    """Sends trades to Kafka and keeps count of their delivery."""

    def __init__(self, settings: Settings, rate: float, whole: str = "") -> None:
        """Connect in the background. `whole` names all there is to send. Raises `UsageError` for an invalid setting."""
        self.sent = 0  # trades handed to librdkafka
        self.acknowledged = 0  # of those, trades that are certain to be in Kafka
        self.refusal: KafkaError | None = None  # an error that waiting does not fix
        self._returned: list[tuple[int, str, str]] = []  # (sent before it, ticker, message), to be resent
        self._settings = settings
        self._topic = settings.topic
        self._lost = ""  # why the topic or the client is lost
        self._print_each = rate <= READABLE_RATE
        self._whole, self._share, self._skipped = whole, 0.0, 0.0
        self._outage = Outage(f"Kafka at {settings.bootstrap_servers}")
        self._reason = ""  # why a broker could not be reached
        self._began = self._second_began = time.monotonic()
        self._sent_before = self._acknowledged_before = 0  # when the second began
        self._silent_for = 0.0  # seconds that trades have waited for an acknowledgement
        self.metrics = ProducerMetrics(in_flight=lambda: self.in_flight)
        callbacks = {
            "error_cb": self._on_error,
            "stats_cb": self.metrics.on_statistics,
            "delivery.report.only.error": not self._print_each,  # a Python callback per trade would halve the speed
        }
        self._config = KAFKA_DEFAULTS | (FULL_SPEED if rate == MAX else {}) | settings.kafka | callbacks
        self._producer = client(Producer, self._config)
        self._watch = TopicWatch(client(AdminClient, settings.kafka), settings.topic)

    @property
    def errors(self) -> int:
        """Trades that librdkafka has returned undelivered."""
        return len(self._returned)

    @property
    def in_flight(self) -> int:
        """Trades that Kafka may still acknowledge."""
        return self.sent - self.acknowledged - self.errors

    @property
    def done(self) -> int:
        """Trades sent before the first undelivered one: a recording resumes after them."""
        return min(self._returned)[0] if self._returned else self.sent

    def run(self, steps: Iterable[Step]) -> None:
        """Send until everything is acknowledged, the user asks to stop, or Kafka refuses for good."""
        for number, step in enumerate(steps):
            if not self.sent:
                self._skipped = self._share
            self._share = step.share
            self._send(step.trades)
            if number == 0:  # connecting takes up to a second: let a few trades wait for it, not thousands
                self._await_acknowledgements()
                self._second_began = time.monotonic()
            self._serve(min(step.seconds, SECONDS_UNNOTICED))
            if self._ending():
                break
        self._await_acknowledgements()

    def close(self) -> None:
        """Wait for outstanding acknowledgements, then print a summary."""
        try:
            if self.refusal is None:
                self._producer.flush(SECONDS_TO_STOP)
            deadline = time.monotonic() + SECONDS_TO_STOP
            while not self._take_back() and time.monotonic() < deadline:
                pass
        except KafkaException as exception:  # a fatal one
            self.refusal = exception.args[0]
        lost = self.sent - self.acknowledged
        seconds = time.monotonic() - self._began
        sign = "⚠️ " if lost else "✅"
        print(f"{sign} {self.acknowledged:,} trades acknowledged by Kafka in {seconds:.1f} s, {lost:,} not delivered.")

    def _send(self, trades: Trades) -> None:
        """Hand trades to librdkafka. They wait while its queue is full or the topic is missing [2]."""
        produce, topic, on_delivery = self._producer.produce, self._topic, partial(self._on_delivery, self.sent, trades)
        for ticker, message in trades:
            while True:
                try:
                    produce(topic, message, ticker, ANY_PARTITION, on_delivery)
                    break
                except BufferError:
                    pass
                except KafkaException as exception:
                    self._note(exception.args[0])
                self._serve(SECONDS_UNNOTICED)
                if self._ending():
                    return
                produce = self._producer.produce  # `_serve` may have replaced the client
            self.sent += 1

    def _await_acknowledgements(self) -> None:
        while self.in_flight and not self._ending():
            self._serve(SECONDS_UNNOTICED)

    def _ending(self) -> bool:
        return stop_requested() or self.refusal is not None

    def _serve(self, seconds: float) -> None:
        """Wait up to `seconds` for librdkafka's reports; once a second, check for an outage and print progress."""
        self._producer.poll(seconds)
        self._count_acknowledged()
        passed = time.monotonic() - self._second_began
        if passed >= 1:
            self._watch_for_outage(passed)
            self._print_second(passed)
            self.metrics.sent.inc(self.sent - self._sent_before)
            self.metrics.acknowledged.inc(self.acknowledged - self._acknowledged_before)
            self._second_began += passed
            self._sent_before, self._acknowledged_before = self.sent, self.acknowledged
        if self._watch.made_again():
            self._lost = "deleted and recreated"
        if self._lost:
            self._renew()

    def _renew(self) -> None:
        """Recreate the topic unless somebody has, and resend unacknowledged trades to it with a new client.

        The old client would fail its trades or, with several brokers, offer them to the old topic's leaders forever:
        https://github.com/confluentinc/librdkafka/issues/4898
        """
        deadline = time.monotonic() + SECONDS_OF_SILENCE  # for whoever deleted it to recreate it their way
        while (self._returned or len(self._producer)) and time.monotonic() < deadline and not stop_requested():
            self._producer.poll(SECONDS_UNNOTICED)
        while not self._take_back():
            if stop_requested():
                return
        ensure_topic(self._settings, self._topic, patience=None)
        self._producer = client(Producer, self._config)
        self._watch.id = ""
        log.warning("⚠️  The topic %s: %s. Unacknowledged trades are being resent.", self._topic, self._lost)
        self._lost = ""
        self._returned.sort(reverse=True)  # librdkafka returns trades out of order
        try:
            while self._returned:
                sent_before, ticker, message = self._returned[-1]
                on_delivery = partial(self._on_delivery, sent_before, [(ticker, message)])
                self._producer.produce(self._topic, message, ticker, ANY_PARTITION, on_delivery)
                self._returned.pop()
        except KafkaException as exception:
            self._note(exception.args[0])

    def _take_back(self) -> bool:
        """Have librdkafka return undelivered trades; False if it may still hold some, between two of its queues."""
        self._producer.purge()
        left: int = self._producer.flush(SECONDS_UNNOTICED)
        self._count_acknowledged()
        return left == 0

    def _note(self, error: KafkaError) -> None:
        """Record an error: Kafka refuses a trade, or librdkafka cannot deliver it and may have lost the topic.

        librdkafka's own errors are negative: https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka.h
        """
        if error.code() < 0 or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self._lost = error.str()
        else:
            self.refusal = error

    def _count_acknowledged(self) -> None:
        """[3] Count the trades sent that librdkafka neither still holds nor has returned.

        len() also counts events waiting for poll(), and an outage causes many, so the difference can be too low, even
        lower than before, but never too high. Its maximum so far is therefore a safe count, and an exact one once the
        queue is empty.
        """
        self.acknowledged = max(self.acknowledged, self.sent - len(self._producer) - self.errors)

    def _watch_for_outage(self, passed: float) -> None:
        if self.acknowledged > self._acknowledged_before or not self.in_flight:
            self._silent_for, self._reason = 0.0, ""
            self._outage.end()
            return
        self._silent_for += passed
        if self._silent_for > SECONDS_OF_SILENCE:
            self._outage.report(self._reason or "no acknowledgements")

    def _print_second(self, passed: float) -> None:
        if self._print_each or not self.acknowledged:  # the first trade waits for the connection
            return
        print(
            f"📤 {(self.sent - self._sent_before) / passed:,.0f} trades/s; {self.sent:,} sent, {self.acknowledged:,} "
            f"acknowledged, {self.in_flight:,} in flight, {self.errors:,} errors{self._progress()}",
            flush=True,
        )

    def _progress(self) -> str:
        """Return, in words, how much of the whole is sent and how long the rest will take."""
        if self._share <= self._skipped:
            return ""
        left = (time.monotonic() - self._began) * (1 - self._share) / (self._share - self._skipped)
        return f"; {self._share:.0%} of {self._whole}, {timedelta(seconds=round(min(left, LONGEST)))} left"

    def _on_delivery(self, first: int, trades: Trades, error: KafkaError | None, message: Message) -> None:
        """Print one of these trades, or record that it was not delivered. `first` trades were sent before them."""
        if error is not None:
            trade = message.key().decode(), message.value().decode()
            self._returned.append((first + trades.index(trade), *trade))
            self.metrics.errors.inc()
            if error.code() not in PURGED:
                self._note(error)
            return
        # Kafka reports no offset for a message that it was sent twice and stored once.
        offset = "unknown" if message.offset() is None else message.offset()
        place = f"{message.topic()}, partition {message.partition()}, offset {offset}"
        print(f"📤 {describe(decode(message.value()))}  → {place}{self._progress()}", flush=True)

    def _on_error(self, error: KafkaError) -> None:
        """Note why a broker cannot be reached; librdkafka retries. Fatal errors are raised by poll() instead."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # it follows the error that says why
            self._reason = error.str()


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run the producer."""
    tape = open_market(options.seed, options.rate)
    recording = None if options.replay is None else Recording(options.replay, options.strict)
    if recording:
        steps = recording.steps(options.speed, options.count, options.skip)
        steps = as_if_now(steps, tape) if options.now else steps
    elif options.now or options.skip or options.strict or options.speed != 1:
        raise UsageError("--speed, --now, --skip and --strict go with --replay")
    else:
        steps = market_steps(tape, options.rate, options.count)
    ensure_topic(settings, settings.topic, SECONDS_FOR_BROKER)
    if stop_requested():
        print("Producer stopped before it started.")
        return
    producer = TradeProducer(settings, MAX if recording else options.rate, options.replay or f"{options.count:,}")
    producer.metrics.serve(options.metrics_port)
    try:
        producer.run(steps)
    except KafkaException as exception:
        producer.refusal = exception.args[0]
    finally:
        producer.close()
        if recording and recording.left_out:
            print(f"⚠️  {recording.path}: invalid lines skipped: {recording.left_out:,}.")
        if recording and (not recording.finished or producer.acknowledged < producer.sent):
            print(f"To resume: --replay {shlex.quote(recording.path)} --skip {options.skip + producer.done}")
    if producer.refusal is not None:
        raise UserError(f"Kafka refuses trades: {producer.refusal.str()}")


def options() -> argparse.ArgumentParser:
    """Return the command-line parser; a wrong option ends it with one line and exit code 2."""
    known = parser(__doc__)
    source = known.add_mutually_exclusive_group()
    source.add_argument("--rate", type=read_rate, default=1.0, metavar="N|max", help="trades per second (default: 1)")
    source.add_argument("--replay", metavar="FILE", help="send the trades of a recording instead of the market's")
    known.add_argument("--count", type=read_count, default=sys.maxsize, metavar="N", help="stop after N trades")
    known.add_argument(
        "--seed", type=int, metavar="N", help="the same trades every time, except for ids and timestamps"
    )
    replay = known.add_argument_group("with --replay")
    replay.add_argument("--speed", type=read_rate, default=1.0, metavar="N|max", help="multiple of the recorded pace")
    replay.add_argument("--now", action="store_true", help="give the trades new ids and the time of sending")
    replay.add_argument(
        "--skip", type=partial(read_count, least=0), default=0, metavar="N", help="skip the first N trades"
    )
    replay.add_argument("--strict", action="store_true", help="stop at the first invalid line instead of skipping it")
    add_option(known)
    return known


def read_rate(text: str) -> float:
    """Parse a number above 0, or max for as many or as fast as Kafka takes."""
    if text == "max":
        return MAX
    if not text.replace(".", "", 1).isdecimal() or not 0 < float(text) <= MAX:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0, such as 1, 0.5 or 5000, or max")
    return float(text)


def read_count(text: str, least: int = 1) -> int:
    """Parse a number of trades."""
    if not text.isdecimal() or not least <= int(text) < sys.maxsize:
        raise argparse.ArgumentTypeError(f"{text}: give a number of trades, such as 1000")
    return int(text)


if __name__ == "__main__":
    sys.exit(run(options(), main))
