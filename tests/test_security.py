"""TLS and SASL through KAFKA_* variables alone, against a real Apache Kafka that asks for them."""

from collections.abc import Iterator

import pytest

from tests.conftest import RunScript
from tests.services import PASSWORD, USER, ApacheKafka, Database, Kafka, Secured, eventually


@pytest.fixture(scope="module")
def secured(kafka_class: type[Kafka]) -> Iterator[ApacheKafka]:
    """A broker that listens with TLS, and with TLS and SASL, beside its plain port."""
    if kafka_class is not ApacheKafka:
        pytest.skip("the embedded broker has neither TLS nor SASL: run with --kafka apache")
    with ApacheKafka(security=True) as broker:
        yield broker


def tls(listener: Secured) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": listener.bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": "SSL",
        "KAFKA_SSL_CA_LOCATION": str(listener.ca_file),
    }


def sasl(listener: Secured, mechanism: str, password: str = PASSWORD) -> dict[str, str]:
    return tls(listener) | {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": mechanism,
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": password,
    }


@pytest.mark.parametrize("way", ["TLS", "PLAIN", "SCRAM-SHA-512"])
def test_trades_travel_over_a_secured_listener(
    secured: ApacheKafka, database: Database, run_script: RunScript, way: str
) -> None:
    assert secured.tls
    assert secured.sasl
    variables = tls(secured.tls) if way == "TLS" else sasl(secured.sasl, way)
    producer = run_script("producer.py", "--count", "50", "--rate", "max", **variables)
    assert producer.wait() == 0, producer.stderr
    consumer = run_script("consumer.py", "--from-beginning", **variables)
    eventually(lambda: database.count() == 50)
    assert consumer.stop() == 0
    assert "Traceback" not in producer.stderr + consumer.stderr


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_a_wrong_password_is_one_line_and_not_waited_for(
    secured: ApacheKafka, run_script: RunScript, script: str
) -> None:
    assert secured.sasl
    refused = run_script(script, **sasl(secured.sasl, "SCRAM-SHA-512", password="guessed"))
    assert refused.wait() == 1
    assert_one_line(refused.stderr, "uthentication failed")


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_a_certificate_that_nobody_vouches_for_is_one_line(
    secured: ApacheKafka, run_script: RunScript, script: str
) -> None:
    assert secured.tls
    variables = tls(secured.tls)
    del variables["KAFKA_SSL_CA_LOCATION"]
    refused = run_script(script, **variables)
    assert refused.wait() == 1
    assert_one_line(refused.stderr, "certificate verify failed")


def assert_one_line(text: str, reason: str) -> None:
    lines = [line for line in text.splitlines() if "⏳" not in line]
    assert len(lines) == 1, text
    assert reason in lines[0]
    assert "Traceback" not in text
