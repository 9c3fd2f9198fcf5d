"""The consumer as a real process, between a real broker and a real database."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psutil
import pytest
from confluent_kafka import Consumer as KafkaConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer import Batch, TradeConsumer
from pipeline.consumer import dead_letters
from pipeline.consumer.progress import Progress
from pipeline.consumer.starting_offsets import StartingOffsets
from pipeline.consumer.table import Stored, copy_file
from pipeline.local_stack.postgres_server import PostgresServer
from pipeline.metrics import ConsumerMetrics
from pipeline.reasons import reasons
from pipeline.settings import read_settings
from pipeline.trade import Trade, copy_rows, encode
from tests.conftest import RunScript
from tests.messages import expected_row, mutations, trade
from tests.script import SECONDS_TO_END, Script
from tests.services import Database, Kafka, KafkaClient, Postgres, eventually

STARTED = "🟢 Consumer started. Waiting for trades..."


BAD_MESSAGES = {
    b"not JSON": "JSON is malformed",
    trade(price=-1): "Expected `float` > 0.0",
    trade(ticker="A\0B"): "NUL",
    trade(side=None): "missing required field `side`",
    b"": "truncated",
}


def started(run_script: RunScript, *options: str, **variables: str) -> Script:
    """Start a consumer, and wait until it is about to join its group."""
    consumer = run_script("consumer.py", *options, **variables)
    consumer.wait_for_line(STARTED)
    return consumer


def test_a_row_that_is_refused_is_not_printed_as_stored(capsys: pytest.CaptureFixture[str]) -> None:
    messages = [Message(value=trade(ticker="BAD")), Message(value=trade(ticker="GOOD"))]
    Progress(ConsumerMetrics(lambda: True)).stored(messages, Stored(inserted=1, refused={0: ValueError("no")}))
    [line] = capsys.readouterr().out.splitlines()
    assert "GOOD" in line


def test_a_topic_that_cannot_be_read_is_not_said_to_work(caplog: pytest.LogCaptureFixture) -> None:
    own = TradeConsumer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), from_beginning=False)
    own.on_error(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    own.on_commit(None, [])  # offsets are committed to the group, which it may still use
    assert len(caplog.messages) == 1
    assert "The topic orders: " in caplog.messages[0]
    own.add([Message(value=trade())])
    assert "✅ The topic orders works again" in caplog.messages[1]


def test_a_lost_membership_leaves_no_commit_behind_that_would_end_the_next_one() -> None:
    own = TradeConsumer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), from_beginning=False)
    first = own.consumer
    own.consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=True)
    own.committing = True
    own.on_lost(first, [])
    own.on_assign(first, [TopicPartition("orders", 0)])  # librdkafka may join again before `poll` returns
    own.start_reading()
    assert own.consumer is not first
    assert not own.committing
    assert not own.lost
    assert own.assigned == []


def test_what_a_client_that_is_leaving_reports_changes_nothing() -> None:
    own = TradeConsumer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), from_beginning=False)
    first = own.consumer
    own.rejoin(0)
    own.reading = [TopicPartition("orders", 0)]
    own.add([Message(value=trade())])
    own.on_assign(first, [TopicPartition("orders", 1)])
    own.on_revoke(first, [])
    own.on_lost(first, [])
    assert (own.assigned, own.reading, len(own.batch)) == ([], [TopicPartition("orders", 0)], 1)
    assert not own.lost


def test_trades_that_are_in_hand_when_their_topic_is_made_again_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    own = TradeConsumer(read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}), from_beginning=False)
    stored: list[bytes] = []

    def store(rows: Sequence[bytes], content: bytes) -> Stored:
        stored.extend(rows)
        return Stored(inserted=len(rows))

    monkeypatch.setattr(own.table, "store", store)
    monkeypatch.setattr(own.starting_offsets, "made_again", lambda: True)
    threading.Thread(target=own.write_for_ever, daemon=True).start()
    own.add([Message(value=trade())])
    own.start_reading()
    assert len(stored) == 1


def test_every_value_arrives_as_it_was_sent(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    sent = [
        trade(price=99_999_999.99, volume=2_147_483_647, ticker="BRK.B", side="sell"),
        trade(price=0.01, volume=1, ticker="<b>\t\\N\n", timestamp="2026-01-31T10:30:00.000001+02:00"),
        trade(price=5, ticker="株式", timestamp="2026-01-31 08:30", extra={"ignored": [1]}),
    ]
    broker.produce(topic, sent)
    eventually(lambda: database.count() == len(sent))
    rows = database.query(
        "SELECT trade_id, ticker, price::text, volume, side, timestamp::text FROM trades ORDER BY price"
    )
    ids = [json.loads(message)["trade_id"] for message in sent]
    assert rows == [
        (ids[1], "<b>\t\\N\n", "0.01", 1, "buy", "2026-01-31 08:30:00.000001"),
        (ids[2], "株式", "5.00", 100, "buy", "2026-01-31 08:30:00"),
        (ids[0], "BRK.B", "99999999.99", 2_147_483_647, "sell", "2026-01-31 08:30:00.123456"),
    ]
    assert consumer.stop() == 0
    assert "3 trades stored, 0 repeated, 0 dead letters" in consumer.stdout
    assert consumer.stdout.count("📥") == 3


def test_bad_messages_become_dead_letters_and_delay_no_good_one(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    good = [trade() for _ in range(20)]
    broker.produce(topic, [*good[:7], *BAD_MESSAGES, *good[7:]], key=b"the key")
    eventually(lambda: database.count() == len(good))
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    letters = broker.read(f"{topic}.dlq")
    assert [letter.value() for letter in letters] == list(BAD_MESSAGES)
    for letter, reason, offset in zip(letters, BAD_MESSAGES.values(), range(7, 12), strict=True):
        headers = dict(letter.headers() or [])
        assert letter.key() == b"the key"
        assert reason in headers["__connect.errors.exception.message"].decode()
        assert headers["__connect.errors.exception.class.name"] == b"pipeline.trade.InvalidTrade"
        assert headers["__connect.errors.topic"].decode() == topic
        assert headers["__connect.errors.partition"] == b"0"
        assert headers["__connect.errors.offset"].decode() == str(offset)
    assert consumer.stop() == 0
    assert f"{len(good)} trades stored, 0 repeated, {len(BAD_MESSAGES)} dead letters" in consumer.stdout


def test_a_new_group_starts_at_the_end(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade(ticker="OLD")])
    consumer = started(run_script)
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)  # its starting offsets are committed
    broker.produce(topic, [trade(ticker="NEW")])
    eventually(lambda: database.count() == 1)
    assert database.query("SELECT ticker FROM trades") == [("NEW",)]
    assert consumer.stop() == 0


def test_what_was_traded_after_the_first_join_survives_a_kill_before_the_first_batch(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade(ticker="OLD")])
    killed = started(run_script)
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)  # its starting offsets are committed
    killed.stop(signal.SIGKILL)
    broker.produce(topic, [trade(ticker="MEANWHILE")])
    consumer = started(run_script)
    eventually(lambda: database.query("SELECT ticker FROM trades") == [("MEANWHILE",)])
    assert consumer.stop() == 0


def test_redelivered_trades_are_stored_once(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    trades = [trade() for _ in range(3000)]
    broker.produce(topic, [*trades, *trades[:500]])
    for repeated in (500, 3501):
        consumer = started(run_script, "--from-beginning")
        broker.produce(topic, [last := trade()])
        eventually(lambda: database.query("SELECT 1 FROM trades WHERE trade_id = %s", json.loads(last)["trade_id"]))
        assert consumer.stop() == 0
        assert f"{repeated:,} repeated" in consumer.stdout
    assert database.count() == len(trades) + 2


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_one_line_and_exit_code_0(broker: KafkaClient, run_script: RunScript, ending: signal.Signals) -> None:
    consumer = started(run_script)
    assert consumer.stop(ending) == 0
    assert consumer.stdout.splitlines()[-1].startswith("Consumer stopped: 0 trades stored")
    assert "Traceback" not in consumer.stderr


def test_a_stop_while_it_waits_for_the_services(run_script: RunScript) -> None:
    for variables in ({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"}):
        consumer = run_script("consumer.py", **variables)
        eventually(lambda: "⏳ Waiting for" in consumer.stderr)  # noqa: B023
        assert consumer.stop() == 0
        assert len(consumer.stderr_lines) == 1
        assert "p@" not in consumer.stderr, "a password is nobody's business"


@pytest.mark.parametrize(
    ("variables", "exit_code", "said"),
    [
        ({"KAFKA_TOPIC_PARTITIONS": "none"}, 2, "KAFKA_TOPIC_PARTITIONS=none"),
        ({"KAFKA_AUTO_OFFSET_RESET": "sometimes"}, 2, "give latest or earliest"),
        ({"KAFKA_NO_SUCH_THING": "1"}, 2, "no.such.thing"),
        ({"DATABASE_URL": "no url"}, 2, "DATABASE_URL"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    run_script: RunScript, variables: dict[str, str], exit_code: int, said: str
) -> None:
    consumer = run_script("consumer.py", **variables)
    assert consumer.wait() == exit_code
    assert said in consumer.stderr
    assert len(consumer.stderr_lines) == 1


def test_a_table_that_is_not_ours_is_named(database: Database, run_script: RunScript) -> None:
    database.query("ALTER TABLE trades DROP COLUMN side")
    consumer = run_script("consumer.py")
    assert consumer.wait() == 1
    assert "trades.side is missing" in consumer.stderr


def test_a_missing_table_is_created(broker: KafkaClient, database: Database, run_script: RunScript) -> None:
    database.query("DROP TABLE trades")
    consumer = started(run_script)
    assert database.count() == 0
    assert consumer.stop() == 0


BREAKS = {
    "revoked": ("REVOKE INSERT ON trades FROM writer", "GRANT INSERT ON trades TO writer", "permission denied"),
    "renamed": ("ALTER TABLE trades RENAME TO away", "ALTER TABLE away RENAME TO trades", "is missing: restart"),
    "altered": (
        "TRUNCATE trades; ALTER TABLE trades ALTER COLUMN ticker TYPE VARCHAR(2)",
        "ALTER TABLE trades ALTER COLUMN ticker TYPE VARCHAR(10)",
        "trades.ticker is character varying(2)",
    ),
    "extended": (
        "TRUNCATE trades; ALTER TABLE trades ADD COLUMN venue TEXT NOT NULL",
        "ALTER TABLE trades DROP COLUMN venue",
        "trades.venue is NOT NULL",
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_table_is_no_trades_fault(
    broker: KafkaClient, postgres: Postgres, database: Database, topic: str, run_script: RunScript, broken: str
) -> None:
    database.query("DROP ROLE IF EXISTS writer")
    database.query("CREATE ROLE writer LOGIN PASSWORD 'kafka_password'")
    database.query("GRANT INSERT ON trades TO writer")
    broker.create_topic(topic)
    breaks, mends, said = BREAKS[broken]
    consumer = started(run_script, "--from-beginning", DATABASE_URL=database.url.replace("kafka_user", "writer"))
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 1)
    database.query(breaks)
    before = 1 if broken in ("revoked", "renamed") else 0
    broker.produce(topic, [trade(), b"bad", trade()])
    eventually(lambda: said in consumer.stderr)
    database.query(mends)
    eventually(lambda: database.count() == before + 2)
    assert consumer.stop() == 0
    assert "PostgreSQL works again" in consumer.stderr
    assert [letter.value() for letter in broker.read(f"{topic}.dlq")] == [b"bad"]
    database.query("DROP OWNED BY writer")


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_row_that_only_postgresql_refuses_is_one_dead_letter(
    partitions: int,
    broker: KafkaClient,
    database: Database,
    topic: str,
    environment: dict[str, str],
    run_script: RunScript,
) -> None:
    """The row's message is found among the others, even in a sorted batch."""
    database.query("ALTER TABLE trades ADD CONSTRAINT no_penny_stocks CHECK (price > 1)")
    broker.create_topic(topic, partitions)
    penny = trade(price=0.5)
    trades = [encode(Trade(str(uuid4()), "NVDA", 120.5, 100, "sell", "2026-01-31T08:30:00Z")) for _ in range(10_000)]
    messages = [*trades[:7000], penny, *trades[7000:]]
    for partition in range(partitions):
        broker.produce(topic, messages[partition::partitions], partition=partition)
    consumer = started(run_script, "--from-beginning")
    eventually(lambda: database.count() == len(trades))
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    [letter] = broker.read(f"{topic}.dlq")
    assert letter.value() == penny
    headers = dict(letter.headers() or [])
    assert headers["__connect.errors.exception.class.name"] == b"psycopg2.errors.CheckViolation"
    assert b"no_penny_stocks" in headers["__connect.errors.exception.message"]
    assert consumer.stop() == 0


