"""Trades flow while everything is killed, again and again; afterwards every row is accounted for.

    python -m tests.chaos                                              # 100 faults, 1,000,000 trades
    python -m tests.chaos --faults 20 --trades 100000 --seed 7

One to three consumers share three partitions. At random moments one of them is killed (SIGKILL), frozen for longer
than its session lasts, joins or leaves; PostgreSQL or the broker crashes and comes back; both do at once; or the
table is locked while the group changes. Every thousandth message is no trade. Half of the messages flow evenly, the
others come in bursts as a fault begins. The seed fixes what is done, in which order and with what pauses, but no
machine repeats the microsecond at which it hits.

Found has to be: every trade that Kafka acknowledged in the table with its values, no row that was not produced, and
in the dead-letter topic each invalid message, bytes and key, and nothing else. No consumer may end by itself, print
a traceback, or take more than ten seconds to leave.
"""

import argparse
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from confluent_kafka import KafkaError, Message, Producer

from pipeline.trade import Trade, encode
from tests.services import Kafka, Postgres, Script, environment_of, eventually

TOPIC, GROUP = "orders", "chaos"
PARTITIONS = 3
MOST_CONSUMERS = 3
PAUSE = (0.2, 4.0)  # seconds between two faults
OUTAGE = (0.0, 4.0)  # seconds that a server stays down
FREEZE = (4.0, 9.0)  # seconds; the session lasts 6
LOCK = (1.0, 4.0)  # seconds, before the group changes and again after it
BURST_EVERY = 8  # faults
INVALID_EVERY = 1000  # messages
SECONDS_TO_CATCH_UP = 180  # Kafka itself may wait for a dead member that was joining for max.poll.interval.ms
TICKERS = ("AAPL", "MSFT", "GOOGL", "AMZN", "TSLA", "META", "NVDA")
FIRST_MOMENT = datetime(2026, 1, 1)

Row = tuple[str, str, Decimal, int, str, datetime]


@dataclass
class Report:
    """What was done, and what should not have been found."""

    done: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    consumers: int = 0
    acknowledged: int = 0
    invalid: int = 0
    rows: int = 0
    dead_letters: int = 0
    seconds: float = 0.0
    seconds_to_catch_up: float = 0.0

    def __str__(self) -> str:
        faults = "\n".join(f"  {count:>5} × {fault}" for fault, count in self.done.most_common())
        found = (
            "\n".join(f"  {finding}" for finding in self.findings)
            or "  nothing lost, nothing doubled, nothing invented"
        )
        return (
            f"Done in {self.seconds:.0f} s: {self.done.total()} faults, {self.consumers} consumers started\n{faults}\n"
            f"  {self.acknowledged:,} trades and {self.invalid:,} invalid messages acknowledged by Kafka\n"
            f"Found, after {self.seconds_to_catch_up:.0f} s to catch up: "
            f"{self.rows:,} rows, {self.dead_letters:,} dead letters\n{found}"
        )


# -- what is produced


def row_of(number: int) -> Row:
    """Return the row that trade `number` has to become."""
    return (
        f"00000000-0000-7000-8000-{number:012x}",
        TICKERS[number % len(TICKERS)],
        Decimal(number * 7919 % 9_999_999 + 1) / 100,
        number % 2_147_483_647 + 1,
        ("buy", "sell")[number % 2],
        FIRST_MOMENT + timedelta(microseconds=number),
    )


def valid_message(number: int) -> tuple[bytes, bytes]:
    """Return key and value of trade `number`."""
    trade_id, ticker, price, volume, side, timestamp = row_of(number)
    return ticker.encode(), encode(Trade(trade_id, ticker, float(price), volume, side, f"{timestamp.isoformat()}Z"))  # type: ignore[arg-type]


