"""The producer as a process, against a real broker: what it prints, what it counts, and what is in the topic."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from confluent_kafka import Message

import producer
from pipeline.command import run
from pipeline.settings import read_settings
from pipeline.trade import Trade, decode
from tests.conftest import RunScript
from tests.script import ROOT, Script
from tests.services import Kafka, KafkaClient, eventually, free_port

TRADE = r"📤 (?P<timestamp>\S+Z)  (?P<ticker>\w+) +(?P<side>buy|sell) +(?P<volume>[\d,]+) @ (?P<price>[\d,.]+)  → "
PRINTED = re.compile(TRADE + r"(?P<topic>\S+), partition (?P<partition>\d+), offset (?P<offset>\d+)")
# Kafka does not report the offset of a trade that was sent twice and stored once.
TOLD = re.compile(TRADE + r"\S+, partition \d+, offset (\d+|unknown)")
EACH_SECOND = re.compile(
    r"📤 [\d,]+ trades/s; ([\d,]+) sent, ([\d,]+) acknowledged, ([\d,]+) in flight, ([\d,]+) errors"
)
SUMMARY = re.compile(r" ([\d,]+) trades acknowledged by Kafka in [\d.]+ s, ([\d,]+) not delivered\.$")


def number(text: str) -> int:
    return int(text.replace(",", ""))


def summary(stdout: str) -> tuple[int, int]:
    """Return the numbers of trades acknowledged and not delivered, from the last line."""
    match = SUMMARY.search(stdout.splitlines()[-1])
    assert match, stdout
    return number(match[1]), number(match[2])


def trades(messages: list[Message]) -> list[Trade]:
    return [decode(message.value()) for message in messages]


@contextmanager
def asleep(broker: Kafka) -> Iterator[None]:
    """Suspend the broker, so that it is there but does not answer."""
    assert broker.process is not None
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)


def test_a_count_at_full_speed_is_in_the_topic_once_each(
    broker: KafkaClient, topic: str, run_script: RunScript
) -> None:
    script = run_script("producer.py", "--count", "20000", "--rate", "max")
    assert script.wait() == 0
    messages = broker.read(topic)
    ids = [trade.trade_id for trade in trades(messages)]
    assert len(ids) == len(set(ids)) == 20_000
    assert all(earlier < later for earlier, later in pairwise(ids))  # one partition
    assert all((message.key() or b"").decode() == decode(message.value()).ticker for message in messages)
    assert summary(script.stdout) == (20_000, 0)
    assert script.stderr == ""


def test_each_trade_and_its_delivery_are_printed_at_a_readable_rate(
    broker: KafkaClient, topic: str, run_script: RunScript
) -> None:
    script = run_script("producer.py", "--count", "5", "--rate", "20")
    assert script.wait() == 0
    printed = [match.groupdict() for line in script.stdout.splitlines() if (match := PRINTED.match(line))]
    expected = [
        {
            "timestamp": trade.timestamp,
            "ticker": trade.ticker,
            "side": trade.side,
            "volume": f"{trade.volume:,}",
            "price": f"{trade.price:,.2f}",
            "topic": topic,
            "partition": "0",
            "offset": str(offset),
        }
        for offset, trade in enumerate(trades(broker.read(topic)))
    ]
    assert printed == expected
    told = [int(percent) for percent in re.findall(r"; (\d+)% of 5, 0:00:\d\d left\n", script.stdout)]
    assert told == sorted(told)
    # The percentage of trades sent; on a busy machine, an acknowledgement may come only after further trades.
    assert all(percent >= least for percent, least in zip(told, (20, 40, 60, 80, 100), strict=True))


def test_above_a_line_a_second_counts(run_script: RunScript) -> None:
    script = run_script("producer.py", "--rate", "500", "--count", "1500")
    assert script.wait() == 0
    lines = [line for line in script.stdout.splitlines() if EACH_SECOND.match(line)]
    assert lines
    for line in lines:
        match = EACH_SECOND.match(line)
        assert match
        sent, acknowledged, in_flight, errors = map(number, match.groups())
        assert sent == acknowledged + in_flight + errors
        assert re.search(r"; \d+% of 1,500, 0:00:\d\d left$", line)
    assert not PRINTED.search(script.stdout)


@pytest.mark.parametrize("rate", ["1000", "max"])
def test_a_seed_makes_the_same_trades(rate: str, broker: KafkaClient, topic: str, run_script: RunScript) -> None:
    def values(topic: str) -> list[tuple[object, ...]]:
        words = ("producer.py", "--seed", "7", "--count", "2000", "--rate", rate)
        assert run_script(*words, KAFKA_TOPIC=topic).wait() == 0
        return [
            (trade.ticker, trade.price, trade.volume, trade.side, trade.trade_id[19:])
            for trade in trades(broker.read(topic))
        ]

    assert values(f"{topic}-1") == values(f"{topic}-2")


@pytest.mark.parametrize(("rate", "ending"), [("1", signal.SIGTERM), ("2000", signal.SIGTERM), ("max", signal.SIGINT)])
def test_a_stop_delivers_what_was_sent(
    rate: str, ending: signal.Signals, broker: KafkaClient, topic: str, run_script: RunScript
) -> None:
    script = run_script("producer.py", "--rate", rate)
    script.wait_for_line("📤")
    assert script.stop(ending) == 0
    acknowledged, lost = summary(script.stdout)
    assert acknowledged == len(broker.read(topic)) > 0
    assert lost == 0
    assert script.stderr == ""


def test_a_stop_before_the_first_trade_is_as_orderly(run_script: RunScript) -> None:
    script = run_script("producer.py", KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    script.wait_for_line("⏳")
    assert script.stop() == 0
    assert script.stdout == "Producer stopped before it started."
    assert len(script.stderr.splitlines()) == 1


def test_a_broker_that_was_away_gets_every_trade_once(own_broker: Kafka, topic: str, run_script: RunScript) -> None:
    script = run_script(
        "producer.py", "--rate", "1000", "--count", "5000",
        KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers,
        KAFKA_SOCKET_TIMEOUT_MS="1000",  # so that requests are retried within the test's timeout
        KAFKA_QUEUE_BUFFERING_MAX_MESSAGES="1000",  # so that the queue is full, too
    )  # fmt: skip
    script.wait_for_line("trades/s")
    with asleep(own_broker):
        script.wait_for_line("1,000 in flight")
        script.wait_for_line("⚠️")
        assert script.running
    script.wait_for_line("works again")
    assert script.wait(60) == 0
    assert summary(script.stdout) == (5_000, 0)
    ids = [trade.trade_id for trade in trades(own_broker.read(topic))]
    assert len(ids) == len(set(ids)) == 5_000


def test_an_outage_is_survived_whenever_it_finds_the_producer(
    own_broker: Kafka, topic: str, run_script: RunScript
) -> None:
    """A broker is killed and restarted while one producer sends, one starts, and one has never connected."""
    server = {"KAFKA_BOOTSTRAP_SERVERS": own_broker.bootstrap_servers}
    # Every poll finds events in the queue, as it does after a minute of failed connections.
    sending = run_script("producer.py", "--rate", "10", KAFKA_STATISTICS_INTERVAL_MS="1", **server)
    sending.wait_for_line("offset 5")
    own_broker.kill()
    starting = run_script("producer.py", "--count", "3", "--rate", "max", KAFKA_TOPIC=f"{topic}-2", **server)
    settings = read_settings({"KAFKA_TOPIC": topic, **server})
    never_connected = producer.TradeProducer(settings, 100)
    steps = producer.market_steps(producer.open_market(None, 100), 100, 200)
    thread = threading.Thread(target=never_connected.run, args=[steps], daemon=True)
    thread.start()
    starting.wait_for_line("⏳")
    sending.wait_for_line("⚠️")
    eventually(lambda: never_connected.in_flight == 1)
    own_broker.start()
    assert starting.wait() == 0
    sending.wait_for_line("works again")
    thread.join(30)
    assert never_connected.acknowledged == 200
    never_connected.close()
    assert sending.stop() == 0
    acknowledged, lost = summary(sending.stdout)
    assert lost == 0
    ids = [trade.trade_id for trade in trades(own_broker.read(topic))]
    assert len(ids) == len(set(ids)) == acknowledged + 200
    assert len(own_broker.read(f"{topic}-2")) == 3


def delete_topic(broker: Kafka, topic: str, script: Script) -> None:
    broker.delete_topic(topic)


def delete_topic_and_make_it_again(broker: Kafka, topic: str, script: Script) -> None:
    broker.delete_topic(topic)
    eventually(lambda: topic not in broker.topics())
    broker.create_topic(topic, 3)


def lose_everything(broker: Kafka, topic: str, script: Script) -> None:
    broker.kill()
    shutil.rmtree(broker.data)
    broker.start()


def delete_topic_unseen(broker: Kafka, topic: str, script: Script) -> None:
    script.process.send_signal(signal.SIGSTOP)
    delete_topic(broker, topic, script)
    eventually(lambda: topic not in broker.topics())
    script.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("lose", [delete_topic, delete_topic_unseen, delete_topic_and_make_it_again, lose_everything])
def test_a_topic_that_is_lost_costs_none_of_the_trades_that_follow(
    own_broker: Kafka, topic: str, run_script: RunScript, lose: Callable[[Kafka, str, Script], None]
) -> None:
    script = run_script(
        "producer.py", "--rate", "20", "--count", "120",
        KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers,
        KAFKA_TOPIC_PARTITIONS="3",
    )  # fmt: skip
    script.wait_for_line("offset 5")
    lose(own_broker, topic, script)
    assert script.wait(60) == 0
    assert summary(script.stdout) == (120, 0)
    assert "being resent" in script.stderr
    lines = [match for line in script.stdout_lines if (match := TOLD.match(line))]
    delivered = sorted((line["timestamp"], line["ticker"]) for line in lines)
    assert len(delivered) == len(set(delivered)) == 120, "each is told once"
    present = [(trade.timestamp, trade.ticker) for trade in trades(own_broker.read(topic))]
    assert set(delivered[-20:]) <= set(present)
    for name in {ticker for _, ticker in delivered}:  # a partition that goes before the others loses more
        told = [timestamp for timestamp, ticker in delivered if ticker == name]
        kept = [timestamp for timestamp, ticker in present if ticker == name]
        assert kept == told[len(told) - len(kept) :]


class Queue:
    """Stands in for librdkafka's queue, where the events of an outage pile up next to the messages."""

    def __init__(self) -> None:
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def produce(self, *message: object) -> None:
        self.length += 1

    def poll(self, seconds: float) -> None:
        pass


