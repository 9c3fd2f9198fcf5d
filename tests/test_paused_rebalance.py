"""Consumers that join while everybody waits for PostgreSQL: paused partitions change hands and resume."""

import time
from contextlib import closing

import pytest

from pipeline.trade import Trade, encode
from tests.conftest import RunScript
from tests.services import Database, KafkaClient, eventually

TRADES_A_PARTITION = 60_000  # a consumer with two partitions holds 80,000 trades, and pauses
PARTITIONS = 3


def values(partition: int) -> list[bytes]:
    return [
        encode(Trade(f"{partition:08}-0000-7000-8000-{number:012}", "AAPL", 1.0, 1, "buy", "2026-01-01T00:00:00Z"))
        for number in range(TRADES_A_PARTITION)
    ]


def waiting_for_the_table(database: Database) -> int:
    return int(database.query("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0])


@pytest.mark.slow
def test_partitions_that_were_paused_when_they_changed_hands_are_read_on(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic, PARTITIONS)
    for partition in range(PARTITIONS):
        broker.produce(topic, values(partition), partition=partition)
    consumers = []
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE trades IN EXCLUSIVE MODE")
        for _ in range(PARTITIONS):
            consumers.append(run_script("consumer.py", "--from-beginning"))
            consumers[-1].wait_for_line("Consumer started")
            eventually(lambda: waiting_for_the_table(database) >= len(consumers))
            time.sleep(2)  # it pauses a second after its batch is full, which is not visible from outside
    eventually(lambda: database.count() == PARTITIONS * TRADES_A_PARTITION, timeout=40, every=0.5)
    assert [consumer.stop() for consumer in consumers] == [0] * PARTITIONS
