"""From environment variables to settings."""

from datetime import timedelta

import pytest

from pipeline.settings import DEFAULT_DATABASE_URL, read_settings
from pipeline.user_error import UsageError


def test_without_any_variable_everything_is_on_localhost() -> None:
    settings = read_settings({})
    assert settings.bootstrap_servers == "localhost:9092"
    assert settings.topic == "orders"
    assert settings.dead_letter_topic == "orders.dlq"
    assert settings.topic_partitions == 1
    assert settings.group_id == "trades-consumer-group-v2"
    assert settings.auto_offset_reset == "latest"
    assert settings.database_url == DEFAULT_DATABASE_URL
    assert settings.kafka == {"bootstrap.servers": "localhost:9092"}
    assert settings.retention is None
    assert settings.log_level == "WARNING"


def test_own_variables_are_read_and_not_passed_to_librdkafka() -> None:
    settings = read_settings(
        {
            "KAFKA_BOOTSTRAP_SERVERS": "one:1,two:2",
            "KAFKA_TOPIC": "fills",
            "KAFKA_TOPIC_PARTITIONS": "6",
            "KAFKA_GROUP_ID": "mine",
            "KAFKA_AUTO_OFFSET_RESET": "earliest",
            "DATABASE_URL": "postgresql://u@h/d?sslmode=require",
        }
    )
    assert settings.topic == "fills"
    assert settings.dead_letter_topic == "fills.dlq"
    assert settings.topic_partitions == 6
    assert settings.group_id == "mine"
    assert settings.auto_offset_reset == "earliest"
    assert settings.database_url == "postgresql://u@h/d?sslmode=require"
    assert settings.kafka == {"bootstrap.servers": "one:1,two:2"}


def test_every_other_kafka_variable_is_librdkafkas() -> None:
    settings = read_settings({"KAFKA_SSL_CA_LOCATION": "/ca.pem", "KAFKA_LINGER_MS": "5", "HOME": "/"})
    assert settings.kafka["ssl.ca.location"] == "/ca.pem"
    assert settings.kafka["linger.ms"] == "5"
    assert len(settings.kafka) == 3


@pytest.mark.parametrize(
    "variable",
    [
        *("KAFKA_HOME", "KAFKA_OPTS", "KAFKA_HEAP_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS"),  # where Kafka is installed
        *("KAFKA_PORT", "KAFKA_SERVICE_HOST", "KAFKA_SERVICE_PORT", "KAFKA_SERVICE_PORT_CLIENT"),  # in Kubernetes
        *("KAFKA_PORT_9092_TCP", "KAFKA_PORT_9092_TCP_ADDR", "KAFKA_BROKER_SERVICE_HOST"),
    ],
)
def test_a_variable_that_is_not_for_the_scripts_is_left_alone(variable: str) -> None:
    assert read_settings({variable: "something"}) == read_settings({})


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    names = ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_TOPIC", "KAFKA_TOPIC_PARTITIONS", "KAFKA_SASL_USERNAME", "DATABASE_URL")
    assert read_settings(dict.fromkeys(names, "")) == read_settings({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_TOPIC_PARTITIONS", "0"),
        ("KAFKA_TOPIC_PARTITIONS", "-1"),
        ("KAFKA_TOPIC_PARTITIONS", "many"),
        ("KAFKA_AUTO_OFFSET_RESET", "newest"),
        ("KAFKA_TOPIC", "orders today"),
        ("KAFKA_TOPIC", "\udcff"),  # a byte that is not UTF-8
        ("KAFKA_TOPIC", "x" * 246),  # no room for .dlq
    ],
)
def test_a_wrong_value_is_named_with_its_variable(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{variable}={value}: "):
        read_settings({variable: value})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KAFKA_ACKS", "1"),
        ("KAFKA_ENABLE_AUTO_COMMIT", "true"),
        ("KAFKA_ENABLE_IDEMPOTENCE", "False"),
        ("KAFKA_GROUP_PROTOCOL", "consumer"),
        ("KAFKA_PARTITION_ASSIGNMENT_STRATEGY", "cooperative-sticky"),
        ("KAFKA_ISOLATION_LEVEL", "read_uncommitted"),
        ("KAFKA_TRANSACTIONAL_ID", "mine"),
    ],
)
def test_a_value_that_breaks_a_promise_is_refused(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{variable}={value}: "):
        read_settings({variable: value})


def test_a_value_that_keeps_every_promise_is_passed_on() -> None:
    kept = {"KAFKA_ACKS": "all", "KAFKA_ENABLE_AUTO_COMMIT": "False", "KAFKA_LOG_LEVEL": "7"}
    assert read_settings(kept).kafka.items() > {"acks": "all", "enable.auto.commit": "False", "log_level": "7"}.items()


@pytest.mark.parametrize(("text", "days"), [("30d", 30), ("12h", 1 / 2), ("90m", 1 / 16)])
def test_how_long_trades_are_kept(text: str, days: float) -> None:
    assert read_settings({"TRADES_RETENTION": text}).retention == timedelta(days=days)


@pytest.mark.parametrize("text", ["30", "0d", "-1d", "30 d", "1y", "999999d", "forever"])
def test_a_retention_that_cannot_be_right_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 30d"):
        read_settings({"TRADES_RETENTION": text})


def test_the_log_level_is_one_that_logging_knows() -> None:
    assert read_settings({"LOG_LEVEL": "debug"}).log_level == "DEBUG"
    assert read_settings({"LOG_LEVEL": ""}).log_level == "WARNING"
    with pytest.raises(UsageError, match="LOG_LEVEL=loud: give one of DEBUG"):
        read_settings({"LOG_LEVEL": "loud"})
