r"""How fast a full topic is drained into PostgreSQL: by consumer.py, by its peers, and by `psql \copy` as the limit.

    python -m benchmarks.sink                                       # everything, some ten minutes
    python -m benchmarks.sink --systems copy,consumer --rounds 5    # only ours, and the limit
    python -m benchmarks.sink --systems copy,consumer --preload 20000000      # also into a table that is full
    python -m benchmarks.sink --systems consumer --trades 5000000 --rounds 1  # memory when that far behind
    python -m benchmarks.sink --systems copy,consumer --partitions 3 --consumers 3

It starts a broker and a PostgreSQL of its own, fills a topic once, and lets every system drain it in turn, round
after round, each time as a new group into a new database with the same table, primary key and index. All settings
of PostgreSQL are those of local_stack.py, but for two: autovacuum is off, so that it does not hit one system and
spare the next, and the time of every commit is recorded. From those times comes what is printed:

  rate         rows per second from the first commit to the last, the rows of the first left out: start-up, joining
               the group and filling the first batch do not count. `psql \copy` is one commit, so it is timed
               whole, from the start of the process. Several consumers start storing when all have joined.
  from start   rows per second from the start of the process to the last commit, all included.

Every system has to end with exactly the rows that were produced; each is at its fastest setting that leaves a
redelivered row harmless (benchmarks/systems.py).
"""

import argparse
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg2
from confluent_kafka import ConsumerGroupState, Producer
from confluent_kafka.admin import AdminClient

from benchmarks.systems import SYSTEMS, System, Task
from pipeline.local_stack.postgres_server import maintenance_url
from pipeline.trade import Trade, encode
from tests.services import Database, Kafka, Postgres, environment_of, eventually

TOPIC = "orders"
TICKERS = ("AAPL", "MSFT", "GOOGL", "AMZN", "TSLA", "META", "NVDA")
GIVE_UP_AFTER = 60  # seconds without a new row


@dataclass(frozen=True)
class Drain:
    """What one drain came to."""

    rate: float  # rows/s from the first commit to the last
    rate_from_start: float  # rows/s from the start of the process to the last commit
    commits: int
    peak_memory: float  # MB, all its processes together


@dataclass(frozen=True)
class Stored:
    """What has to be in the table in the end, besides what was there before `since`."""

    rows: int
    since: str
    volume: int
    price: float


@dataclass(frozen=True)
class Contestant:
    """A system with the table it starts from."""

    name: str
    system: System
    template: Database
    title: str


# -- filling


def fill(broker: Kafka, count: int, rows_file: Path) -> Stored:
    """Produce trades, and write the same rows for psql. Time-ordered keys and times, as the producer makes them."""
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
        }
    )
    since, volume, cents = "", 0, 0
    with rows_file.open("w") as rows:
        for number, trade in enumerate(make_trades(count)):
            since = since or trade.timestamp
            volume += trade.volume
            cents += round(trade.price * 100)
            rows.write(
                f"{trade.trade_id}\t{trade.ticker}\t{trade.price:.2f}\t{trade.volume}\t{trade.side}\t{trade.timestamp}\n"
            )
            value = encode(trade)
            while not enqueue(producer, value, trade.ticker):
                producer.poll(0.05)
            if number % 50_000 == 0:
                show(f"filling the topic: {number:,} of {count:,}")
    producer.flush()
    return Stored(count, since, volume, cents / 100)


def enqueue(producer: Producer, value: bytes, key: str) -> bool:
    """Try to produce one message."""
    try:
        producer.produce(TOPIC, value, key)
    except BufferError:
        return False
    return True


def make_trades(count: int) -> Iterator[Trade]:
    """Make trades 10 µs apart, from now on."""
    generator = random.Random(1)
    prices = {ticker: 300.0 for ticker in TICKERS}
    started = time.time_ns() // 1000  # µs
    for number in range(count):
        moment = started + 10 * number
        digits = f"{moment // 1000:012x}7{moment % 1000:03x}{generator.getrandbits(62) | 1 << 63:016x}"
        seconds, microseconds = divmod(moment, 1_000_000)
        ticker = TICKERS[number % len(TICKERS)]
        prices[ticker] = round(max(100.0, prices[ticker] + (generator.getrandbits(3) - 3.5) / 50), 2)
        yield Trade(
            trade_id=f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            ticker=ticker,
            price=prices[ticker],
            volume=1 + generator.getrandbits(10),
            side="buy" if generator.random() < 0.5 else "sell",
            timestamp=f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{microseconds:06}Z",
        )


def preload(database: Database, count: int) -> None:
    """Put rows of yesterday into the table, their keys and times in order."""
    show(f"putting {count:,} rows into the table")
    database.query(
        """
        INSERT INTO trades
        SELECT uuidv7(interval '-1 day'), 'AAPL', 100 + n %% 10000 / 100.0, 1 + n %% 1000, 'buy',
               now() AT TIME ZONE 'UTC' - interval '1 day' + n * interval '1 microsecond'
        FROM generate_series(1, %s) AS n
        """,
        count,
    )
    with closing(database.connect()) as connection:
        connection.autocommit = True
        connection.cursor().execute("VACUUM (ANALYZE, FREEZE) trades")