def test_what_is_acknowledged_never_falls_and_is_never_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    own = producer.TradeProducer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), 10)
    queue = Queue()
    monkeypatch.setattr(own, "_producer", queue)
    own._send([("AAPL", "{}")] * 100)
    for queue.length, acknowledged in ((100, 0), (40, 60), (140, 60), (35, 65), (36, 65), (0, 100), (9, 100)):
        own._second_began -= 2  # so that a second is over each time
        own._serve(0)
        assert own.acknowledged == acknowledged
    assert own.in_flight == 0


def test_the_time_left_is_that_of_the_rest_whatever_was_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    own = producer.TradeProducer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), 10, "trades.csv")
    monkeypatch.setattr("time.monotonic", lambda: own._began + 60)
    own._skipped, own._share = 0.5, 0.503
    assert own._progress() == "; 50% of trades.csv, 2:45:40 left"
    own._skipped, own._share = 0.0, 1e-15
    assert own._progress().startswith("; 0% of trades.csv, 115")  # the longest that is told, not an error


def test_a_stop_while_the_broker_is_away_says_what_was_not_delivered(
    own_broker: Kafka, topic: str, run_script: RunScript
) -> None:
    script = run_script("producer.py", "--rate", "1000", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers)
    script.wait_for_line("trades/s")
    with asleep(own_broker):
        before = len(script.stdout_lines)
        eventually(lambda: any(" 0 in flight" not in line for line in list(script.stdout_lines)[before:]))
        assert script.stop(timeout=15) == 0
    acknowledged, lost = summary(script.stdout)
    assert lost > 0
    # The request in flight when the broker was suspended is in the topic, though it was never acknowledged.
    assert acknowledged <= len(own_broker.read(topic)) <= acknowledged + lost
    sent = [number(match[1]) for line in script.stdout_lines if (match := EACH_SECOND.match(line))]
    assert acknowledged + lost >= sent[-1]


