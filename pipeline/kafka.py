"""Kafka beside the messages: wait for the brokers, create topics that are missing, notice one that is made again."""

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

SECONDS_TO_ANSWER = 5.0
SECONDS_TO_DESCRIBE = 2.0  # a stop waits for it
SECONDS_BETWEEN_LOOKS = 1.0  # at a topic's id

# Waiting does not mend these: the user has to.
_REFUSALS = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REPLICATION_FACTOR,
}
_INTERRUPTIONS = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT}
_CONFIG_REFUSED = {KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION}

CLIENT_DEFAULTS = {
    "log_level": 0,  # what matters of librdkafka's log comes through error_cb
    # A broker that is frozen or cut off is given up after these milliseconds, instead of a minute, for its successor.
    "socket.timeout.ms": 3000,
    "socket.connection.setup.timeout.ms": 5000,
    "topic.metadata.refresh.interval.ms": 2000,  # until a new controller or added partitions are noticed
    "reconnect.backoff.max.ms": 1000,  # a broker that returns is noticed after this
}
# With sparse connections librdkafka connects whenever a request wants a broker, without any backoff: one that waits for
# a dead controller takes two cores, when the living brokers need them most (rd_kafka_broker_schedule_connection).
ADMIN_DEFAULTS = {"enable.sparse.connections": False}
PRODUCER_DEFAULTS = {
    "message.timeout.ms": 0,  # a message is never given up
    "topic.metadata.propagation.max.ms": 5000,  # for which a new topic may be unknown to a broker
}
PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # messages, by ourselves

Client = TypeVar("Client")

log = logging.getLogger(__name__)


def client(kind: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
    """Return a Producer, Consumer or AdminClient, connecting in the background. Raises `UsageError`."""
    try:
        return kind(CLIENT_DEFAULTS | (ADMIN_DEFAULTS if kind is AdminClient else {}) | config)
    except (KafkaException, ValueError, TypeError) as exception:
        raise UsageError(f"a KAFKA_… variable is not right: {reason_of(exception)}") from None


def wait_for_brokers(settings: Settings, patience: float | None) -> None:
    """Return as soon as a broker answers, or the user asks to stop; say so once if it has to be waited for.

    `patience` is in seconds; None waits until one answers. Raises `UserError`.
    """
    _persist(settings, patience, lambda admin: None)


def ensure_topic(settings: Settings, name: str, patience: float | None, **config: str) -> None:
    """Create the topic with `settings.topic_partitions` partitions unless it exists.

    Waits as `wait_for_brokers` does. The replication factor is the cluster's default. One that exists is brought to
    `config` where its limits are lower; if Kafka refuses that, one line says so. Raises `UserError`.
    """

    def ensure(admin: AdminClient) -> None:
        if name in _metadata(admin).topics:
            _raise_limits(admin, name, config)
            _warn_of_single_copies(admin, name)
            return
        try:
            _create(admin, NewTopic(name, num_partitions=settings.topic_partitions, config=config))
        except KafkaException as exception:
            if exception.args[0].code() not in _CONFIG_REFUSED or not config:
                raise
            _warn_of_limits(name, config, exception)
            _create(admin, NewTopic(name, num_partitions=settings.topic_partitions))

    _persist(settings, patience, ensure)


class TopicWatch:
    """Notices that a topic was deleted and made again: then it has another id."""

    def __init__(self, admin: AdminClient, name: str) -> None:
        self.id = ""  # of the topic as it was first seen
        self.missing = False  # when it was last looked at
        self._admin = admin
        self._name = name
        self._look: Future[TopicDescription] | None = None
        self._next_look = 0.0

    def describe(self) -> TopicDescription:
        """Return the topic as it is now. Raises `KafkaException`."""
        return self._seen(self._ask())

    def made_again(self) -> bool:
        """Tell whether the topic is another one than was first seen. Returns at once, and looks once a second.

        Sets `missing`, too.
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
    """Return in words what a Kafka client failed of."""
    reason = exception.args[0] if exception.args else exception
    return reason.str() if isinstance(reason, KafkaError) else str(reason)


def _persist(settings: Settings, patience: float | None, action: Callable[[AdminClient], None]) -> None:
    """Do something with an answering cluster; whatever passes by itself is waited for, within the patience."""
    reasons: deque[KafkaError] = deque(maxlen=100)
    admin = client(AdminClient, settings.kafka | {"error_cb": reasons.append})
    began, announced = time.monotonic(), False
    while not stop_requested():
        try:
            if _metadata(admin).brokers:
                action(admin)
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
            print(f"⏳ Waiting for Kafka at {settings.bootstrap_servers} ...", file=sys.stderr, flush=True)
            announced = True
        wait_for_stop(0.1)


def _create(admin: AdminClient, topic: NewTopic) -> None:
    try:
        admin.create_topics([topic], request_timeout=SECONDS_TO_ANSWER)[topic.topic].result()
    except KafkaException as exception:
        if exception.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another script was quicker
            raise


def _raise_limits(admin: AdminClient, name: str, config: Mapping[str, str]) -> None:
    """Give an existing topic the limits it needs; -1 is none at all."""
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


def _warn_of_single_copies(admin: AdminClient, name: str) -> None:
    metadata = _metadata(admin)
    topic = metadata.topics.get(name)
    if len(metadata.brokers) >= 3 and topic and any(len(part.replicas) == 1 for part in topic.partitions.values()):
        log.warning("⚠️  The topic %s has one copy only: whatever its broker holds is lost with it.", name)


def _why(reasons: Iterable[KafkaError]) -> str:
    """Return why the brokers could not be reached, the newest reason; _ALL_BROKERS_DOWN tells nothing."""
    told = [reason.str() for reason in reasons if reason.code() != KafkaError._ALL_BROKERS_DOWN]
    return f" ({told[-1]})" if told else ""


def _metadata(admin: AdminClient) -> ClusterMetadata:
    return admin.list_topics(timeout=1)
