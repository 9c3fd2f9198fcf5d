"""Metrics as Prometheus scrapes them, from both scripts as processes."""

import json
import socket
from collections.abc import Callable
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.errors import CheckViolation

from pipeline.metrics import ConsumerMetrics, Metrics, ProducerMetrics
from pipeline.trade import InvalidTrade
from tests.conftest import RunScript
from tests.messages import mutations, trade
from tests.script import Script
from tests.services import Database, KafkaClient, Postgres, eventually, free_port

Scrape = Callable[[], dict[str, float]]


def samples(port: int) -> dict[str, float]:
    """Scrape a script; return its samples by name and labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.documentation for family in families)
    return {
        sample.name + "".join(f",{label}={value}" for label, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def consumer(run_script: RunScript) -> tuple[Script, Scrape]:
    """A consumer, and a function that scrapes it."""
    port = free_port()
    script = run_script("consumer.py", "--from-beginning", "--metrics-port", str(port))
    script.wait_for_line("Consumer started")
    return script, lambda: samples(port)


def test_the_consumer_counts_what_becomes_of_messages(
    broker: KafkaClient, database: Database, topic: str, consumer: tuple[Script, Scrape]
) -> None:
    script, scrape = consumer
    trades = [trade() for _ in range(100)]
    broker.produce(topic, [*trades, trades[0], b"no JSON", trade(price=-1)])
    eventually(lambda: scrape()["trades_stored_total"] == 100 and scrape()["trades_repeated_total"] == 1)
    counted = eventually(lambda: (now := scrape()).get("trades_consumer_lag_messages,partition=0") == 0 and now)
    assert isinstance(counted, dict)
    assert counted["trades_dead_letters_total,column=,error=InvalidTrade"] == 1
    assert counted["trades_dead_letters_total,column=price,error=InvalidTrade"] == 1
    assert counted["trades_batches_stored_total"] >= 1
    assert counted["trades_commit_seconds_count"] == counted["trades_batches_stored_total"]
    assert counted["trades_commit_seconds_sum"] > 0
    assert counted["trades_database_up"] == 1
    assert counted["trades_received_bytes_total"] > sum(map(len, trades))
    assert counted["process_resident_memory_bytes"] > 0
    assert script.stop() == 0


def test_the_database_is_seen_to_go_and_come_back(
    broker: KafkaClient, own_postgres: Postgres, topic: str, run_script: RunScript
) -> None:
    port = free_port()
    variables = {"DATABASE_URL": own_postgres.url}
    script = run_script("consumer.py", "--from-beginning", "--metrics-port", str(port), **variables)
    script.wait_for_line("Consumer started")
    own_postgres.kill()
    broker.produce(topic, [trade()])
    eventually(lambda: samples(port)["trades_database_up"] == 0)
    eventually(lambda: samples(port).get("trades_consumer_lag_messages,partition=0") == 1)
    own_postgres.start()
    eventually(lambda: samples(port)["trades_database_up"] == 1)
    eventually(lambda: samples(port)["trades_stored_total"] == 1)
    assert script.stop() == 0


def test_the_producer_counts_what_becomes_of_trades(broker: KafkaClient, run_script: RunScript) -> None:
    port = free_port()
    script = run_script("producer.py", "--rate", "100", "--metrics-port", str(port))
    eventually(lambda: samples(port)["trades_acknowledged_total"] >= 100 if "📤" in script.stdout else False)
    counted = samples(port)
    assert counted["trades_sent_total"] >= counted["trades_acknowledged_total"]
    assert counted["trades_delivery_errors_total"] == 0
    assert counted["trades_in_flight"] >= 0
    eventually(lambda: samples(port)["trades_sent_bytes_total"] > 10_000)
    assert script.stop() == 0


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_what_the_user_got_wrong_is_one_line(broker: KafkaClient, run_script: RunScript, script: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run_script(script, "--metrics-port", str(port))
        assert refused.wait() == 1
    assert refused.stderr == (
        f"{script}: metrics cannot be served on 127.0.0.1:{port} (Address already in use): give another --metrics-port"
    )
    wrong = run_script(script, "--metrics-port", "none")
    assert wrong.wait() == 2
    assert "none: give a port, such as 9101" in wrong.stderr_lines[-1]


@pytest.mark.parametrize(
    ("metrics", "key"),
    [(ConsumerMetrics(lambda: True), "rxmsg_bytes"), (ProducerMetrics(lambda: 0), "txmsg_bytes")],
)
def test_a_total_that_falls_because_a_topic_was_deleted_is_no_error(metrics: Metrics, key: str) -> None:
    for total in (1000, 200, 300):
        metrics.on_statistics(json.dumps({"name": "second", key: total, "topics": {}}))
        metrics.on_statistics(json.dumps({"name": "first", key: 0, "topics": {}}))  # an earlier client, still leaving
    [family] = [
        family for family in metrics.registry.collect() if family.name.endswith("_bytes") and "trades" in family.name
    ]
    assert family.samples[0].value == 1100


def test_whatever_is_sent_the_labels_of_dead_letters_are_few() -> None:
    metrics = ConsumerMetrics(database_up=lambda: True)
    for message in mutations(seed=5, count=500):
        for error in (InvalidTrade, CheckViolation):
            metrics.dead_letter(error(f"{message!r} is not right"))
    [family] = [family for family in metrics.registry.collect() if family.name == "trades_dead_letters"]
    assert len(family.samples) <= 2 * 2 * 7  # samples (total and creation time) × errors × columns (six, or none)
