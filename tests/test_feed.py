"""How the page queries the database: once for all viewers, read-only, and without revealing secrets."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from urllib.parse import quote, urlsplit

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from pipeline.dashboard.feed import MISSING_TABLE, UNREACHABLE, Answer, Feed, problem, query, read_only_engine, shared
from pipeline.dashboard.queries import LATEST_TRADES, WINDOW
from pipeline.dashboard.snapshot import Snapshot, as_snapshot, figures
from pipeline.user_error import UsageError
from tests.live_page import Market, Row, insert, utc_now
from tests.services import Database, Postgres, free_port

KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)  # seconds


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = read_only_engine(database.url)
    yield engine
    engine.dispose()


def latest(engine: Engine) -> Snapshot:
    return as_snapshot(query(engine, LATEST_TRADES))


def ask(engine: Engine) -> Answer[Snapshot]:
    """Return the answer of a new feed."""
    return Feed(lambda _: latest(engine), Snapshot()).latest(60, patience=30)


def test_however_many_ask_there_is_one_question_per_interval() -> None:
    asked: list[int] = []
    feed = Feed(lambda last: asked.append(last) or last + 1, 0)  # type: ignore[func-returns-value]
    with ThreadPoolExecutor(20) as viewers:
        answers = list(viewers.map(lambda _: feed.latest(60, patience=30).value, range(200)))
    assert asked == [0]
    assert set(answers) == {1}
    assert feed.latest(0, patience=30).value == 2


def test_a_database_that_hangs_costs_a_tick_no_more_than_its_patience() -> None:
    released, asked = threading.Event(), []

    def hang(last: int) -> int:
        asked.append(last)
        released.wait()
        return last + 1

    feed = Feed(hang, 0)
    assert [feed.latest(0, patience=0.01).value for _ in range(3)] == [0, 0, 0]
    assert asked == [0]
    released.set()
    assert feed.latest(60, patience=30).value == 1


def test_the_newest_trades_come_first(engine: Engine, database: Database) -> None:
    rows = Market().until_now(300, seconds=30)
    insert(database, rows)
    answer = ask(engine)
    assert answer.problem is None
    assert list(answer.value.trades["trade_id"]) == [row[0] for row in rows[:99:-1]]
    assert answer.read_at == pytest.approx(time.monotonic(), abs=60)
    assert not answer.value.standby


def test_an_empty_table_has_no_trades(engine: Engine) -> None:
    answer = ask(engine)
    assert (answer.problem, len(answer.value.trades), answer.value.ahead) == (None, 0, 0)


def of_aapl(name: str, moment: datetime) -> Row:
    return name, "AAPL", 1.0, 1, "buy", moment


def test_trades_of_the_same_microsecond_come_in_the_order_of_their_ids(engine: Engine, database: Database) -> None:
    insert(database, [of_aapl(name, datetime(2026, 1, 31)) for name in "bca"])
    assert list(latest(engine).trades["trade_id"]) == ["c", "b", "a"]


def test_trades_from_the_future_are_counted_and_left_out(engine: Engine, database: Database) -> None:
    """The trades of a producer with a wrong clock must not count as the newest until their time has come."""
    now = utc_now()
    insert(database, Market().until_now(5, seconds=1))
    insert(database, [of_aapl("soon", now + timedelta(hours=2)), of_aapl("2999", now.replace(year=2999))])
    insert(database, [of_aapl("a clock a little fast", now + timedelta(seconds=20))])
    snapshot = latest(engine)
    assert (len(snapshot.trades), snapshot.ahead) == (6, 2)
    insert(database, [of_aapl(f"soon {n}", now + timedelta(hours=n)) for n in range(3, 500)])
    assert latest(engine).ahead == WINDOW


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 BC", "0001-01-01", "294276-12-31"])
def test_any_time_that_postgresql_knows_leaves_the_other_trades_alone(
    engine: Engine, database: Database, moment: str
) -> None:
    insert(database, Market().until_now(5, seconds=1))
    database.query("INSERT INTO trades VALUES ('elsewhen', 'AAPL', 1, 1, 'buy', %s)", moment)
    assert len(latest(engine).trades) == (6 if moment == "0001-01-01" else 5)


def test_viewers_who_want_the_same_at_the_same_time_share_one_result() -> None:
    made = []
    everybody = threading.Barrier(4)

    @shared
    def slow(choice: str) -> str:
        time.sleep(0.1)  # the others come meanwhile
        made.append(choice)
        return choice.upper()

    def viewer(choice: str) -> str:
        everybody.wait()
        return slow(choice)

    with ThreadPoolExecutor(4) as viewers:
        assert list(viewers.map(viewer, ["all", "all", "sell", "all"])) == ["ALL", "ALL", "SELL", "ALL"]
    assert sorted(made) == ["all", "sell"]


INVALID = {
    "ticker": ["NULL", "''"],
    "price": ["NULL", "0", "-1", "'NaN'"],
    "volume": ["NULL", "0", "-1"],
    "side": ["NULL", "'hold'", "'Buy'"],
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column in INVALID for value in INVALID[column]])
def test_a_row_that_is_no_valid_trade_leaves_the_others_alone(
    engine: Engine, database: Database, column: str, value: str
) -> None:
    insert(database, Market().until_now(2, seconds=1))
    database.query(f"""
        INSERT INTO trades VALUES ('another', 'ODD', 1, 1, 'buy', now() AT TIME ZONE 'UTC');
        UPDATE trades SET {column} = {value} WHERE trade_id = 'another'
    """)
    snapshot = latest(engine)
    assert len(snapshot.trades) == 2
    shown = figures(snapshot)
    assert "ODD" not in (line.ticker for line in shown.lines)
    assert shown.vwap


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ALTER TABLE trades RENAME TO elsewhere", MISSING_TABLE),
        ("ALTER TABLE trades DROP COLUMN side", "lacks a column"),
        ("ALTER TABLE trades ALTER timestamp TYPE timestamptz", "another type"),
        ("ALTER TABLE trades ALTER price TYPE text", "another type"),
        ("ALTER TABLE trades ALTER side TYPE integer USING 1", "another type"),
    ],
)
def test_a_wrong_table_is_named_and_the_last_good_trades_stay(
    engine: Engine, database: Database, change: str, message: str
) -> None:
    insert(database, Market().until_now(5, seconds=1))
    feed = Feed(lambda _: latest(engine), Snapshot())
    good = feed.latest(0, patience=30)
    database.query(change)
    bad = feed.latest(0, patience=30)
    assert bad.problem is not None
    assert message in bad.problem
    assert bad.value is good.value
    assert bad.read_at == good.read_at


def test_no_database_is_one_line_without_credentials() -> None:
    silent_port = f"postgresql://someone:secret@127.0.0.1:{free_port()}/kafka_db"
    for url in (silent_port, "dbname=kafka_db host=/nowhere password=secret"):
        assert ask(read_only_engine(url)).problem == UNREACHABLE


def test_what_is_no_url_is_one_line_without_credentials() -> None:
    with pytest.raises(UsageError, match="DATABASE_URL") as failure:
        read_only_engine("postgresql:/secret")
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("wanted", ["any", "read-write", "primary", "prefer-standby"])
def test_one_of_several_servers_is_found(database: Database, wanted: str) -> None:
    """A URL with several hosts works for every script, even one that asks for the writable server."""
    server = urlsplit(database.url).netloc.rpartition("@")[2]
    hosts = f"127.0.0.1:{free_port()},{server}"
    engine = read_only_engine(f"{database.url.replace(server, hosts)}?target_session_attrs={wanted}")
    assert ask(engine).problem is None
    engine.dispose()


def test_nothing_can_be_written(engine: Engine) -> None:
    with pytest.raises(DBAPIError, match="read-only"):
        query(engine, text("INSERT INTO trades (trade_id) VALUES ('x') RETURNING trade_id"))


def test_a_question_that_takes_too_long_is_ended(engine: Engine) -> None:
    with pytest.raises(DBAPIError, match="statement timeout") as failure:
        query(engine, text("SELECT pg_sleep(60)"))
    assert "busy" in problem(failure.value)


def test_an_error_is_not_taken_for_no_answer(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as failure:
        query(engine, text("SELECT 1 / 0 AS secret"))
    assert problem(failure.value) == "The database answers with error 22012: its log says more."


def test_a_server_that_vanishes_while_it_owes_an_answer_is_given_up_within_seconds(engine: Engine) -> None:
    """Nothing is left to send, so only TCP's keepalives notice; by default, they start after two hours."""
    connection = engine.raw_connection()
    with socket.socket(fileno=os.dup(connection.driver_connection.fileno())) as stream:  # type: ignore[union-attr]
        idle, interval = (stream.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE)
    connection.close()
    assert idle + 4 * interval < 10


def test_options_of_the_url_are_kept(database: Database) -> None:
    url = urlsplit(database.url)._replace(query=f"options={quote('-c work_mem=7MB')}&application_name=mine").geturl()
    engine = read_only_engine(url)
    assert query(engine, text("SHOW work_mem"))[0][0] == "7MB"
    assert query(engine, text("SHOW default_transaction_read_only"))[0][0] == "on"
    engine.dispose()


def test_a_restarted_database_is_found_again_at_once(own_postgres: Postgres) -> None:
    engine = read_only_engine(own_postgres.url)
    assert ask(engine).problem is None
    own_postgres.stop()
    assert ask(engine).problem == UNREACHABLE
    own_postgres.start()
    assert ask(engine).problem is None
    own_postgres.stop()
    own_postgres.start()  # between two ticks: the old connection is dead, but nothing has noticed yet
    assert ask(engine).problem is None
    engine.dispose()