@pytest.mark.parametrize(
    "words",
    [
        ("--rate", "0"),
        ("--rate", "-1"),
        ("--rate", "abc"),
        ("--rate", "nan"),
        ("--rate", "inf"),
        ("--rate", "."),
        ("--count", "-5"),
        ("--count", "0"),
        ("--count", "1.5"),
        ("--seed", "x"),
        ("--colour", "red"),
        ("orders",),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        producer.options().parse_args(words)
    output = capsys.readouterr()
    assert end.value.code == 2
    assert len(output.err.splitlines()) == 1
    assert words[0] in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, 1, "docker compose up -d"),
        ({"KAFKA_ACKS": "1"}, 2, "KAFKA_ACKS"),
        ({"KAFKA_ENABLE_IDEMPOTENCE": "false"}, 2, "KAFKA_ENABLE_IDEMPOTENCE"),
        ({"KAFKA_MESSAGE_TIMEOUT_MS": "30000"}, 2, "KAFKA_MESSAGE_TIMEOUT_MS"),
        ({"KAFKA_RETRIES": "3"}, 2, "KAFKA_RETRIES"),
        ({"KAFKA_BATCH_SIZE": "large"}, 2, "batch.size"),
        ({"KAFKA_COLOUR": "red"}, 2, "colour"),
        ({"KAFKA_TOPIC_PARTITIONS": "many"}, 2, "KAFKA_TOPIC_PARTITIONS"),
    ],
)
def test_a_wrong_environment_is_one_line_that_names_it(
    variables: dict[str, str],
    code: int,
    said: str,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (environment | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["producer.py"])
    monkeypatch.setattr("pipeline.command.take_signals", lambda: None)  # they are pytest's
    monkeypatch.setattr(producer, "SECONDS_FOR_BROKER", 0.5)
    assert run(producer.options(), producer.main) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("⏳")]
    assert len(lines) == 1
    assert said in lines[0]


def test_help_shows_how_it_is_used(run_script: RunScript) -> None:
    script = run_script("producer.py", "--help")
    assert script.wait() == 0
    for words in ("python producer.py --rate max", "--rate", "--count", "--seed"):
        assert words in script.stdout


def test_a_reader_of_its_lines_may_leave(environment: dict[str, str]) -> None:
    command = [sys.executable, "producer.py", "--rate", "20"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        assert "📤" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