def test_a_batch_is_sorted_by_key_and_each_row_keeps_its_message() -> None:
    batch = Batch()
    for partition in (1, 0):
        values = [trade(trade_id=str(UUID(int=2 * number + partition))) for number in range(500)]
        batch.messages += [Message(value=value) for value in values]
        batch.rows += copy_rows(values)
    batch.close(sort=True)
    assert batch.rows == copy_rows([message.value() for message in batch.messages])
    assert batch.content == copy_file(batch.rows)
    assert [row[6:42].decode() for row in batch.rows] == [str(UUID(int=n)) for n in range(1000)]


def test_a_stop_while_the_database_is_down_loses_nothing(
    broker: KafkaClient, own_postgres: Postgres, topic: str, run_script: RunScript
) -> None:
    database = own_postgres.database
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning", DATABASE_URL=own_postgres.url)
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 1)
    own_postgres.kill()
    broker.produce(topic, [trade() for _ in range(100)])
    eventually(lambda: "⚠️  PostgreSQL" in consumer.stderr)
    assert consumer.stop() == 0  # within the ten seconds that Script.stop allows
    own_postgres.start()
    consumer = started(run_script, DATABASE_URL=own_postgres.url)
    eventually(lambda: database.count() == 101)
    assert consumer.stop() == 0


