"""Kafka apart from messages: wait for the brokers, create missing topics, notice a topic that was recreated."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
    TopicDescription,
)

from pipeline.settings import Settings
from pipeline.stop import stop_requested, wait_for_stop
from pipeline.user_error import UsageError, UserError

SECONDS_TO_ANSWER = 3.0
SECONDS_TO_DESCRIBE = 2.0  # a stop may wait for this
SECONDS_BETWEEN_LOOKS = 1.0  # at a topic's id

# Waiting does not fix these; the user has to.
_REFUSALS = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.POLICY_VIOLATION,
}
_INTERRUPTIONS = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT}
_CONFIG_REFUSED = {KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION}

CLIENT_DEFAULTS = {
    "log_level": 0,  # whatever matters in librdkafka's log comes through error_cb
    # Give up on a frozen or unreachable broker after this long, instead of a minute, and turn to its successor.
    "socket.timeout.ms": 3000,
    "socket.connection.setup.timeout.ms": 5000,
    "topic.metadata.refresh.interval.ms": 2000,  # a new controller or added partitions are noticed within this
    "reconnect.backoff.max.ms": 1000,  # a returning broker is noticed within this
}
# With sparse connections librdkafka connects whenever a request needs a broker, without any backoff: waiting for a dead
# controller then burns two cores, just when the live brokers need them most (rd_kafka_broker_schedule_connection).
ADMIN_DEFAULTS = {"enable.sparse.connections": False}
PRODUCER_DEFAULTS = {
    "message.timeout.ms": 0,  # never give up on a message
    "topic.metadata.propagation.max.ms": 5000,  # how long a new topic may be unknown to a broker
}
PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # messages that we purged ourselves

Client = TypeVar("Client")

log = logging.getLogger(__name__)


def client(kind: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
    """Return a Producer, Consumer or AdminClient that connects in the background. Raises `UsageError`."""
    try:
        return kind(CLIENT_DEFAULTS | (ADMIN_DEFAULTS if kind is AdminClient else {}) | config)
    except (KafkaException, ValueError, TypeError) as exception:
        raise UsageError(f"invalid KAFKA_… variable: {reason_of(exception)}") from None


def wait_for_brokers(settings: Settings, patience: float | None) -> None:
    """Wait until a broker answers or the user asks to stop; print one line if that takes time.

    `patience` is in seconds; None waits forever. Raises `UserError`.
    """
    _retry(settings, patience, lambda admin, metadata: None)


def ensure_topic(settings: Settings, name: str, patience: float | None, **config: str) -> None:
    """Create the topic with `settings.topic_partitions` partitions unless it exists.

    Waits as `wait_for_brokers` does. The replication factor is the cluster's default. If the topic exists, limits lower
    than those in `config` are raised; if Kafka refuses that, one line says so. Raises `UserError`.
    """

    def ensure(admin: AdminClient, metadata: ClusterMetadata) -> None:
        if name in metadata.topics:
            _raise_limits(admin, name, config)
            _warn_of_single_copies(metadata, name)
            return
        try:
            _create(admin, NewTopic(name, num_partitions=settings.topic_partitions, config=config))
        except KafkaException as exception:
            if exception.args[0].code() not in _CONFIG_REFUSED or not config:
                raise
            _warn_of_limits(name, config, exception)
            _create(admin, NewTopic(name, num_partitions=settings.topic_partitions))

    _retry(settings, patience, ensure)


class TopicWatch:
    """Notices by its id that a topic was deleted and recreated."""

    def __init__(self, admin: AdminClient, name: str) -> None:
        self.id = ""  # of the topic when it was first seen
        self.missing = False  # whether the last look found no topic
        self._admin = admin
        self._name = name
        self._look: Future[TopicDescription] | None = None
        self._next_look = 0.0

    def describe(self) -> TopicDescription:
        """Return the topic as it is now. Raises `KafkaException`."""
        return self._seen(self._ask())

    def made_again(self) -> bool:
        """Return whether the topic was recreated since it was first seen. Returns at once; looks once a second.

        Also updates `missing`.
        """
        if self._look is None:
            if time.monotonic() >= self._next_look:
                self._look = self._ask()
            return False
        if not self._look.done():
            return False
        look, self._look = self._look, None
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        try:
            return str(self._seen(look).topic_id) != self.id
        except KafkaException as exception:
            self.missing = exception.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            return False

    def _ask(self) -> "Future[TopicDescription]":
        answers: dict[str, Future[TopicDescription]] = self._admin.describe_topics(
            TopicCollection([self._name]), request_timeout=SECONDS_TO_DESCRIBE
        )
        return answers[self._name]

    def _seen(self, look: "Future[TopicDescription]") -> TopicDescription:
        topic = look.result()
        self.id = self.id or str(topic.topic_id)
        self.missing = False
        return topic


def reason_of(exception: Exception) -> str:
    """Return in words why a Kafka client failed."""
    reason = exception.args[0] if exception.args else exception
    return reason.str() if isinstance(reason, KafkaError) else str(reason)


def _retry(settings: Settings, patience: float | None, action: Callable[[AdminClient, ClusterMetadata], None]) -> None:
    """Run the action once the cluster answers; retry faults that may pass by themselves, while patience lasts."""
    reasons: deque[KafkaError] = deque(maxlen=100)
    admin = client(AdminClient, settings.kafka | {"error_cb": reasons.append})
    began, announced = time.monotonic(), False
    while not stop_requested():
        try:
            metadata = admin.list_topics(timeout=1)
            if metadata.brokers:
                action(admin, metadata)
                return
        except KafkaException as exception:
            admin.poll(0)  # serves error_cb
            reasons.append(exception.args[0])
        if refusal := next((reason for reason in reasons if reason.code() in _REFUSALS), None):
            raise UserError(f"Kafka at {settings.bootstrap_servers} refused: {refusal.str()}")
        if patience is not None and time.monotonic() - began > patience:
            raise UserError(
                f"Kafka at {settings.bootstrap_servers} did not answer for {patience:.0f} s{_why(reasons)}: start it "
                "(docker compose up -d, or python local_stack.py), or correct KAFKA_BOOTSTRAP_SERVERS"
            )
        if not announced:
            said = _why(reason for reason in reasons if reason.code() > 0)  # by a broker, which may not be ready yet
            print(f"⏳ Waiting for Kafka at {settings.bootstrap_servers}{said} ...", file=sys.stderr, flush=True)
            announced = True
        wait_for_stop(0.1)


def _create(admin: AdminClient, topic: NewTopic) -> None:
    try:
        admin.create_topics([topic], request_timeout=SECONDS_TO_ANSWER)[topic.topic].result()
    except KafkaException as exception:
        if exception.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another script was quicker
            raise


def _raise_limits(admin: AdminClient, name: str, config: Mapping[str, str]) -> None:
    """Raise the limits of an existing topic to those in `config`; -1 means no limit."""
    if not config:
        return
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        present = admin.describe_configs([resource], request_timeout=SECONDS_TO_ANSWER)[resource].result()
        low = {key: wanted for key, wanted in config.items() if _is_lower(int(present[key].value), int(wanted))}
        for key, wanted in low.items():
            entry = ConfigEntry(key, wanted, incremental_operation=AlterConfigOpType.SET)
            change = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
            admin.incremental_alter_configs([change], request_timeout=SECONDS_TO_ANSWER)[change].result()
    except KafkaException as exception:
        if exception.args[0].code() in _INTERRUPTIONS:
            raise
        _warn_of_limits(name, config, exception)


def _warn_of_limits(name: str, config: Mapping[str, str], exception: KafkaException) -> None:
    wanted = ", ".join(f"{key}={value}" for key, value in config.items())
    log.warning("⚠️  The topic %s should have %s, but Kafka says: %s", name, wanted, reason_of(exception))


def _is_lower(limit: int, wanted: int) -> bool:
    return limit != -1 and (wanted == -1 or limit < wanted)


def _warn_of_single_copies(metadata: ClusterMetadata, name: str) -> None:
    partitions = metadata.topics[name].partitions.values()
    if len(metadata.brokers) >= 3 and any(len(partition.replicas) == 1 for partition in partitions):
        log.warning("⚠️  The topic %s has a replication factor of 1: if its broker is lost, so are its messages.", name)


def _why(reasons: Iterable[KafkaError]) -> str:
    """Return the latest reason why no broker could be reached; _ALL_BROKERS_DOWN explains nothing."""
    told = [reason.str() for reason in reasons if reason.code() != KafkaError._ALL_BROKERS_DOWN]
    return f" ({told[-1]})" if told else ""
