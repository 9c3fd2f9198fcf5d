"""Settings from environment variables, the same for every script; by default, everything is on localhost."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pipeline.user_error import UsageError

DEFAULT_DATABASE_URL = "postgresql://kafka_user:kafka_password@localhost:5432/kafka_db"

# Our own KAFKA_… variables; any other one is a librdkafka property ...
OWN_VARIABLES = {"KAFKA_TOPIC", "KAFKA_TOPIC_PARTITIONS", "KAFKA_GROUP_ID", "KAFKA_AUTO_OFFSET_RESET"}
# ... unless it belongs to Kafka's own scripts, or to a Kubernetes service with such a name.
FOREIGN_VARIABLES = re.compile(r"KAFKA_(\w+_)?(HOME|OPTS|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")

# With any other value, trades could be lost or doubled, and the README's promises would be void.
PROMISED = {
    "acks": ("all", "-1"),
    "delivery.report.only.error": ("false",),
    "delivery.timeout.ms": ("0",),
    "enable.auto.commit": ("false",),
    "enable.idempotence": ("true",),
    "enable.partition.eof": ("false",),
    "group.protocol": ("classic",),
    "isolation.level": ("read_committed",),
    "message.send.max.retries": (),
    "message.timeout.ms": ("0",),
    "partition.assignment.strategy": ("range", "roundrobin", "range,roundrobin", "roundrobin,range"),
    "request.required.acks": ("all", "-1"),
    "retries": (),
    "transactional.id": (),
}

# The pattern of a valid value, and what to give instead of an invalid one.
RULES = {
    "KAFKA_TOPIC": (r"[\w.-]{1,245}", "at most 245 letters, digits, dots, dashes or underscores"),
    "KAFKA_TOPIC_PARTITIONS": ("0*[1-9][0-9]{0,5}", "a whole number from 1 to 999999"),
    "KAFKA_AUTO_OFFSET_RESET": ("latest|earliest", "latest or earliest"),
    "TRADES_RETENTION": ("[1-9][0-9]{0,4}[dhm]", "days, hours or minutes, such as 30d, 12h or 90m"),
    "LOG_LEVEL": ("(?i:debug|info|warning|error|critical)", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
}
UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}


@dataclass(frozen=True)
class Settings:
    """All settings of a script, as read when it starts."""

    topic: str
    topic_partitions: int
    group_id: str
    auto_offset_reset: str
    database_url: str
    retention: timedelta | None  # how long trades are kept; None: forever
    log_level: str  # problems of this level and above go to stderr
    kafka: dict[str, str]  # librdkafka's own keys: bootstrap.servers, security.protocol, …

    @property
    def dead_letter_topic(self) -> str:
        """The topic that takes invalid messages."""
        return f"{self.topic}.dlq"

    @property
    def bootstrap_servers(self) -> str:
        """The brokers' addresses, in the form in which the user knows them."""
        return self.kafka["bootstrap.servers"]


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from environment variables. Raises `UsageError` for an invalid one."""
    for variable, (pattern, advice) in RULES.items():
        if (text := environment.get(variable)) and not re.fullmatch(pattern, text, re.ASCII):
            raise UsageError(f"{variable}={text}: give {advice}")
    retention = environment.get("TRADES_RETENTION")
    return Settings(
        topic=environment.get("KAFKA_TOPIC") or "orders",
        topic_partitions=int(environment.get("KAFKA_TOPIC_PARTITIONS") or 1),
        group_id=environment.get("KAFKA_GROUP_ID") or "trades-consumer-group-v2",
        auto_offset_reset=environment.get("KAFKA_AUTO_OFFSET_RESET") or "latest",
        database_url=environment.get("DATABASE_URL") or DEFAULT_DATABASE_URL,
        retention=int(retention[:-1]) * UNITS[retention[-1]] if retention else None,
        log_level=(environment.get("LOG_LEVEL") or "WARNING").upper(),
        kafka={"bootstrap.servers": "localhost:9092"} | _librdkafka_properties(environment),
    )


def _librdkafka_properties(environment: Mapping[str, str]) -> dict[str, str]:
    """Return librdkafka's properties: KAFKA_SSL_CA_LOCATION=/ca.pem becomes {"ssl.ca.location": "/ca.pem"}."""
    properties = {}
    for variable, value in environment.items():
        if variable in OWN_VARIABLES or FOREIGN_VARIABLES.fullmatch(variable):
            continue
        if variable.startswith("KAFKA_") and value:
            name = variable.removeprefix("KAFKA_").lower().replace("_", ".").replace("log.level", "log_level")
            if value.lower() not in PROMISED.get(name, (value.lower(),)):
                allowed = " or ".join(PROMISED[name])
                advice = f"give {allowed}, or unset it" if allowed else "unset it"
                raise UsageError(f"{variable}={value}: trades could be lost or doubled; {advice}")
            properties[name] = value
    return properties