# -- draining


def drain(contestant: Contestant, task: Task, stored: Stored, consumers: int) -> Drain:
    """Let one system drain the topic, and check what it stored. Raises `SystemExit` when it is not that."""
    system = contestant.system
    if system.preparation:
        task.database.query(system.preparation)
    command = system.command(task)
    wanted = min(stored.rows, system.rows or stored.rows)
    copies = consumers if contestant.name == "consumer" else 1
    started = time.time()
    with running(command, task, copies) as processes:
        if copies > 1:
            hold_until_joined(task, copies)
        peak_memory = watch(contestant.title, processes, task, stored, wanted)
    commits = task.database.query(
        "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, count(*) FROM trades "
        "WHERE timestamp >= %s GROUP BY xmin ORDER BY 1",
        stored.since,
    )
    if wanted == stored.rows:
        check(contestant.title, task.database, stored)
    (first, rows_of_first), (last, _) = commits[0], commits[-1]
    rows = sum(count for _, count in commits)
    from_start = rows / (last - started)
    rate = (rows - rows_of_first) / (last - first) if last > first else from_start
    return Drain(rate, from_start, len(commits), peak_memory)


def hold_until_joined(task: Task, members: int) -> None:
    """Keep the table locked until the whole group is there, so that nothing of its joining is measured."""
    admin = AdminClient({"bootstrap.servers": task.bootstrap_servers})
    with closing(task.database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE trades IN EXCLUSIVE MODE")

        def joined() -> bool:
            group = admin.describe_consumer_groups([task.group])[task.group].result()
            return group.state == ConsumerGroupState.STABLE and len(group.members) == members

        eventually(joined, timeout=60, every=0.5)


@contextmanager
def running(command: list[str], task: Task, copies: int) -> Iterator[list[psutil.Popen]]:
    """Run the command that many times, and end what is left of it."""
    environment = environment_of(task.bootstrap_servers, task.database.url, task.topic, task.group)
    processes: list[psutil.Popen] = []
    try:
        with (task.folder / "output.log").open("w") as output:
            for _ in range(copies):
                process = psutil.Popen(command, cwd=task.folder, env=environment, stdout=output, stderr=output)
                processes.append(process)
        yield processes
    finally:
        for process in processes:
            for each in (process, *process.children(recursive=True)) if process.is_running() else ():
                each.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=10)
        for survivor in left:
            survivor.kill()
            survivor.wait()


