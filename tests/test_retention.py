"""Retention on a real database: expired trades go, in small transactions, without disturbing anything else."""

import re
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from threading import Event

import pytest
from psycopg2 import OperationalError
from psycopg2.extensions import connection as Connection

from pipeline.consumer.table import TradesTable
from pipeline.maintenance import retention
from pipeline.maintenance.retention import BATCH_SIZE, DELETE_OLDEST, prune
from pipeline.settings import read_settings
from pipeline.trade import copy_rows
from tests.conftest import RunScript
from tests.messages import trade
from tests.script import ROOT
from tests.services import Database, Postgres, eventually

HOUR = timedelta(hours=1)


@pytest.fixture
def table(database: Database) -> Iterator[TradesTable]:
    trades = TradesTable(database.url)
    yield trades
    trades.disconnect()


def fill(database: Database, count: int, age: timedelta, prefix: str = "") -> None:
    """Add trades 1 ms apart, the oldest first, with ids that begin with `prefix`."""
    moment = datetime.now(UTC).replace(tzinfo=None) - age
    database.query(
        "INSERT INTO trades SELECT %s || substr(gen_random_uuid()::text, %s), 'AAPL', 1, 1, 'buy', "
        "%s + n * interval '1 ms' FROM generate_series(1, %s) AS n",
        prefix,
        len(prefix) + 1,
        moment,
        count,
    )


def deleted(database: Database, age: timedelta) -> list[int]:
    with closing(database.connect()) as connection:
        return list(prune(connection, age))


def test_what_is_older_goes_in_small_transactions_and_the_rest_stays(database: Database) -> None:
    fill(database, 2500, age=3 * HOUR)
    fill(database, 100, age=HOUR)
    assert deleted(database, 2 * HOUR) == [BATCH_SIZE, BATCH_SIZE, 500]
    assert deleted(database, 2 * HOUR) == []
    assert database.count() == 100


def test_trades_of_one_moment_are_not_one_transaction(database: Database) -> None:
    fill(database, 1500, age=3 * HOUR)
    database.query("UPDATE trades SET timestamp = '2026-01-31 08:30'")
    assert deleted(database, HOUR) == [BATCH_SIZE, 500]


def partitioned_as_documented(database: Database) -> None:
    """Replace the table with the partitioned one from docs/operations.md."""
    [statements] = re.findall(r"^```sql\n(.*?)^```", (ROOT / "docs" / "operations.md").read_text(), re.M | re.S)
    database.query("DROP TABLE trades")
    database.query(statements)


