"""Apache Kafka and PostgreSQL without Docker and without Java: both come with the Python packages.

    python local_stack.py                                  both, until Ctrl-C
    python local_stack.py kafka-topics --list              Kafka's own tools: kafka-topics, kafka-console-consumer,
                                                           kafka-console-producer, kafka-consumer-groups, kafka-configs

They listen on the addresses that the three scripts look at (KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL, by default
localhost:9092 and localhost:5432). Topics, offsets and rows are kept in the folder .local/; Kafka's jars are downloaded
into it at the first start.
"""

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from pipeline.command import parser, run, stop_requested, wait_for_stop
from pipeline.local_stack.kafka_server import TOOLS, KafkaServer, tool
from pipeline.local_stack.postgres_server import PostgresServer
from pipeline.local_stack.server import Address, Server
from pipeline.settings import Settings, read_settings
from pipeline.user_error import UsageError, UserError

FOLDER = Path(__file__).parent / ".local"


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Run both servers until the user stops them. Raises `UserError`."""
    kafka = KafkaServer(FOLDER, kafka_address(settings))
    postgres = PostgresServer(FOLDER, settings.database_url)
    with only_one(FOLDER):
        try:
            start([kafka, postgres])
            if not stop_requested():
                print(f"🟢 Kafka on {kafka.address}, PostgreSQL on {postgres.address}, kept in {FOLDER}", flush=True)
                print("   Ctrl-C ends both.", flush=True)
                Thread(target=kafka.archive_classes, daemon=True).start()
            watch([kafka, postgres])
            postgres.let_clients_finish()
        finally:
            kafka.stop()
            postgres.stop()
    print("Local stack stopped.")


def kafka_address(settings: Settings) -> Address:
    """Read where the broker belongs out of KAFKA_BOOTSTRAP_SERVERS (its first address). Raises `UsageError`."""
    host, _, port = settings.bootstrap_servers.partition(",")[0].strip().rpartition(":")
    if not port.isdecimal():
        raise UsageError(f"KAFKA_BOOTSTRAP_SERVERS={settings.bootstrap_servers}: give host:port")
    return Address(host, int(port), "KAFKA_BOOTSTRAP_SERVERS")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the lock goes with the process, however it ends. Raises `UserError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("local_stack.py is already running from this folder") from None
        yield


def start(servers: list[Server]) -> None:
    """Start servers at the same time. Raises `UserError`."""
    if not all(server.data.exists() for server in servers):
        print("Preparing Kafka and PostgreSQL for their first start ...", flush=True)
    with ThreadPoolExecutor() as executor:
        for started in [executor.submit(server.start) for server in servers]:
            started.result()


def watch(servers: list[Server]) -> None:
    """Wait until the user asks to stop. Raises `UserError` when a server ends by itself."""
    while not wait_for_stop(0.2):
        for server in servers:
            server.trim_log()
            if not server.running:
                raise server.failure()


def run_tool(name: str, words: list[str]) -> None:
    """Become one of Kafka's command-line tools."""
    command = tool(name, words, read_settings().bootstrap_servers)
    os.execv(command[0], command)


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in TOOLS:
        run_tool(sys.argv[1], sys.argv[2:])
    sys.exit(run(parser(__doc__), main))
