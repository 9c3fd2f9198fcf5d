"""Kafka before the first message: wait for the brokers, create the topics that are missing."""

import sys
import time

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, NewTopic

from pipeline.settings import Settings
from pipeline.command import stop_requested

# Waiting does not mend these: the user has to.
_REFUSALS = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}


class BrokerError(Exception):
    """Kafka cannot be used as asked; the text is one line that says what to do."""


def wait_for_broker(settings: Settings, patience: float | None) -> None:
    """Return as soon as a broker answers, or the user asked to stop; say so once if it has to be waited for.

    `patience` is in seconds; None waits for as long as it takes. Raises `BrokerError`.
    """
    reasons: list[KafkaError] = []
    admin = _admin(settings, reasons)
    started = time.monotonic()
    announced = False
    while not stop_requested() and not _answers(admin):
        if refusal := next((reason for reason in reasons if reason.code() in _REFUSALS), None):
            raise BrokerError(f"Kafka at {settings.bootstrap_servers} refused the connection: {refusal.str()}")
        if patience is not None and time.monotonic() - started > patience:
            raise BrokerError(
                f"Kafka at {settings.bootstrap_servers} did not answer for {patience:.0f} s{_why(reasons)}: start it "
                "(docker compose up -d, or python local_stack.py), or correct KAFKA_BOOTSTRAP_SERVERS"
            )
        if not announced:
            print(f"⏳ Waiting for Kafka at {settings.bootstrap_servers} ...", file=sys.stderr, flush=True)
            announced = True


def ensure_topic(settings: Settings, name: str, **topic_config: str) -> None:
    """Create the topic with `settings.topic_partitions` partitions unless it exists. Raises `BrokerError`."""
    admin = _admin(settings, [])
    try:
        if name in _metadata(admin).topics:
            return
        new_topic = NewTopic(name, num_partitions=settings.topic_partitions, config=topic_config)
        admin.create_topics([new_topic])[name].result()
    except KafkaException as exception:
        error = exception.args[0]
        if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another script was quicker
            raise BrokerError(f"Kafka did not create the topic {name}: {error.str()}") from None


def _admin(settings: Settings, reasons: list[KafkaError]) -> AdminClient:
    """Connect in the background; librdkafka reports why it cannot through `reasons`, not by raising."""
    try:
        return AdminClient(settings.kafka | {"error_cb": reasons.append, "log_level": 0})
    except (KafkaException, ValueError, TypeError) as exception:
        raise BrokerError(f"a KAFKA_… variable is not right: {_text(exception)}") from None


def _why(reasons: list[KafkaError]) -> str:
    """Return what the brokers' connections failed of, the newest first; _ALL_BROKERS_DOWN tells nothing."""
    told = [reason.str() for reason in reasons if reason.code() != KafkaError._ALL_BROKERS_DOWN]
    return f" ({told[-1]})" if told else ""


def _answers(admin: AdminClient) -> bool:
    try:
        return bool(_metadata(admin).brokers)
    except KafkaException:
        admin.poll(0)  # serves error_cb
        return False


def _metadata(admin: AdminClient) -> ClusterMetadata:
    return admin.list_topics(timeout=1)


def _text(exception: Exception) -> str:
    reason = exception.args[0] if exception.args else exception
    return reason.str() if isinstance(reason, KafkaError) else str(reason)
