"""Apache Kafka and PostgreSQL without Docker or an installed Java: Python packages bring PostgreSQL and a Java runtime.

    python local_stack.py                                  both, until Ctrl-C
    python local_stack.py --cluster                        three brokers, a primary and a standby: kill any of them
    python local_stack.py kafka-topics --list              Kafka's own tools: kafka-topics, kafka-console-consumer,
                                                           kafka-console-producer, kafka-consumer-groups, kafka-configs

They listen where the three scripts connect (KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL, by default localhost:9092 and
localhost:5432). Topics, offsets and rows are kept in the folder .local/; Kafka's jars are downloaded into it on the
first start.
"""

from pipeline.stop import stop_requested, take_signals, wait_for_stop

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

from pipeline.command import parser, run
from pipeline.kafka import ensure_topic
from pipeline.local_stack.cluster import Operator
from pipeline.local_stack.kafka_server import TOOLS, KafkaServer, java
from pipeline.local_stack.postgres_server import PostgresServer, create_database
from pipeline.local_stack.server import Server, all_at_once, locked, read_addresses
from pipeline.settings import Settings

FOLDER = Path(__file__).parent / ".local"


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run the servers until the user stops them. Raises `UserError`."""
    with locked(FOLDER, "local_stack.py is already running from this folder"):
        if options.cluster:
            run_cluster(settings)
        else:
            run_two(settings)
    print("Local stack stopped.")


def run_two(settings: Settings) -> None:
    """Run a broker and a database; if either ends by itself, stop the other. Raises `UserError`."""
    kafka = KafkaServer(FOLDER, read_addresses(settings.bootstrap_servers)[0])
    postgres = PostgresServer(FOLDER, settings.database_url)
    try:
        for server in (kafka, postgres):
            server.check()  # before either spends seconds on a start that will be in vain
        if not (kafka.data.exists() and postgres.data.exists()):
            print("Preparing Kafka and PostgreSQL for their first start ...", flush=True)
        all_at_once(kafka.start, postgres.start)
        if not stop_requested():
            create_database(postgres.url)
            print(f"🟢 Kafka on {kafka.address}, PostgreSQL on {postgres.address}, kept in {FOLDER}", flush=True)
            print("   Ctrl-C stops both.", flush=True)
            Thread(target=kafka.archive_classes, daemon=True).start()
        watch([kafka, postgres])
        postgres.let_clients_finish()
    finally:
        kafka.stop()
        postgres.stop()


def run_cluster(settings: Settings) -> None:
    """Run five servers and bring back any that dies. Raises `UserError`."""
    folder = FOLDER / "cluster"
    operator = Operator(folder, settings.bootstrap_servers, settings.database_url)
    brokers, postgres = operator.bootstrap_servers, operator.postgres
    try:
        print("Starting three brokers, a primary and a standby ...", flush=True)
        operator.start()
        if not stop_requested():
            ensure_topic(replace(settings, kafka={"bootstrap.servers": brokers}), settings.topic, None)
            print(f"🟢 Cluster, kept in {folder}. The scripts find it with\n", flush=True)
            print(f"   export KAFKA_BOOTSTRAP_SERVERS={brokers}\n   export DATABASE_URL='{postgres.url}'\n", flush=True)
            print("   Kill any of these: it comes back, and no trade is lost. Ctrl-C stops all.\n", flush=True)
            for line in operator.targets(settings.topic):
                print(f"   {line}", flush=True)
        while not wait_for_stop(0.2):
            operator.mend()
        postgres.primary.let_clients_finish()
    finally:
        operator.stop()


def watch(servers: list[Server]) -> None:
    """Wait until the user asks to stop. Raises `UserError` if a server ends by itself."""
    while not wait_for_stop(0.2):
        for server in servers:
            server.trim_log()
            if not server.running:
                raise server.failure()


def run_tool(_: argparse.Namespace, settings: Settings) -> None:
    """Become one of Kafka's command-line tools, connected to our broker unless another is given. Raises `UserError`."""
    tool, *words = sys.argv[1:]
    if not any(word.startswith("--bootstrap-") for word in words):
        words = ["--bootstrap-server", settings.bootstrap_servers, *words]
    command = java(TOOLS[tool], *words)
    if not stop_requested():
        os.execv(command[0], command)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in TOOLS:
        sys.exit(run(parser(__doc__), run_tool, []))
    options = parser(__doc__)
    options.add_argument("--cluster", action="store_true")
    sys.exit(run(options, main))