def test_an_outage_longer_than_the_poll_interval_keeps_the_place_in_the_group(
    broker: KafkaClient, own_postgres: Postgres, topic: str, run_script: RunScript
) -> None:
    database = own_postgres.database
    broker.create_topic(topic)
    consumer = started(
        run_script, "--from-beginning", DATABASE_URL=own_postgres.url,
        KAFKA_MAX_POLL_INTERVAL_MS="6000", KAFKA_SESSION_TIMEOUT_MS="6000", LOG_LEVEL="INFO",
    )  # fmt: skip
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 1)
    own_postgres.kill()
    trades = [trade() for _ in range(50_000)]  # more than a batch, so that fetching has to pause
    broker.produce(topic, trades)
    eventually(lambda: "⚠️  PostgreSQL" in consumer.stderr)
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 8)  # the outage has to last that long
    own_postgres.start()
    eventually(lambda: database.count() == len(trades) + 1, timeout=60)
    assert "PostgreSQL works again" in consumer.stderr
    assert consumer.stderr.count("⚠️  PostgreSQL") == 1
    assert "poll" not in consumer.stderr.lower(), "the group expelled it"
    assert consumer.stop() == 0
    assert "0 repeated" in consumer.stdout, "its partitions were taken away meanwhile"


def test_a_group_that_cannot_be_joined_is_told_and_joined_when_it_can(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    broker.produce(topic, [trade()])
    group = {"bootstrap.servers": broker.bootstrap_servers, "group.id": environment["KAFKA_GROUP_ID"]}
    # A member that stops polling: the group waits for it.
    with closing(KafkaConsumer(group | {"max.poll.interval.ms": 60_000, "session.timeout.ms": 60_000})) as stuck:
        stuck.subscribe([topic])
        eventually(lambda: stuck.poll(0.1) is None and stuck.assignment())
        consumer = started(run_script, "--from-beginning")
        consumer.wait_for_line("still waiting to join the group")
    eventually(lambda: database.count() == 1)
    consumer.wait_for_line("works again")
    assert consumer.stop() == 0


def test_fuzzed_messages_add_up(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    messages = list(mutations(seed=4, count=5_000))
    rows = {row for message in messages if (row := expected_row(message))}
    bad = [message for message in messages if expected_row(message) is None]
    broker.create_topic(topic)
    broker.produce(topic, messages)
    consumer = started(run_script, "--from-beginning")
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    assert set(database.query("SELECT trade_id, ticker, price, volume, side, timestamp FROM trades")) == rows
    assert [letter.value() for letter in broker.read(f"{topic}.dlq")] == bad
    assert consumer.stop() == 0
    assert f"{len(rows):,} trades stored" in consumer.stdout


def test_headers_whose_name_is_not_utf_8_do_no_harm(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    for value in (trade(), b"bad"):
        produce_raw(broker, topic, value, header=b"\xff\xfe name")
    consumer = started(run_script, "--from-beginning")
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 2)
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    [letter] = broker.read(f"{topic}.dlq")
    assert letter.value() == b"bad"
    assert reasons(letter)["offset"] == "1"
    assert consumer.stop() == 0


def produce_raw(broker: KafkaClient, topic: str, value: bytes, header: bytes) -> None:
    """Produce one message to partition 0, with a header name that crashes confluent-kafka."""

    def sized(data: bytes) -> bytes:
        return (
            bytes([length]) + data
            if (length := 2 * len(data)) < 128
            else bytes([length & 127 | 128, length >> 7]) + data
        )

    record = sized(b"\0\0\0" + b"\1" + sized(value) + b"\2" + sized(header) + sized(b"value"))  # no key; 1 header
    now = time.time_ns() // 1_000_000
    batch = struct.pack(">hiqqqhii", 0, 0, now, now, -1, -1, -1, 1) + record
    batch = struct.pack(">ibI", -1, 2, crc32c(batch)) + batch
    batch = struct.pack(">qi", 0, len(batch)) + batch
    name = struct.pack(">h", len(topic)) + topic.encode()
    request = struct.pack(">hhihhhii", 0, 3, 1, -1, -1, -1, 10_000, 1) + name  # Produce, version 3
    request += struct.pack(">iii", 1, 0, len(batch)) + batch
    host, port = broker.bootstrap_servers.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.makefile("rb")
        answer.read(4 + 4 + 4 + 2 + len(topic) + 4 + 4)  # up to the partition's error
        assert answer.read(2) == b"\0\0"


def crc32c(data: bytes) -> int:
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ 0x82F63B78 * (checksum & 1)
    return checksum ^ 0xFFFFFFFF


def test_a_value_of_a_megabyte_is_a_dead_letter(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    huge = trade(ticker="x" * 1_000_000)
    assert len(huge) < 1_048_000  # the default limit of Apache Kafka
    consumer = started(run_script, "--from-beginning")
    broker.produce(topic, [huge, trade()])
    eventually(lambda: database.count() == 1)
    eventually(lambda: [letter.value() for letter in broker.read(f"{topic}.dlq")] == [huge])
    assert consumer.stop() == 0


def test_good_trades_are_stored_while_kafka_refuses_the_dead_letters(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    broker.configure(f"{topic}.dlq", max_message_bytes="1000")
    bad = b"x" * 2000
    broker.produce(topic, [trade(), bad, *(trade() for _ in range(500))])
    consumer.wait_for_line("The dead-letter topic")
    broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 502)
    assert broker.committed(topic, environment["KAFKA_GROUP_ID"]).get(0, 0) <= 1, "the dead letter is not safe yet"
    broker.configure(f"{topic}.dlq", max_message_bytes="10000")
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    assert [letter.value() for letter in broker.read(f"{topic}.dlq")] == [bad]
    assert consumer.stop() == 0
    assert consumer.stderr.count("⚠️  The dead-letter topic") == 1


def test_a_rebalance_does_not_wait_for_a_dead_letter_that_kafka_refuses(
    broker: KafkaClient, topic: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "SECONDS_BETWEEN_ATTEMPTS", (120.0, 120.0))
    broker.create_topic(topic)
    broker.produce(topic, [b"bad"])
    broker.create_topic(f"{topic}.dlq")
    broker.configure(f"{topic}.dlq", max_message_bytes="1")
    member = TradeConsumer(read_settings(environment), from_beginning=True)
    member.decode(broker.read(topic))
    batch, member.batch = member.batch, Batch()
    member.to_commit.append(batch)

    def refused() -> bool:
        member.dead_letters.poll(0.1)
        return not member.dead_letters.in_flight

    eventually(refused)
    assert batch.unacknowledged == 1
    began = time.monotonic()
    member.settle(60)
    assert time.monotonic() - began < 10
    member.close()


def test_a_flood_of_dead_letters_that_kafka_refuses_pauses_the_consumer(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    broker.configure(f"{topic}.dlq", max_message_bytes="100")
    bad = [b"x" * 1000] * 20_000
    broker.produce(topic, [*bad, trade()])
    consumer.wait_for_line("The dead-letter topic")
    assert psutil.Process(consumer.pid).memory_info().rss < 250 << 20
    assert database.count() == 0, "the good trade behind the flood is not read yet"
    assert consumer.stop() == 0  # within the ten seconds that Script.stop allows
    again = started(run_script)  # its start restores the topic's limit
    eventually(lambda: database.count() == 1)
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    assert len(broker.read(f"{topic}.dlq")) >= len(bad)
    assert again.stop() == 0


def test_large_messages_are_bounded_by_their_bytes(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    process, peak = psutil.Process(consumer.pid), 0
    trades = [trade(ignored="x" * 50_000) for _ in range(6_000)]
    with closing(database.connect()) as connection:
        connection.cursor().execute("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
        broker.produce(topic, trades)
        began = time.monotonic()
        while time.monotonic() - began < 3:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
    eventually(lambda: database.count() == len(trades), timeout=60)
    assert max(peak, process.memory_info().rss) < 250 << 20
    assert consumer.stop() == 0


@pytest.mark.parametrize("with_dead_letters", [False, True], ids=["alone", "with its dead-letter topic"])
def test_a_topic_made_again_is_read_from_its_oldest_trade(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript,
    with_dead_letters: bool,
) -> None:  # fmt: skip
    broker.create_topic(topic)
    consumer = started(run_script)
    eventually(lambda: broker.committed(topic, environment["KAFKA_GROUP_ID"]) == {0: 0})
    broker.produce(topic, [trade() for _ in range(10)])
    eventually(lambda: database.count() == 10)
    if with_dead_letters:
        broker.delete_topic(f"{topic}.dlq")
    broker.delete_topic(topic)
    eventually(lambda: topic not in broker.topics())
    broker.create_topic(topic)
    broker.produce(topic, [trade() for _ in range(50)])
    eventually(lambda: database.count() == 60)
    assert consumer.stop() == 0
    assert broker.committed(topic, environment["KAFKA_GROUP_ID"]) == {0: 50}


def test_a_group_is_known_though_its_topics_were_deleted_one_after_the_other(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    group, dead_letter_topic = environment["KAFKA_GROUP_ID"], f"{topic}.dlq"
    broker.create_topic(topic)
    consumer = started(run_script)
    eventually(lambda: broker.committed(dead_letter_topic, group) == {0: 0})
    broker.delete_topic(dead_letter_topic)
    eventually(lambda: dead_letter_topic not in broker.topics())
    eventually(lambda: dead_letter_topic in broker.topics() and broker.committed(dead_letter_topic, group) == {0: 0})
    assert consumer.stop() == 0
    broker.delete_topic(topic)
    eventually(lambda: topic not in broker.topics())
    broker.create_topic(topic)
    broker.produce(topic, [trade() for _ in range(5)])
    consumer = started(run_script)
    eventually(lambda: database.count() == 5)
    assert consumer.stop() == 0


@pytest.mark.parametrize("missed", [False, True], ids=["at once", "later"])
def test_a_topic_made_again_is_read_after_its_broker_was_restarted(
    own_broker: Kafka, database: Database, topic: str, run_script: RunScript, missed: bool
) -> None:
    """After the restart, the old topic's leader epochs are higher than the new topic's."""
    own_broker.create_topic(topic, 3)
    servers = {"KAFKA_BOOTSTRAP_SERVERS": own_broker.bootstrap_servers}
    consumers = [started(run_script, "--from-beginning", **servers) for _ in range(2)]
    own_broker.kill()
    own_broker.start()
    own_broker.produce(topic, (trade() for _ in range(30)), key=None)
    eventually(lambda: database.count() == 30)
    for consumer in consumers:  # otherwise the missing topic would be part of the same outage
        eventually(lambda: consumer.stderr.count("No data lost") == consumer.stderr.count("works again"))  # noqa: B023
    own_broker.delete_topic(topic)
    eventually(lambda: topic not in own_broker.topics())
    if missed:
        for consumer in consumers:
            consumer.wait_for_line(topic)
    own_broker.create_topic(topic, 3)
    own_broker.produce(topic, (trade() for _ in range(30)), key=None)
    eventually(lambda: database.count() == 60)
    assert [consumer.stop() for consumer in consumers] == [0, 0]


def test_messages_that_are_gone_are_told(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    eventually(lambda: broker.committed(topic, environment["KAFKA_GROUP_ID"]) == {0: 0})
    assert consumer.stop() == 0
    broker.produce(topic, [trade() for _ in range(10)])
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for answer in admin.delete_records([TopicPartition(topic, 0, 6)]).values():
        answer.result()
    consumer = started(run_script)
    eventually(lambda: database.count() == 4)
    assert "offset reset" in consumer.stderr
    assert len(consumer.stderr_lines) == 1
    assert consumer.stop() == 0


def test_a_consumer_that_another_replaces_ends_with_one_line(
    broker: KafkaClient, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    first = started(run_script, "--from-beginning", KAFKA_GROUP_INSTANCE_ID="one")
    broker.produce(topic, [trade()])
    first.wait_for_line("📥")
    second = started(run_script, KAFKA_GROUP_INSTANCE_ID="one")
    assert first.wait() == 1
    assert len(first.stderr_lines) == 1
    assert "KAFKA_GROUP_INSTANCE_ID" in first.stderr
    assert second.stop() == 0


def test_a_ticker_cannot_meddle_with_the_terminal(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    broker.produce(topic, [trade(ticker="\x1b[2JHA"), trade(ticker="\x1b[2J", side="\x1b"), b"\x1b"])
    eventually(lambda: database.count() == 1)
    assert consumer.stop() == 0
    assert "📥" in consumer.stdout
    assert "\x1b" not in consumer.stdout + consumer.stderr


def test_starting_offsets_are_asked_for_until_kafka_answers(
    broker: KafkaClient,
    database: Database,
    topic: str,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker.create_topic(topic)
    broker.create_topic(f"{topic}.dlq")
    broker.produce(topic, [trade()])
    failures = iter([KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.COORDINATOR_LOAD_IN_PROGRESS])
    decide = StartingOffsets.of

    def of(offsets: StartingOffsets, assigned: list[TopicPartition]) -> list[TopicPartition] | None:
        for code in failures:
            raise KafkaException(KafkaError(code))
        return decide(offsets, assigned)

    monkeypatch.setattr(StartingOffsets, "of", of)
    monkeypatch.setattr("consumer.stop_requested", lambda: database.count() == 1)
    member = TradeConsumer(read_settings(environment), from_beginning=True)
    member.run()
    member.close()


def test_an_outage_is_when_no_broker_works(caplog: pytest.LogCaptureFixture) -> None:
    settings = read_settings({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    member = TradeConsumer(settings, from_beginning=False)
    member.on_error(KafkaError(KafkaError._TRANSPORT, "one of three is away"))
    member.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))  # until it tries the next address
    assert not caplog.messages
    member.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert "one of three is away" in caplog.messages[0]
    member.on_commit(None, [])
    for _ in range(2):  # without a reason: a connection that is merely closed is not an error of its own
        member.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    assert "127.0.0.1:1: 1/1 brokers are down." in caplog.messages[-1]
    with pytest.raises(KafkaException):
        member.on_error(KafkaError(KafkaError._FATAL))
    member.close()


@pytest.fixture
def small_disk(own_postgres: Postgres) -> Iterator[Path]:
    """Put the table of `own_postgres` on a 16 MB file system."""
    disk = own_postgres.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=777", "tmpfs", str(disk)]).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    (disk / "space").mkdir(mode=0o700)
    shutil.chown(disk / "space", PostgresServer.user or os.getuid())
    with closing(own_postgres.database.connect()) as connection:
        connection.autocommit = True  # required by CREATE TABLESPACE
        connection.cursor().execute(f"CREATE TABLESPACE small LOCATION '{disk / 'space'}'")
    own_postgres.database.query("ALTER TABLE trades SET TABLESPACE small")
    yield disk
    own_postgres.stop()
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_no_trades_fault(
    broker: KafkaClient, own_postgres: Postgres, small_disk: Path, topic: str, run_script: RunScript
) -> None:
    database = own_postgres.database
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning", DATABASE_URL=own_postgres.url)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (12 << 20))
    trades = [trade() for _ in range(60_000)]
    broker.produce(topic, trades)
    consumer.wait_for_line("No space left on device")
    filler.unlink()
    eventually(lambda: database.count() == len(trades), timeout=60)
    assert consumer.stop() == 0
    assert f"{topic}.dlq" not in broker.topics() or not broker.read(f"{topic}.dlq")


def test_a_broker_that_crashes_is_waited_for(
    own_broker: Kafka, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    consumer = started(run_script, "--from-beginning", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers)
    own_broker.produce(topic, [trade() for _ in range(100)])
    eventually(lambda: database.count() == 100)
    own_broker.kill()
    consumer.wait_for_line("⚠️  Kafka at")
    own_broker.start()
    own_broker.produce(topic, [trade() for _ in range(100)])
    eventually(lambda: database.count() == 200, timeout=60)
    assert consumer.stop() == 0


def test_a_broker_that_dies_between_the_start_and_the_first_poll_is_waited_for(
    own_broker: Kafka, postgres: Postgres, database: Database, topic: str, run_script: RunScript
) -> None:
    name = urlsplit(database.url).path.lstrip("/")
    postgres.database.query(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    consumer = run_script("consumer.py", "--from-beginning", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers)
    consumer.wait_for_line("⏳ Waiting for PostgreSQL")  # Kafka works so far
    own_broker.kill()
    postgres.database.query(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    consumer.wait_for_line(STARTED)
    outage = consumer.wait_for_line("⚠️  Kafka at")
    assert re.search(r": \w.*\. No data lost", outage), "no reason is told"
    own_broker.start()
    own_broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 1)
    assert consumer.stop() == 0


def test_a_stop_while_the_broker_is_down(
    own_broker: Kafka, database: Database, topic: str, run_script: RunScript
) -> None:
    consumer = started(run_script, "--from-beginning", KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers)
    own_broker.produce(topic, [trade()])
    eventually(lambda: database.count() == 1)
    own_broker.kill()
    consumer.wait_for_line("⚠️  Kafka at")
    assert consumer.stop() == 0  # within the ten seconds that Script.stop allows
    assert "1 trades stored" in consumer.stdout


def test_a_stop_while_the_broker_dies_in_a_rebalance(own_broker: Kafka, topic: str, run_script: RunScript) -> None:
    """In that case, librdkafka's close() usually waits for the broker forever."""
    own_broker.create_topic(topic, 3)
    members = [started(run_script, KAFKA_BOOTSTRAP_SERVERS=own_broker.bootstrap_servers) for _ in range(3)]
    own_broker.kill()
    for member in members:
        member.process.send_signal(signal.SIGTERM)
    assert [member.wait(SECONDS_TO_END) for member in members] == [0, 0, 0]
    assert all("Consumer stopped" in member.stdout for member in members)


def test_a_stop_while_a_lock_keeps_the_table(
    broker: KafkaClient, database: Database, topic: str, run_script: RunScript
) -> None:
    broker.create_topic(topic)
    consumer = started(run_script, "--from-beginning")
    with closing(database.connect()) as connection:
        connection.cursor().execute("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
        broker.produce(topic, [trade() for _ in range(100)])
        eventually(
            lambda: database.query(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%COPY%'"
            )
        )
        assert consumer.stop() == 0
    again = started(run_script)
    eventually(lambda: database.count() == 100)
    assert again.stop() == 0


def test_consumers_that_join_leave_and_die_share_the_partitions(
    broker: KafkaClient, database: Database, topic: str, environment: dict[str, str], run_script: RunScript
) -> None:
    broker.create_topic(topic, partitions=6)
    consumers = [started(run_script, "--from-beginning") for _ in range(3)]
    producer = run_script("producer.py", "--rate", "1000", "--count", "15000")
    eventually(lambda: database.count() > 2_000)
    consumers.pop().stop(signal.SIGKILL)
    eventually(lambda: database.count() > 7_000)
    assert consumers.pop(0).stop() == 0
    eventually(lambda: database.count() > 10_000)
    consumers.append(started(run_script))
    assert producer.wait() == 0
    eventually(lambda: database.count() == 15_000, timeout=60)
    eventually(lambda: broker.lag(topic, environment["KAFKA_GROUP_ID"]) == 0)
    for consumer in consumers:
        assert consumer.stop() == 0

    produced = broker.read(topic)
    assert len({message.partition() for message in produced}) > 1, "nothing was shared"
    for ticker in {message.key().decode() for message in produced}:
        tape = sorted(
            (message.partition(), message.offset(), message.value())
            for message in produced
            if message.key() == ticker.encode()
        )
        sent = [json.loads(value)["trade_id"] for _, _, value in tape]  # ascending in the order they were made
        assert sent == sorted(sent), f"{ticker} lost its order in Kafka"
        # PostgreSQL assigns a transaction's id when it stores its first row.
        rows = database.query("SELECT trade_id, xmin::text::bigint FROM trades WHERE ticker = %s ORDER BY 1", ticker)
        assert [trade_id for trade_id, _ in rows] == sent
        stored = [transaction for _, transaction in rows]
        assert stored == sorted(stored), f"{ticker} lost its order in PostgreSQL"
