"""Waiting for the broker and creating topics, against a real broker."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipeline import kafka
from pipeline.kafka import ensure_topic, wait_for_brokers
from pipeline.settings import Settings, read_settings
from pipeline.user_error import UsageError, UserError
from tests.services import Kafka, KafkaClient, eventually, free_port


def settings_for(bootstrap_servers: str, **variables: str) -> Settings:
    return read_settings({"KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers} | variables)


def test_a_broker_that_is_there_is_not_waited_for(broker: KafkaClient, capsys: pytest.CaptureFixture[str]) -> None:
    wait_for_brokers(settings_for(broker.bootstrap_servers), patience=10)
    assert capsys.readouterr().err == ""


def test_a_broker_that_is_not_there_yet_is_waited_for_with_one_line(
    own_broker: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    own_broker.stop()
    waiting = threading.Thread(
        target=wait_for_brokers, args=(settings_for(own_broker.bootstrap_servers), None), daemon=True
    )
    waiting.start()
    printed = eventually(lambda: capsys.readouterr().err)
    assert waiting.is_alive()
    own_broker.start()
    waiting.join(30)
    assert not waiting.is_alive()
    assert printed + capsys.readouterr().err == f"⏳ Waiting for Kafka at {own_broker.bootstrap_servers} ...\n"


def test_patience_ends_with_what_to_do() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=r"local_stack\.py.*KAFKA_BOOTSTRAP_SERVERS") as raised:
        wait_for_brokers(settings_for(nobody), patience=0.5)
    assert nobody in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("variables", [{"KAFKA_NO_SUCH_PROPERTY": "1"}, {"KAFKA_SECURITY_PROTOCOL": "telepathy"}])
def test_a_property_that_librdkafka_does_not_know_is_the_users_to_correct(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="KAFKA_"):
        wait_for_brokers(settings_for("127.0.0.1:9", **variables), patience=10)


def test_a_missing_topic_is_created_once(broker: KafkaClient, topic: str) -> None:
    ensure_topic(settings_for(broker.bootstrap_servers, KAFKA_TOPIC_PARTITIONS="3"), topic, 10)
    eventually(lambda: broker.partitions(topic) == 3)
    assert retention(broker, topic) == -1, "a trade may have to wait for its consumer for longer than a week"
    ensure_topic(settings_for(broker.bootstrap_servers, KAFKA_TOPIC_PARTITIONS="5"), topic, 10)
    assert broker.partitions(topic) == 3


def test_two_scripts_that_create_the_topic_at_once_both_go_on(broker: KafkaClient, topic: str) -> None:
    failures: list[UserError] = []

    def create() -> None:
        try:
            ensure_topic(settings_for(broker.bootstrap_servers), topic, 10)
        except UserError as error:
            failures.append(error)

    creators = [threading.Thread(target=create) for _ in range(4)]
    for creator in creators:
        creator.start()
    for creator in creators:
        creator.join(30)
    assert not failures
    assert topic in broker.topics()


def die_in(step: str, broker: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the broker freeze during `step`, so that it has the request but does not answer, and then die."""
    really, died = getattr(kafka, step), threading.Event()

    def dying(*arguments: object) -> None:
        if not died.is_set():
            died.set()
            assert broker.process
            broker.process.send_signal(signal.SIGSTOP)
            threading.Timer(0.5, broker.kill).start()
        really(*arguments)

    monkeypatch.setattr(kafka, step, dying)


def test_a_broker_that_dies_as_it_creates_or_changes_the_topic_is_waited_for(
    own_broker: Kafka, topic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(own_broker.bootstrap_servers)
    with ThreadPoolExecutor() as thread:
        for step, patience, limit in (("_create", 60, 10**9), ("_raise_limits", None, 2 * 10**9)):
            die_in(step, own_broker, monkeypatch)
            ensured = thread.submit(ensure_topic, settings, topic, patience, **{"retention.ms": str(limit)})
            eventually(lambda: not own_broker.running)
            assert not ensured.done()
            own_broker.start()
            ensured.result(60)
            assert retention(own_broker, topic) == limit
    assert not caplog.messages


def retention(broker: KafkaClient, topic: str) -> int:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})  # keep a reference until it is done
    return int(admin.describe_configs([resource])[resource].result()["retention.ms"].value)


def test_a_name_that_kafka_refuses_is_told(broker: KafkaClient) -> None:
    with pytest.raises(UserError, match="not a topic"):
        ensure_topic(settings_for(broker.bootstrap_servers), "not a topic", 10)
