"""How fast and how evenly producer.py produces, against a bare loop of librdkafka's produce() in the same run.

    python -m benchmarks.producer                       # starts its own broker
    python -m benchmarks.producer --bootstrap localhost:9092

Full speed: producer.py's own loop, which makes its trades as it goes, and a loop over one constant trade with the same
settings take turns. The clock runs from the first acknowledgement, when the connection is up, to the last.
Pace: when each trade was made, over ten seconds; the emptiest and the fullest 100 ms that start at any trade.
Upkeep: CPU time and memory of the script's process.
"""

import argparse
import io
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from statistics import median
from uuid import uuid4

import psutil
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.command import machine, parser, run, say, say_table, show
from pipeline.producer.pace import MAX, Trades
from pipeline.settings import read_settings
from producer import CHUNK, FULL_SPEED, KAFKA_DEFAULTS, TradeProducer, market_steps, open_market
from tests.script import Script, environment_of
from tests.services import Kafka

SECONDS_OF_PACE = 10


@contextmanager
def new_topic(bootstrap_servers: str) -> Iterator[str]:
    """Create a topic with one partition; delete it afterwards."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    name = f"benchmark-{uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, num_partitions=1)])[name].result()
    try:
        yield name
    finally:
        with suppress(KafkaException):
            admin.delete_topics([name])[name].result()


def bare_loop(bootstrap_servers: str, trades: int) -> float:
    """Produce one constant trade over and over; return trades/s."""
    [(ticker, message)] = open_market(None, MAX)(1)
    callbacks = {"on_delivery": lambda error, message: None, "delivery.report.only.error": True}
    own = Producer(KAFKA_DEFAULTS | FULL_SPEED | {"bootstrap.servers": bootstrap_servers} | callbacks)
    with new_topic(bootstrap_servers) as topic:
        own.produce(topic, message, ticker)
        own.flush()
        produce, poll = own.produce, own.poll
        began = time.monotonic()
        for done in range(0, trades, CHUNK):
            for _ in range(min(CHUNK, trades - done)):
                while True:
                    try:
                        produce(topic, message, ticker)
                        break
                    except BufferError:
                        poll(0.1)
            poll(0)
        own.flush()
        return trades / (time.monotonic() - began)


def send(bootstrap_servers: str, rate: float, trades: int, note: Callable[[int], object]) -> float:
    """Run producer.py's loop, noting how many trades it asks for; return the time of the last acknowledgement."""
    tape = open_market(None, rate)

    def noted(count: int) -> Trades:
        note(count)
        return tape(count)

    with new_topic(bootstrap_servers) as topic, redirect_stdout(io.StringIO()):
        settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "KAFKA_TOPIC": topic})
        own = TradeProducer(settings, rate)
        own.run(market_steps(noted, rate, trades))
        ended = time.monotonic()
        own.close()
        assert own.acknowledged == trades, f"{own.acknowledged:,} of {trades:,} acknowledged"
        return ended


def full_speed(bootstrap_servers: str, trades: int) -> float:
    """Return the trades/s of `--rate max`."""
    asked: list[float] = []
    ended = send(bootstrap_servers, MAX, trades, lambda _: asked.append(time.monotonic()))
    return trades / (ended - asked[1])  # the second request comes once the first trade is acknowledged


def pace(bootstrap_servers: str, rate: int) -> tuple[float, float, float]:
    """Return the rate over ten seconds, and the emptiest and the fullest 100 ms, each as a share of the target."""
    moments: list[float] = []
    trades = rate * SECONDS_OF_PACE + 1
    send(bootstrap_servers, rate, trades, lambda count: moments.extend([time.monotonic()] * count))
    moments = moments[1:]  # the first trade waits for its acknowledgement
    last = bisect_left(moments, moments[-1] - 0.1)
    windows = [bisect_left(moments, start + 0.1) - index for index, start in enumerate(moments[:last])]
    kept = (len(moments) - 1) / (moments[-1] - moments[0]) / rate
    return kept, min(windows) / (rate / 10), max(windows) / (rate / 10)


def upkeep(bootstrap_servers: str, rate: str, seconds: float) -> tuple[float, float, float]:
    """Return the script's share of one core, and its memory (MB) after three seconds and at the end."""
    with new_topic(bootstrap_servers) as topic:
        script = Script(["producer.py", "--rate", rate], environment_of(bootstrap_servers, "", topic, "benchmark"))
        try:
            script.wait_for_line("📤")
            time.sleep(3)
            process = psutil.Process(script.pid)
            process.cpu_percent()  # counts from here on
            memory = process.memory_info().rss / 1e6
            time.sleep(seconds)
            return process.cpu_percent() / 100, memory, process.memory_info().rss / 1e6
        finally:
            script.stop(timeout=30)


def measure(options: argparse.Namespace) -> None:
    """Measure everything, printing each table as soon as it is complete."""
    say(f"{machine()}\n")
    with nullcontext(options.bootstrap) if options.bootstrap else own_broker() as servers:
        compare_speeds(servers, options.trades, options.rounds)
        rows = []
        for rate in (1_000, 10_000, 50_000):
            show(f"pace: {rate:,}/s")
            kept, least, most = pace(servers, rate)
            rows.append([f"--rate {rate}", f"{kept:.2%}", f"{least:.0%}", f"{most:.0%}"])
        say("")
        say_table([f"pace over {SECONDS_OF_PACE} s", "kept", "emptiest 100 ms", "fullest 100 ms"], rows)
        rows = []
        for rate_option, seconds in (("1", 20), ("1000", 10), ("50000", 10), ("max", 10)):
            show(f"upkeep: --rate {rate_option}")
            used, before, after = upkeep(servers, rate_option, seconds)
            rows.append([f"--rate {rate_option}, {seconds} s", f"{used:.1%}", f"{before:.1f} MB", f"{after:.1f} MB"])
        say("")
        say_table(["upkeep", "of one core", "memory after 3 s", "at the end"], rows)


@contextmanager
def own_broker() -> Iterator[str]:
    """Run a broker; yield its address."""
    with Kafka() as broker:
        yield broker.bootstrap_servers


def compare_speeds(bootstrap_servers: str, trades: int, rounds: int) -> None:
    """Let the producer and the bare loop take turns, and print their speeds."""
    speeds: dict[str, list[float]] = {"bare loop of produce()": [], "producer.py --rate max": []}
    for number in range(rounds):
        for (title, results), work in zip(speeds.items(), (bare_loop, full_speed), strict=True):
            show(f"round {number + 1} of {rounds}: {title}")
            results.append(work(bootstrap_servers, trades))
    bare = median(speeds["bare loop of produce()"])
    rows = [
        [
            title,
            f"{median(results):,.0f}",
            f"{min(results):,.0f} – {max(results):,.0f}",
            f"{median(results) / bare:.2f}",
        ]
        for title, results in speeds.items()
    ]
    say_table([f"{trades:,} trades, median of {rounds}", "trades/s", "lowest – highest", "of the bare loop"], rows)


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--trades", type=int, default=1_000_000, help="in each round of full speed")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--bootstrap", metavar="HOST:PORT", help="use this broker instead")
    return options


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