def test_on_a_partitioned_table_what_is_not_expired_stays(database: Database) -> None:
    partitioned_as_documented(database)
    for age, count in ((3 * HOUR, 1500), (HOUR, 1500)):
        fill(database, count // 2, age)
        fill(database, count // 2, age, prefix="01a19467-e801")
    assert sum(deleted(database, 2 * HOUR)) == 1500
    assert database.query(
        "SELECT count(*), min(timestamp) > now() AT TIME ZONE 'UTC' - interval '2 h' FROM trades"
    ) == [(1500, True)]


def test_a_partitioned_table_takes_every_trade_once(database: Database, table: TradesTable) -> None:
    partitioned_as_documented(database)
    lines = copy_rows([trade(trade_id="01a19467-e801-7000-8000-000000000001"), trade()])
    assert table.store(lines).inserted == 2
    assert table.store(lines).repeated == 2
    assert database.query("SELECT tableoid::regclass::text FROM trades ORDER BY 1") == [
        ("trades_2026_11",),
        ("trades_other",),
    ]


def test_trades_are_as_old_as_utc_says(database: Database) -> None:
    database.query("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")  # nine hours ahead
    try:
        fill(database, 10, age=2 * HOUR)
        fill(database, 10, age=4 * HOUR)
        assert deleted(database, 3 * HOUR) == [10]
    finally:
        database.query("ALTER ROLE CURRENT_USER RESET timezone")


def test_the_index_is_what_finds_them(database: Database) -> None:
    fill(database, 20_000, age=HOUR)
    database.query("ANALYZE trades")
    plan = "\n".join(line for (line,) in database.query(f"EXPLAIN {DELETE_OLDEST}", "-infinity", HOUR))
    assert "Index Scan using trades_timestamp_idx" in plan
    assert "trades_pkey" in plan
    assert "Seq Scan" not in plan


def held(connection: Connection) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT mode FROM pg_locks WHERE relation = 'trades'::regclass AND pid = pg_backend_pid()")
        return [mode for (mode,) in cursor]


def test_inserts_and_the_page_go_on_beside_an_open_deletion(database: Database) -> None:
    fill(database, 2000, age=3 * HOUR)
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(DELETE_OLDEST, ["-infinity", HOUR])
        assert set(held(connection)) == {"AccessShareLock", "RowExclusiveLock"}
        assert TradesTable(database.url).store(copy_rows([trade() for _ in range(1000)])).inserted == 1000
        assert len(database.query("SELECT ticker FROM trades ORDER BY timestamp DESC LIMIT 200")) == 200


def test_one_pass_for_cron(database: Database, run_script: RunScript) -> None:
    fill(database, 1200, age=3 * HOUR)
    fill(database, 5, age=HOUR)
    script = run_script("-m", "pipeline.maintenance.retention", "--once", TRADES_RETENTION="2h")
    assert script.wait() == 0
    assert script.stdout == "Retention stopped: 1,200 trades deleted."
    assert database.count() == 5


def test_trades_deleted_before_an_outage_count(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Iterator[int]:
        yield 1000
        monkeypatch.setattr(retention, "prune", lambda *_: iter([200]))
        raise OperationalError

    monkeypatch.setattr(retention, "prune", interrupted)
    monkeypatch.setattr(retention, "SECONDS_BETWEEN_PASSES", 0)
    monkeypatch.setattr(retention, "stop_requested", lambda: "200" in capsys.readouterr().out)
    retention.main(Namespace(once=False), read_settings({"DATABASE_URL": database.url, "TRADES_RETENTION": "2h"}))
    assert capsys.readouterr().out == "Retention stopped: 1,200 trades deleted.\n"


def test_a_date_that_python_cannot_represent_is_old_enough(database: Database, table: TradesTable) -> None:
    table.store(copy_rows([trade()]))
    database.query("UPDATE trades SET timestamp = '0044-03-15 12:00 BC'")
    assert deleted(database, HOUR) == [1]


def test_it_goes_on_until_it_is_stopped(database: Database, run_script: RunScript) -> None:
    fill(database, 1200, age=3 * HOUR)
    script = run_script("-m", "pipeline.maintenance.retention", TRADES_RETENTION="120m")
    assert script.wait_for_line("🧹") == "🧹 1,200 trades older than 2:00:00 deleted"
    assert script.stop() == 0
    assert script.stdout.splitlines()[-1] == "Retention stopped: 1,200 trades deleted."
    assert not script.stderr


def test_one_pass_follows_another(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Event()
    monkeypatch.setattr(retention, "SECONDS_BETWEEN_PASSES", 0.05)
    monkeypatch.setattr(retention, "stop_requested", stopped.is_set)
    settings = read_settings({"DATABASE_URL": database.url, "TRADES_RETENTION": "2h"})
    with ThreadPoolExecutor() as thread:
        running = thread.submit(retention.main, retention.options().parse_args([]), settings)
        try:
            for _ in range(2):
                fill(database, 3, age=3 * HOUR)
                eventually(lambda: database.count() == 0 or running.done())
                assert not running.done()
        finally:
            stopped.set()
    assert running.result() is None


def test_an_outage_is_waited_for(own_postgres: Postgres, run_script: RunScript) -> None:
    database = own_postgres.database
    fill(database, 1200, age=3 * HOUR)
    with closing(database.connect()) as connection:
        connection.cursor().execute("LOCK TABLE trades IN EXCLUSIVE MODE")
        script = run_script(
            "-m", "pipeline.maintenance.retention", DATABASE_URL=own_postgres.url, TRADES_RETENTION="2h"
        )
        eventually(lambda: database.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        own_postgres.kill()
    script.wait_for_line("⚠️  PostgreSQL")
    own_postgres.start()
    script.wait_for_line("🧹 1,200 trades")
    script.wait_for_line("PostgreSQL works again")
    assert script.stop() == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [("", "TRADES_RETENTION is not set"), ("0d", "TRADES_RETENTION=0d"), ("30 days", "TRADES_RETENTION=30 days")],
)
def test_what_the_user_got_wrong_is_one_line(database: Database, run_script: RunScript, value: str, said: str) -> None:
    fill(database, 1, age=3 * HOUR)
    script = run_script("-m", "pipeline.maintenance.retention", TRADES_RETENTION=value)
    assert script.wait() == 2
    assert said in script.stderr
    assert len(script.stderr_lines) == 1
    assert database.count() == 1