def invalid_message(number: int) -> tuple[bytes, bytes | None]:
    """Return key and value of a message that is no trade, one of five kinds, and like no other."""
    value = valid_message(number)[1]
    spoilt = (
        b"not JSON",
        value.replace(b'"price":', b'"price":-'),
        value.replace(b'"ticker":"', b'"ticker":"\\u0000'),
        value.replace(b'"side"', b'"sight"'),
        None,
    )
    return b"invalid-%d" % number, spoilt[number // INVALID_EVERY % len(spoilt)]


def is_invalid(number: int) -> bool:
    """Tell whether message `number` is an invalid one."""
    return number % INVALID_EVERY == INVALID_EVERY - 1


class RecordingProducer(threading.Thread):
    """Produces so many messages, spread over the campaign, and knows which of them Kafka has acknowledged."""

    def __init__(self, bootstrap_servers: str, messages: int, progress: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self.acknowledged = bytearray(messages)
        self.refused: list[KafkaError] = []
        self.stopped = threading.Event()
        self._messages = messages
        self._progress = progress
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "reconnect.backoff.max.ms": 1000,
                "linger.ms": 5,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        """Produce; keep up with the share of the campaign that is over, and a little ahead of it."""
        for number in range(self._messages):
            while number > self._progress() * self._messages and not self.stopped.is_set():
                self._producer.poll(0.01)
            key, value = invalid_message(number) if is_invalid(number) else valid_message(number)
            while not self._enqueue(key, value, number) and not self.stopped.is_set():
                self._producer.poll(0.1)
            if self.stopped.is_set():
                break
        while self._producer.flush(1) and not self.stopped.is_set():
            pass

    def _enqueue(self, key: bytes, value: bytes | None, number: int) -> bool:
        try:
            self._producer.produce(TOPIC, value, key, on_delivery=partial(self._delivered, number))
        except BufferError:
            return False
        self._producer.poll(0)
        return True

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        if error:
            self.refused.append(error)
        else:
            self.acknowledged[number] = 1


# -- what is done to it


class Campaign:
    """The servers, the consumers, and what happens to them."""

    def __init__(self, broker: Kafka, postgres: Postgres, seed: int) -> None:
        self.broker = broker
        self.postgres = postgres
        self.random = random.Random(seed)
        self.report = Report()
        self.consumers: list[Script] = []
        self.environment = environment_of(broker.bootstrap_servers, postgres.url, TOPIC, GROUP)

    def faults(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Say without end what happens next."""
        kinds: list[tuple[str, Callable[[], None], int]] = [
            ("consumer killed", self.kill_consumer, 6),
            ("consumer frozen", self.freeze_consumer, 1),
            ("consumer joined", self.add_consumer, 3),
            ("consumer left", self.remove_consumer, 3),
            ("PostgreSQL crashed", self.crash_postgres, 4),
            ("table locked", self.lock_table, 2),
            ("broker killed", self.kill_broker, 2),
            ("both crashed at once", self.crash_both, 2),
        ]
        while True:
            name, action, _ = self.random.choices(kinds, weights=[weight for *_, weight in kinds])[0]
            possible = {
                "consumer joined": len(self.consumers) < MOST_CONSUMERS,
                "consumer left": len(self.consumers) > 1,
            }
            if possible.get(name, True):
                yield name, action

    def start_consumer(self) -> None:
        """Start one more consumer."""
        self.consumers.append(Script(["consumer.py"], self.environment))
        self.report.consumers += 1

    def kill_consumer(self) -> None:
        """Kill one, and start another, at once or a while later."""
        victim = self.take_consumer()
        victim.kill()
        self.look_over(victim)
        if self.consumers and self.random.random() < 0.5:
            self.sleep(OUTAGE)
        self.start_consumer()

    def freeze_consumer(self) -> None:
        """Stop one in its tracks, so that the group may go on without it, and let it wake up."""
        frozen = self.random.choice(self.consumers)
        frozen.process.send_signal(signal.SIGSTOP)
        self.sleep(FREEZE)
        frozen.process.send_signal(signal.SIGCONT)

    def add_consumer(self) -> None:
        """Let one more join the group."""
        self.start_consumer()

    def remove_consumer(self) -> None:
        """Let one leave in order."""
        self.end(self.take_consumer())

    def crash_postgres(self) -> None:
        """Stop PostgreSQL without a checkpoint, and start it again."""
        self.postgres.kill()
        self.sleep(OUTAGE)
        self.postgres.start()

    def lock_table(self) -> None:
        """Let the consumers wait for the table with full batches, and change the group meanwhile."""
        with closing(self.postgres.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE trades IN EXCLUSIVE MODE")
            self.sleep(LOCK)
            if len(self.consumers) == MOST_CONSUMERS:
                self.take_consumer().kill()
            self.start_consumer()
            self.sleep(LOCK)

    def kill_broker(self) -> None:
        """Kill the broker, and start it again."""
        self.broker.kill()
        self.sleep(OUTAGE)
        self.broker.start()

    def crash_both(self) -> None:
        """Crash both, and start them in either order."""
        self.postgres.kill()
        self.broker.kill()
        self.sleep(OUTAGE)
        for server in self.random.sample([self.postgres, self.broker], 2):
            server.start()

    def sleep(self, bounds: tuple[float, float]) -> None:
        """Let some time pass."""
        time.sleep(self.random.uniform(*bounds))

    def take_consumer(self) -> Script:
        """Take one consumer out of the list."""
        return self.consumers.pop(self.random.randrange(len(self.consumers)))

    def end(self, consumer: Script) -> None:
        """Stop a consumer as a user does."""
        if consumer.running:
            try:
                code = consumer.stop(self.random.choice([signal.SIGINT, signal.SIGTERM]))
                if code != 0:
                    self.report.findings.append(f"a consumer left with exit code {code}: {consumer.stderr[-300:]}")
            except AssertionError:
                self.report.findings.append("a consumer took more than ten seconds to leave")
                consumer.kill()
        self.look_over(consumer)

    def look_over(self, consumer: Script) -> None:
        """Note what a consumer must not print."""
        if "Traceback" in consumer.stderr:
            self.report.findings.append(f"a consumer printed a traceback: {consumer.stderr[-1000:]}")

    def replace_fallen(self) -> None:
        """Note consumers that ended by themselves, and go on with others."""
        for consumer in [consumer for consumer in self.consumers if not consumer.running]:
            code = consumer.wait()
            self.report.findings.append(f"a consumer ended by itself, exit code {code}: {consumer.stderr[-300:]}")
            self.consumers.remove(consumer)
            self.start_consumer()

    # -- the course of it

    def run(self, faults: int, trades: int) -> Report:
        """Go through the campaign; return its report."""
        messages = trades + trades // (INVALID_EVERY - 1)
        began = time.monotonic()
        pace = Pace(faults)
        producer = RecordingProducer(self.broker.bootstrap_servers, messages, pace.progress)
        try:
            self.broker.create_topic(TOPIC, PARTITIONS)
            self.start_consumer()
            eventually(lambda: len(self.broker.committed(TOPIC, GROUP)) == PARTITIONS)
            producer.start()
            for number, (name, action) in enumerate(self.faults(), start=1):
                self.sleep(PAUSE)
                acknowledged = sum(producer.acknowledged)
                say(began, f"fault {number} of {faults}: {name:<20} {acknowledged:>9,} messages acknowledged")
                pace.begin_fault()
                action()
                pace.end_fault()
                self.report.done[name] += 1
                self.replace_fallen()
                if number == faults:
                    break
            self.catch_up(producer, began)
            for consumer in self.consumers:
                self.end(consumer)
            self.take_stock(producer)
        finally:
            producer.stopped.set()
            for consumer in self.consumers:
                consumer.kill()
        self.report.seconds = time.monotonic() - began
        return self.report

    def catch_up(self, producer: RecordingProducer, began: float) -> None:
        """Wait until everything is produced, and the group has committed all of it."""
        while producer.is_alive():
            producer.join(3)
            say(began, f"{sum(producer.acknowledged):,} messages acknowledged")
        deadline = time.monotonic() + SECONDS_TO_CATCH_UP
        while (behind := self.broker.lag(TOPIC, GROUP)) and time.monotonic() < deadline:
            say(began, f"{behind:,} messages behind")
            self.replace_fallen()
            time.sleep(2)
        self.report.seconds_to_catch_up = time.monotonic() - deadline + SECONDS_TO_CATCH_UP
        if behind:
            self.report.findings.append(f"{behind:,} messages behind after {SECONDS_TO_CATCH_UP} s")

    def take_stock(self, producer: RecordingProducer) -> None:
        """Compare the table and the dead-letter topic with what was acknowledged."""
        if producer.refused:
            self.report.findings.append(f"{len(producer.refused)} messages refused by Kafka: {producer.refused[0]}")
        numbers = range(len(producer.acknowledged))
        acknowledged = {number for number in numbers if producer.acknowledged[number]}
        invalid = {number for number in acknowledged if is_invalid(number)}
        self.report.acknowledged, self.report.invalid = len(acknowledged) - len(invalid), len(invalid)
        self.compare_rows(acknowledged - invalid, len(numbers))
        self.compare_dead_letters(invalid, len(numbers))

    def compare_rows(self, expected: set[int], produced: int) -> None:
        """Read the table row by row."""
        missing = set(expected)
        with closing(self.postgres.database.connect()) as connection, connection.cursor("rows") as cursor:
            cursor.itersize = 10_000
            cursor.execute("SELECT trade_id, ticker, price, volume, side, timestamp FROM trades")
            for row in cursor:
                self.report.rows += 1
                number = int(row[0][-12:], 16)
                if number >= produced or is_invalid(number) or row != row_of(number):
                    self.report.findings.append(f"a row that was not produced: {row}")
                missing.discard(number)
        if missing:
            self.report.findings.append(f"{len(missing):,} acknowledged trades are missing, the first {min(missing)}")
        if self.report.rows > produced:
            self.report.findings.append("more rows than messages")

    def compare_dead_letters(self, expected: set[int], produced: int) -> None:
        """Read the dead-letter topic; a redelivered message may be there twice."""
        valid = {invalid_message(number) for number in range(produced) if is_invalid(number)}
        found = {(message.key(), message.value()) for message in self.broker.read(f"{TOPIC}.dlq")}
        self.report.dead_letters = len(found)
        for key, value in found - valid:
            self.report.findings.append(f"a dead letter that should be none: {key!r} {value!r}")
        if missing := {invalid_message(number) for number in expected} - found:
            self.report.findings.append(f"{len(missing):,} invalid messages are not in the dead-letter topic")


class Pace:
    """Says what share of the messages may be on its way: half of it evenly, half in bursts."""

    def __init__(self, faults: int) -> None:
        self._faults = faults
        self._begun = self._ended = 0
        self._first = self._last = time.monotonic()

    def begin_fault(self) -> None:
        """Count a fault that begins; every so often it begins with a burst."""
        self._begun += 1

    def end_fault(self) -> None:
        """Count a fault that is over."""
        self._ended += 1
        self._last = time.monotonic()

    def progress(self) -> float:
        """Return a number from 0 to 1."""
        if self._ended >= self._faults:
            return 1.0
        usual = (self._last - self._first) / self._ended if self._ended else 5.0  # seconds a fault
        even = self._ended + min(1.0, (time.monotonic() - self._last) / usual)
        bursts = self._begun // BURST_EVERY * BURST_EVERY
        return (even + bursts) / 2 / self._faults


def say(began: float, text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - began:4.0f} s] {text}", flush=True)


def main() -> int:
    """Read the command line and run; 0 if nothing was found."""
    summary, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--trades", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)  # pipeline.command, imported above, took them
    try:
        with Kafka() as broker, Postgres() as postgres:
            print(f"Seed {options.seed}, {broker.title}, PostgreSQL 18.6", flush=True)
            report = Campaign(broker, postgres, options.seed).run(options.faults, options.trades)
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
