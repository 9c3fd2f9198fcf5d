"""How the page asks the database: once for everybody, read-only, and without telling its secrets."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from pipeline.dashboard.feed import UNREACHABLE, Feed, query, read_only_engine, read_snapshot
from pipeline.dashboard.snapshot import Snapshot, as_trades
from tests.live_page import Market, insert
from tests.services import Database, Postgres, free_port

NOTHING = Snapshot(as_trades())


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = read_only_engine(database.url)
    yield engine
    engine.dispose()


def test_however_many_ask_there_is_one_question_per_interval() -> None:
    asked: list[int] = []
    feed = Feed(lambda last: asked.append(last) or last + 1, 0)  # type: ignore[func-returns-value]
    with ThreadPoolExecutor(20) as viewers:
        answers = list(viewers.map(lambda _: feed.latest(max_age=60), range(200)))
    assert asked == [0]
    assert set(answers) == {1}
    assert feed.latest(max_age=0) == 2


def test_a_database_that_hangs_costs_a_tick_no_more_than_its_patience() -> None:
    released, asked = threading.Event(), []

    def hang(last: int) -> int:
        asked.append(last)
        released.wait()
        return last + 1

    feed = Feed(hang, 0)
    assert [feed.latest(0, patience=0.01) for _ in range(3)] == [0, 0, 0]
    assert asked == [0]
    released.set()
    assert feed.latest(60, patience=30) == 1


def test_the_newest_trades_come_first(engine: Engine, database: Database) -> None:
    rows = Market().until_now(300, seconds=30)
    insert(database, rows)
    snapshot = read_snapshot(engine, NOTHING)
    assert snapshot.problem is None
    assert list(snapshot.trades["trade_id"]) == [row[0] for row in rows[:99:-1]]
    assert snapshot.read_at == pytest.approx(time.monotonic(), abs=60)


def test_trades_of_the_same_microsecond_come_in_the_order_of_their_ids(engine: Engine, database: Database) -> None:
    rows = [(name, *Market().until_now(1, 1)[0][1:5], Market().until_now(1, 1)[0][5]) for name in "bca"]
    insert(database, [(*row[:5], rows[0][5]) for row in rows])
    assert list(read_snapshot(engine, NOTHING).trades["trade_id"]) == ["c", "b", "a"]


def test_a_table_made_by_hand_with_nulls_in_it_is_read(engine: Engine, database: Database) -> None:
    database.query("DROP TABLE trades")
    database.query(
        "CREATE TABLE trades (trade_id varchar PRIMARY KEY, ticker varchar(10), price numeric(10,2), volume integer, "
        "side varchar(10), timestamp timestamp)"
    )
    insert(database, Market().until_now(2, seconds=1))
    database.query("INSERT INTO trades (trade_id) VALUES ('nothing else')")
    snapshot = read_snapshot(engine, NOTHING)
    assert (snapshot.problem, len(snapshot.trades)) == (None, 2)


@pytest.mark.parametrize(
    ("change", "message", "missing"),
    [
        ("ALTER TABLE trades RENAME TO elsewhere", "There is no table", True),
        ("ALTER TABLE trades DROP COLUMN side", "lacks a column", False),
    ],
)
def test_a_wrong_table_is_named_and_the_last_good_trades_stay(
    engine: Engine, database: Database, change: str, message: str, missing: bool
) -> None:
    insert(database, Market().until_now(5, seconds=1))
    good = read_snapshot(engine, NOTHING)
    database.query(change)
    bad = read_snapshot(engine, good)
    assert bad.problem is not None
    assert message in bad.problem
    assert bad.missing is missing
    assert bad.trades is good.trades
    assert bad.read_at == good.read_at


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://kafka_user:secret@127.0.0.1:{free_port()}/kafka_db",
        "postgresql://kafka_user:secret@127.0.0.1:notaport/kafka_db",
        "secret",
    ],
)
def test_no_database_is_one_line_without_credentials(url: str) -> None:
    snapshot = read_snapshot(read_only_engine(url), NOTHING)
    assert snapshot.problem == UNREACHABLE


def test_nothing_can_be_written(engine: Engine) -> None:
    with pytest.raises(DBAPIError, match="read-only"):
        query(engine, text("INSERT INTO trades (trade_id) VALUES ('x') RETURNING trade_id"))


def test_a_question_that_takes_too_long_is_ended(engine: Engine) -> None:
    with pytest.raises(DBAPIError, match="statement timeout"):
        query(engine, text("SELECT pg_sleep(60)"))


def test_options_of_the_url_are_kept(database: Database) -> None:
    url = urlsplit(database.url)._replace(query=f"options={quote('-c work_mem=7MB')}&application_name=mine").geturl()
    engine = read_only_engine(url)
    assert query(engine, text("SHOW work_mem"))[0][0] == "7MB"
    assert query(engine, text("SHOW default_transaction_read_only"))[0][0] == "on"
    engine.dispose()


def test_a_restarted_database_is_found_again_at_once(own_postgres: Postgres) -> None:
    engine = read_only_engine(own_postgres.url)
    assert read_snapshot(engine, NOTHING).problem is None
    own_postgres.stop()
    assert read_snapshot(engine, NOTHING).problem == UNREACHABLE
    own_postgres.start()
    assert read_snapshot(engine, NOTHING).problem is None
    own_postgres.stop()
    own_postgres.start()  # between two ticks: the old connection is dead, and nobody has noticed
    assert read_snapshot(engine, NOTHING).problem is None
    engine.dispose()