def watch(title: str, processes: list[psutil.Popen], task: Task, stored: Stored, wanted: int) -> float:
    """Wait until the rows are there; return the peak memory in MB.

    Counting many rows takes a core for a while, so they are counted only when the table has stopped growing.
    """
    peak, size, grew = 0.0, -1, time.monotonic()
    with closing(task.database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        began = time.monotonic()
        while True:
            ended = all(process.poll() is not None for process in processes)
            cursor.execute("SELECT pg_relation_size('trades')")
            ((size_now,),) = cursor.fetchall()
            if size_now == size or ended or wanted < stored.rows:
                cursor.execute("SELECT count(*) FROM trades WHERE timestamp >= %s", [stored.since])
                ((rows,),) = cursor.fetchall()
                if rows >= wanted:
                    return peak
                if ended or time.monotonic() - grew > GIVE_UP_AFTER:
                    tail = (task.folder / "output.log").read_text()[-2000:]
                    raise SystemExit(f"{title} stopped at {rows:,} of {wanted:,} rows:\n{tail}")
            else:
                size, grew = size_now, time.monotonic()
            peak = max(peak, sum(memory(process) for process in processes))
            show(f"{title}: {time.monotonic() - began:.0f} s, table {size / 1e6:,.0f} MB")
            time.sleep(0.2)


def memory(process: psutil.Popen) -> float:
    """Return the resident memory of a process and its children, in MB."""
    try:
        family = [process, *process.children(recursive=True)]
        return float(sum(each.memory_info().rss for each in family)) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def check(title: str, database: Database, stored: Stored) -> None:
    """Compare what is in the table with what was produced."""
    found = database.query(
        "SELECT count(*), sum(volume), sum(price::numeric(10,2))::float8, min(timestamp) FROM trades "
        "WHERE timestamp >= %s",
        stored.since,
    )
    since = datetime.fromisoformat(stored.since.removesuffix("Z"))
    if found != [(stored.rows, stored.volume, stored.price, since)]:
        raise SystemExit(f"{title} stored {found}, not {stored}")


@contextmanager
def clone(postgres: Postgres, template: Database) -> Iterator[Database]:
    """Make a database like the template, for one drain."""
    url = urlsplit(postgres.url)._replace(path=f"/drain_{uuid4().hex}").geturl()
    name, of = (urlsplit(address).path.lstrip("/") for address in (url, template.url))
    with closing(psycopg2.connect(maintenance_url(postgres.url))) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE {of} STRATEGY file_copy")  # has a checkpoint
    os.sync()  # what was copied shall not be written during the drain
    yield Database(url)
    postgres.drop_database(Database(url))


# -- the whole


def run(options: argparse.Namespace) -> None:
    """Do all rounds and print the table."""
    for name in options.systems.split(","):
        SYSTEMS[name].install()
    with Kafka() as broker, Postgres(autovacuum="off", track_commit_timestamp="on") as postgres:
        rows_file = broker.folder / "rows.txt"
        broker.create_topic(TOPIC, options.partitions)
        stored = fill(broker, options.trades, rows_file)
        entrants = contestants(options, postgres)
        results: dict[str, list[Drain]] = {entrant.title: [] for entrant in entrants}
        for number in range(options.rounds):
            for entrant in entrants:
                folder = broker.folder / f"drain-{uuid4().hex}"
                folder.mkdir()
                with clone(postgres, entrant.template) as database:
                    task = Task(broker.bootstrap_servers, TOPIC, folder.name, database, rows_file, folder)
                    result = drain(entrant, task, stored, options.consumers)
                results[entrant.title].append(result)
                say(f"round {number + 1} of {options.rounds}  {entrant.title:<42} {result.rate:>9,.0f} rows/s")
        say("")
        print_table(options, entrants, results)


def contestants(options: argparse.Namespace, postgres: Postgres) -> list[Contestant]:
    """Pair the systems with the tables they start from."""
    empty = postgres.fresh_database()
    names = options.systems.split(",")
    entrants = [Contestant(name, SYSTEMS[name], empty, SYSTEMS[name].title) for name in names]
    if options.preload:
        full = postgres.fresh_database()
        preload(full, options.preload)
        title = f", {options.preload / 1e6:g} M rows there"
        entrants += [Contestant(name, SYSTEMS[name], full, SYSTEMS[name].title + title) for name in names]
    return entrants


def print_table(options: argparse.Namespace, entrants: list[Contestant], results: dict[str, list[Drain]]) -> None:
    """Print medians, and the medians of each round's ratios."""
    beside = {(entrant.name, entrant.template): results[entrant.title] for entrant in entrants}
    consumers = f", {options.consumers} consumers" if options.consumers > 1 else ""
    say(
        f"{options.trades:,} trades, {options.partitions} partition(s){consumers}, medians of {options.rounds} rounds; "
        f"{Kafka.title}, PostgreSQL 18.6, Python {platform.python_version()}, "
        f"{os.cpu_count()} × {processor()}, {datetime.now(UTC):%Y-%m-%d}"
    )
    say("")
    say("| system | rows/s | lowest – highest | of `\\copy` | consumer.py is | from start | commits | peak memory |")
    say("|---|---:|---:|---:|---:|---:|---:|---:|")
    for entrant in entrants:
        drains = results[entrant.title]
        rates = [each.rate for each in drains]
        from_start = median(each.rate_from_start for each in drains)
        commits = median(each.commits for each in drains)
        memory_used = median(each.peak_memory for each in drains)
        say(
            f"| {entrant.title} | {median(rates):,.0f} | {min(rates):,.0f} – {max(rates):,.0f} "
            f"| {ratio(drains, beside.get(('copy', entrant.template)))} "
            f"| {ratio(beside.get(('consumer', entrant.template)), drains)} | {from_start:,.0f} | {commits:,.0f} "
            f"| {memory_used:,.0f} MB |"
        )
    for full in entrants[len(options.systems.split(",")) :]:
        share = ratio(results[full.title], results[full.system.title])
        say(f"\n{full.title}: {share} its rate into an empty table")


def ratio(these: list[Drain] | None, those: list[Drain] | None) -> str:
    """Return the median of the rounds' ratios, as a text."""
    if not these or not those:
        return ""
    return f"{median(one.rate / other.rate for one, other in zip(these, those, strict=True)):.2f} ×"


def processor() -> str:
    """Name the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(text: str) -> None:
    """Show what is going on, on the terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line that stays."""
    show("")
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    summary, _, text = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of {','.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trades", type=int, default=2_000_000, help="in the topic")
    parser.add_argument("--partitions", type=int, default=1, help="of the topic")
    parser.add_argument("--consumers", type=int, default=1, help="processes of consumer.py in its group")
    parser.add_argument("--preload", type=int, default=0, help="rows in a second table to start from")
    options = parser.parse_args()
    if unknown := set(options.systems.split(",")) - SYSTEMS.keys():
        parser.error(f"--systems {','.join(unknown)}: choose of {','.join(SYSTEMS)}")
    return options


def main() -> int:
    """Run; Ctrl-C ends every process."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)  # pipeline.command, imported above, took them
    try:
        run(arguments())
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
