"""One drain: watch a system empty a topic into a fresh database, then check its rows."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg2
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from psycopg2.extensions import make_dsn

from benchmarks.backlog import Backlog
from benchmarks.command import show
from benchmarks.systems import System, Task
from pipeline.user_error import UserError
from tests.script import environment_of
from tests.services import Database, Postgres, eventually

GIVE_UP_AFTER = 60  # seconds without a new row


@dataclass(frozen=True)
class Drain:
    """The result of one drain."""

    rate: float  # rows/s from the first commit to the last
    rate_from_start: float  # rows/s from the start of the process to the last commit
    commits: int
    peak_memory: float  # MB, total over its processes


def drain(title: str, system: System, task: Task, backlog: Backlog, copies: int) -> Drain:
    """Let one system drain the topic, and check its rows. Raises `UserError` if they are wrong or missing."""
    if system.preparation:
        task.database.query(system.preparation)
    command = system.command(task)
    wanted = min(backlog.trades, system.rows or backlog.trades)
    started = time.time()
    with _running(command, task, copies) as processes:
        if copies > 1:
            _hold_until_joined(task, copies)
        peak_memory = _watch(title, processes, task, backlog, wanted)
    commits = task.database.query(
        "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, count(*) FROM trades "
        "WHERE timestamp >= %s GROUP BY xmin ORDER BY 1",
        backlog.first,
    )
    if wanted == backlog.trades:
        _check(title, task.database, backlog)
    (first, rows_of_first), (last, _) = commits[0], commits[-1]
    rows = sum(count for _, count in commits)
    from_start = rows / (last - started)
    rate = (rows - rows_of_first) / (last - first) if last > first else from_start
    return Drain(rate, from_start, len(commits), peak_memory)


def _hold_until_joined(task: Task, members: int) -> None:
    """Keep the table locked until the whole group has joined, so that joining is not measured."""
    admin = AdminClient({"bootstrap.servers": task.bootstrap_servers})
    with closing(task.database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE trades IN EXCLUSIVE MODE")

        def joined() -> bool:
            group = admin.describe_consumer_groups([task.group])[task.group].result()
            return group.state == ConsumerGroupState.STABLE and len(group.members) == members

        eventually(joined, timeout=60, every=0.5)


@contextmanager
def _running(command: list[str], task: Task, copies: int) -> Iterator[list[psutil.Popen]]:
    """Run `copies` processes of the command, and end those that are left."""
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


def _watch(title: str, processes: list[psutil.Popen], task: Task, backlog: Backlog, wanted: int) -> float:
    """Wait until the rows are stored; return the peak memory in MB.

    Counting many rows keeps a core busy for a while, so they are counted only once the table has stopped growing.
    """
    peak, size, grew = 0.0, -1, time.monotonic()
    with closing(task.database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        began = time.monotonic()
        while True:
            ended = all(process.poll() is not None for process in processes)
            cursor.execute("SELECT pg_relation_size('trades')")
            ((size_now,),) = cursor.fetchall()
            if size_now == size or ended or wanted < backlog.trades:
                cursor.execute("SELECT count(*) FROM trades WHERE timestamp >= %s", [backlog.first])
                ((rows,),) = cursor.fetchall()
                if rows >= wanted:
                    return peak
                if ended or time.monotonic() - grew > GIVE_UP_AFTER:
                    tail = (task.folder / "output.log").read_text()[-2000:]
                    raise UserError(f"{title} stopped at {rows:,} of {wanted:,} rows:\n{tail}")
            else:
                size, grew = size_now, time.monotonic()
            peak = max(peak, sum(memory(process) for process in processes))
            show(f"{title}: {time.monotonic() - began:.0f} s, table {size / 1e6:,.0f} MB")
            time.sleep(0.2)


def memory(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children, in MB."""
    try:
        family = [process, *process.children(recursive=True)]
        return float(sum(each.memory_info().rss for each in family)) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def _check(title: str, database: Database, backlog: Backlog) -> None:
    """Compare the rows in the table with the trades produced. Raises `UserError`."""
    found = database.query(
        "SELECT count(*), min(timestamp), sum(volume), sum(price::numeric(10,2))::float8 FROM trades "
        "WHERE timestamp >= %s",
        backlog.first,
    )
    wanted: list[tuple[int, datetime, int, float]] = [(backlog.trades, backlog.first, backlog.volume, backlog.price)]
    if found != wanted:
        raise UserError(f"{title} stored {found}, not {wanted}")


@contextmanager
def clone(postgres: Postgres, template: Database) -> Iterator[Database]:
    """Create a copy of the template database for one drain."""
    url = urlsplit(postgres.url)._replace(path=f"/drain_{uuid4().hex}").geturl()
    name, of = (urlsplit(address).path.lstrip("/") for address in (url, template.url))
    with closing(psycopg2.connect(make_dsn(postgres.url, dbname="postgres"))) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE {of} STRATEGY file_copy")  # does a checkpoint
    os.sync()  # so that the copied files are not written to disk during the drain
    yield Database(url)
    postgres.drop_database(Database(url))


def save_rows(database: Database, path: Path) -> None:
    """Write the table's rows to a file, in the order in which they were stored."""
    with closing(database.connect()) as connection, connection.cursor() as cursor, path.open("wb") as file:
        cursor.execute("SET synchronize_seqscans = off")
        cursor.copy_expert("COPY trades TO STDOUT", file)


def preload(database: Database, count: int) -> None:
    """Fill the table with rows from yesterday, keys and times in ascending order."""
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
