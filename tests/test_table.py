"""Storing batches in a real PostgreSQL: exactly once, whatever repeats and whatever the table refuses."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from uuid import uuid4

import psutil
import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from pipeline import postgres as hall
from pipeline.consumer.table import TradesTable
from pipeline.postgres import SQL_FOLDER, TableError, apply_sql, connect, table_problem
from pipeline.trade import copy_rows
from tests.messages import SPELLINGS, expected_row, mutations, spelled, trade
from tests.services import Database, Postgres, eventually

FIELDS = "trade_id, ticker, price, volume, side, timestamp"


def rows(count: int, **fields: object) -> list[bytes]:
    return copy_rows([trade(**fields) for _ in range(count)])


@pytest.fixture
def table(database: Database) -> TradesTable:
    return TradesTable(database.url)


def test_a_batch_is_stored(table: TradesTable, database: Database) -> None:
    stored = table.store(rows(1000))
    assert (stored.inserted, stored.repeated, stored.refused) == (1000, 0, {})
    assert database.count() == 1000


def test_repeated_trades_are_stored_once(table: TradesTable, database: Database) -> None:
    first, second = rows(100), rows(100)
    table.store(first)
    twice = table.store(first + second + second)
    assert (twice.inserted, twice.repeated) == (100, 200)
    assert table.store(rows(10)).inserted == 10  # merged, because repeated batches tend to come in a row
    assert table.store(rows(10)).inserted == 10  # then copied again
    assert database.count() == 220


def test_refused_rows_are_found_among_ten_thousand(table: TradesTable, database: Database) -> None:
    database.query("ALTER TABLE trades ADD CHECK (price < 1000)")
    refused = rows(1, price=1000)
    stored = table.store(refused + rows(4320) + refused + rows(5677) + refused)
    assert sorted(stored.refused) == [0, 4321, 9_999]
    assert all(isinstance(reason, psycopg2.errors.CheckViolation) for reason in stored.refused.values())
    assert stored.inserted == database.count() == 9_997


def test_refused_and_repeated_rows_in_one_batch(table: TradesTable, database: Database) -> None:
    database.query("ALTER TABLE trades ADD CHECK (price < 1000)")
    known = rows(10)
    table.store(known)
    stored = table.store(known + rows(1, price=1000) + rows(5))
    assert (stored.inserted, stored.repeated, list(stored.refused)) == (5, 10, [10])


def test_a_trigger_may_refuse_a_row(table: TradesTable, database: Database) -> None:
    database.query("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.ticker = 'SCAM' THEN RAISE 'not listed'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION refuse()
    """)
    stored = table.store(rows(3) + rows(1, ticker="SCAM") + rows(3))
    assert list(stored.refused) == [3]
    assert database.count() == 6


def test_another_unique_key_refuses_its_row(table: TradesTable, database: Database) -> None:
    database.query("ALTER TABLE trades ADD UNIQUE (ticker, price)")
    known = rows(1, price=7)
    assert table.store(known).inserted == 1
    stored = table.store(rows(3, price=8) + known)
    assert (stored.inserted, stored.repeated, sorted(stored.refused)) == (1, 1, [1, 2])
    assert database.count() == 2


def test_a_role_that_cannot_name_the_key_is_told_of_another_unique_key(table: TradesTable, database: Database) -> None:
    database.query("DROP ROLE IF EXISTS inserter; CREATE ROLE inserter LOGIN PASSWORD 'kafka_password'")
    database.query("GRANT INSERT ON trades TO inserter")
    table = TradesTable(database.url.replace("kafka_user", "inserter"))
    known = rows(1)
    table.store(known)
    assert table.store(known).repeated == 1
    database.query("ALTER TABLE trades ADD CONSTRAINT one_price UNIQUE (price)")
    with pytest.raises(TableError, match=r"one_price.*SELECT \(trade_id\)"):
        table.store(rows(1, price=2))
    table.disconnect()
    database.query("GRANT SELECT (trade_id) ON trades TO inserter")
    assert len(table.store(rows(2, price=3)).refused) == 1
    database.query("DROP OWNED BY inserter")


def test_a_deferred_constraint_refuses_its_row(table: TradesTable, database: Database) -> None:
    database.query("CREATE TABLE listed (ticker VARCHAR(10) PRIMARY KEY); INSERT INTO listed VALUES ('AAPL')")
    database.query("ALTER TABLE trades ADD FOREIGN KEY (ticker) REFERENCES listed DEFERRABLE INITIALLY DEFERRED")
    stored = table.store(rows(2) + rows(1, ticker="NONE") + rows(2))
    assert (stored.inserted, list(stored.refused)) == (4, [2])


@pytest.mark.parametrize(
    ("breaks", "mends", "said"),
    [
        (
            "CREATE TABLE parted (LIKE trades, PRIMARY KEY (trade_id)) PARTITION BY RANGE (trade_id); "
            "DROP TABLE trades; ALTER TABLE parted RENAME TO trades",
            "CREATE TABLE trades_all PARTITION OF trades DEFAULT",
            "no partition",
        ),
        (
            "ALTER TABLE trades ADD number INTEGER GENERATED ALWAYS AS IDENTITY (MAXVALUE 2)",
            "ALTER TABLE trades ALTER number SET MAXVALUE 1000",
            "reached maximum value",
        ),
    ],
)
def test_what_no_row_is_to_blame_for_is_waited_for(
    table: TradesTable, database: Database, breaks: str, mends: str, said: str
) -> None:
    database.query(breaks)
    batch = rows(3)
    with pytest.raises(psycopg2.Error, match=said):
        table.store(batch)
    table.disconnect()
    database.query(mends)
    assert table.store(batch).inserted == 3


@pytest.mark.parametrize("count", [0, 3])  # all other messages of the batch may be dead letters
def test_a_trigger_that_refuses_every_statement_is_waited_for(
    table: TradesTable, database: Database, count: int
) -> None:
    database.query("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed for the audit'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON trades EXECUTE FUNCTION refuse()
    """)
    with pytest.raises(psycopg2.Error, match="closed for the audit"):
        table.store(rows(count))
    database.query("DROP TRIGGER refuse ON trades")
    table.disconnect()
    assert table.store(rows(count)).inserted == count


def test_a_table_partitioned_by_trade_id_works(table: TradesTable, database: Database) -> None:
    database.query("CREATE TABLE parted (LIKE trades, PRIMARY KEY (trade_id)) PARTITION BY RANGE (trade_id)")
    database.query("DROP TABLE trades; ALTER TABLE parted RENAME TO trades")
    database.query("CREATE TABLE low PARTITION OF trades FOR VALUES FROM ('0') TO ('8')")
    database.query("CREATE TABLE high PARTITION OF trades FOR VALUES FROM ('8') TO ('g')")
    database.query("ALTER TABLE trades ADD CHECK (price < 1000)")
    batch = rows(50)
    assert table.store(batch).inserted == 50
    stored = table.store(batch + rows(5) + rows(1, price=1000))
    assert (stored.inserted, stored.repeated, list(stored.refused)) == (5, 50, [55])


@pytest.mark.parametrize("kind", ["partition", "child"])
def test_a_locked_partition_holds_up_only_its_own_rows(table: TradesTable, database: Database, kind: str) -> None:
    if kind == "partition":
        database.query("CREATE TABLE parted (LIKE trades, PRIMARY KEY (trade_id)) PARTITION BY RANGE (trade_id)")
        database.query("DROP TABLE trades; ALTER TABLE parted RENAME TO trades")
        database.query("CREATE TABLE past PARTITION OF trades FOR VALUES FROM ('0') TO ('1')")
        database.query("CREATE TABLE present PARTITION OF trades DEFAULT")
    else:
        database.query("CREATE TABLE past () INHERITS (trades)")
    batch = rows(1, trade_id="f" + str(uuid4())[1:])
    with ThreadPoolExecutor(1) as writer, closing(database.connect()) as connection:
        connection.cursor().execute("LOCK TABLE past")  # as VACUUM FULL and CLUSTER do
        assert writer.submit(table.store, batch).result(10).inserted == 1


def test_what_the_codec_lets_through_postgresql_takes(table: TradesTable, database: Database) -> None:
    messages = {message: row for message in mutations(seed=3, count=5_000) if (row := expected_row(message))}
    stored = table.store(copy_rows(list(messages)))
    assert stored.refused == {}
    assert set(database.query(f"SELECT {FIELDS} FROM trades")) == set(messages.values())


def test_postgresql_reads_the_usual_spellings_as_they_were_meant(table: TradesTable, database: Database) -> None:
    expected = set()
    for number, spelling in enumerate(SPELLINGS):  # a batch for each, so that it holds no other spelling
        messages = [spelled(spelling, 10 * number + 1), spelled(spelling, 10**12 * number + 2)]
        table.store(copy_rows(messages))
        expected |= set(map(expected_row, messages))
    assert set(database.query(f"SELECT {FIELDS} FROM trades")) == expected


def test_a_character_set_that_lacks_a_character_refuses_that_row_only(postgres: Postgres) -> None:
    latin = Database(postgres.url + "_latin")
    with closing(psycopg2.connect(postgres.url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(
            "CREATE DATABASE kafka_db_latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C'"
        )
    with closing(connect(latin.url)) as connection:
        apply_sql(connection)
    table = TradesTable(latin.url)
    stored = table.store(copy_rows([trade(), trade(ticker="株式"), trade(ticker="Größe")]))
    assert list(stored.refused) == [1]
    assert latin.count() == 2
    table.disconnect()
    postgres.drop_database(latin)


@pytest.mark.parametrize(
    ("alteration", "problem"),
    [
        ("DROP TABLE trades CASCADE", "is missing"),
        ("ALTER TABLE trades ALTER price TYPE NUMERIC(4,2)", r"trades\.price is numeric\(4,2\)"),
        ("ALTER TABLE trades ALTER timestamp TYPE DATE", r"trades\.timestamp is date"),
        ("ALTER TABLE trades RENAME volume TO shares", r"trades\.volume is missing"),
        ("ALTER TABLE trades ADD venue TEXT NOT NULL", r"trades\.venue is NOT NULL"),
        ("ALTER TABLE trades DROP CONSTRAINT trades_pkey", "not the primary key"),
        ("ALTER TABLE trades DROP CONSTRAINT trades_pkey, ADD PRIMARY KEY (trade_id) DEFERRABLE", "a deferrable one"),
    ],
)
def test_an_altered_table_is_named(database: Database, alteration: str, problem: str) -> None:
    database.query(alteration)
    table = TradesTable(database.url)
    connection = connect(database.url)
    connection.cursor().execute((SQL_FOLDER / "temporary" / "incoming.sql").read_text())
    connection.commit()
    found = table_problem(connection)
    connection.close()
    assert found is not None
    assert re.search(problem, found)
    if "NUMERIC" in alteration:
        with pytest.raises(TableError, match="price"):
            table.store(rows(1))
        table.disconnect()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(("trade_id", kind) for kind in ("uuid", "text")),
        *(("price", kind) for kind in ("double precision", "bytea")),
        *(("volume", kind) for kind in ("bigint", "real", "date", "text")),
        *(("timestamp", kind) for kind in ("timestamp with time zone", "bigint", "double precision")),
    ],
)
def test_a_column_that_is_given_another_type_meanwhile_is_named(
    table: TradesTable, database: Database, column: str, kind: str
) -> None:
    table.store(rows(1))
    database.query(f"TRUNCATE trades; ALTER TABLE trades ALTER {column} TYPE {kind} USING NULL")
    with pytest.raises(TableError, match=rf"trades\.{column} is {kind}"):
        table.store(rows(3))
    assert database.count() == 0


@pytest.mark.parametrize("repeats", [1, 2])  # the second batch is merged
def test_a_table_that_is_dropped_meanwhile_is_said_to_be_missing(
    table: TradesTable, database: Database, repeats: int
) -> None:
    batch = rows(1)
    for _ in range(repeats):
        table.store(batch)
    database.query("DROP TABLE trades")
    for _ in range(2):
        with pytest.raises(TableError, match=r"trades is missing: restart the consumer"):
            table.store(batch)
        table.disconnect()
    with closing(database.connect()) as connection:
        apply_sql(connection)
    assert table.store(batch).inserted == 1


@pytest.mark.parametrize(
    ("alteration", "problem"),
    [
        ("ALTER price TYPE NUMERIC(10,1)", r"trades\.price is numeric\(10,1\)"),  # would round
        ("ALTER volume TYPE SMALLINT", r"trades\.volume is smallint"),  # would refuse
        ("ADD venue TEXT NOT NULL", r"trades\.venue is NOT NULL"),
    ],
)
def test_a_repeated_batch_that_waits_for_an_alteration_is_not_stored(
    table: TradesTable, database: Database, alteration: str, problem: str
) -> None:
    batch = rows(1)
    table.store(batch)
    table.store(batch)  # from now on, batches are merged
    database.query("TRUNCATE trades")
    with ThreadPoolExecutor(1) as writer, closing(database.connect()) as connection:
        connection.cursor().execute(f"ALTER TABLE trades {alteration}")
        stored = writer.submit(table.store, rows(1, price=7.77, volume=40_000))
        eventually(lambda: database.query("SELECT 1 FROM pg_locks WHERE NOT granted"))
        connection.commit()
        with pytest.raises(TableError, match=problem):
            stored.result(30)
    assert database.count() == 0


def test_a_table_made_by_hand_works(database: Database) -> None:
    database.query("DROP TABLE trades CASCADE")
    database.query("""
        CREATE TABLE trades (trade_id VARCHAR PRIMARY KEY, ticker VARCHAR(10), price NUMERIC(10,2), volume INTEGER,
                             side VARCHAR(10), timestamp TIMESTAMP)
    """)
    table = TradesTable(database.url)
    batch = rows(5)
    assert table.store(batch).inserted == 5
    assert table.store(batch).repeated == 5


def test_the_sql_can_be_run_again(database: Database, table: TradesTable) -> None:
    table.store(rows(5))
    connection = connect(database.url)
    apply_sql(connection)
    connection.close()
    assert database.count() == 5


def test_several_that_find_no_table_create_it_once(database: Database) -> None:
    database.query("DROP TABLE trades")

    def create(_: int) -> None:
        with closing(connect(database.url)) as connection:
            apply_sql(connection)

    with ThreadPoolExecutor(8) as scripts:
        list(scripts.map(create, range(8)))
    assert database.count() == 0


def wait_for_standby(server: Postgres, names: str) -> None:
    with closing(server.database.connect()) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        connection.cursor().execute("SELECT pg_reload_conf()")
    eventually(lambda: server.database.query("SHOW synchronous_standby_names") == [(names,)])


def waiting_for_standby(server: Postgres, statement: str = "%") -> list[int]:
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE %s"
    return [pid for (pid,) in server.database.query(waiting, statement)]


def test_a_repeated_batch_waits_for_the_standby_too(own_postgres: Postgres) -> None:
    table = TradesTable(own_postgres.url)
    batch = rows(3)
    table.store(batch)
    wait_for_standby(own_postgres, "standby")
    with ThreadPoolExecutor(1) as writer:
        stored = writer.submit(table.store, batch)
        eventually(lambda: waiting_for_standby(own_postgres))
        assert not stored.done()
        wait_for_standby(own_postgres, "")
        assert stored.result(30).repeated == 3


class Translated(list[str]):
    """The notices of a connection, as worded by a server with other `lc_messages`."""

    def append(self, notice: str) -> None:
        super().append("WARNUNG:  Warten auf synchrone Replikation wird storniert wegen Benutzeraufforderung\n")


def test_a_commit_whose_wait_for_the_standby_is_cancelled_waits_again_or_fails(own_postgres: Postgres) -> None:
    table = TradesTable(own_postgres.url)
    table.store(rows(1))
    assert table._connection
    table._connection.notices = Translated()
    wait_for_standby(own_postgres, "standby")
    batch = rows(3)
    with ThreadPoolExecutor(1) as writer:
        stored = writer.submit(table.store, batch)
        for statement in ("%COPY%", "SELECT%"):
            [pid] = eventually(lambda: waiting_for_standby(own_postgres, statement))  # noqa: B023
            assert not stored.done()
            own_postgres.database.query("SELECT pg_cancel_backend(%s)", pid)
        with pytest.raises(psycopg2.OperationalError, match="standby"):
            stored.result(30)
    wait_for_standby(own_postgres, "")
    assert table.store(batch).repeated == 3


def test_a_trigger_may_give_notices(table: TradesTable, database: Database) -> None:
    database.query("""
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE WARNING 'canceling wait for synchronous replication'; RETURN NEW; END $$;
        CREATE TRIGGER tell BEFORE INSERT ON trades FOR EACH ROW EXECUTE FUNCTION tell()
    """)
    batch = rows(3)
    assert table.store(batch).inserted == 3
    assert table.store(batch).repeated == 3


def test_a_primary_key_that_is_dropped_meanwhile_is_missed_before_a_trade_is_there_twice(
    table: TradesTable, database: Database
) -> None:
    batch = rows(3)
    table.store(batch)
    database.query("ALTER TABLE trades DROP CONSTRAINT trades_pkey")
    with pytest.raises(TableError, match="not the primary key"):
        table.store(batch)
    assert database.count() == 3


@pytest.mark.parametrize("limit", ["statement_timeout", "transaction_timeout"])
def test_a_large_batch_may_take_longer_than_the_role_allows(database: Database, limit: str) -> None:
    database.query("""
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
        CREATE TRIGGER wait BEFORE INSERT ON trades EXECUTE FUNCTION wait()
    """)
    assert TradesTable(f"{database.url}?options=-c{limit}%3D900").store(rows(3)).inserted == 3


@pytest.mark.parametrize("level", ["off", "local"])
def test_a_commit_is_safe_whatever_the_role_waits_for(database: Database, level: str) -> None:
    database.query("ALTER TABLE trades ADD CHECK (current_setting('synchronous_commit') = 'on')")
    url = f"{database.url}?options=-csynchronous_commit%3D{level}"
    assert TradesTable(url).store(rows(3)).inserted == 3


def test_a_role_may_have_all_identifiers_quoted(database: Database) -> None:
    url = f"{database.url}?options=-cquote_all_identifiers%3Don"
    hall.prepare_table(url)
    assert TradesTable(url).store(rows(3)).inserted == 3


@pytest.mark.parametrize("level", ["debug5", "error"])
def test_the_warning_of_a_cancelled_wait_is_told_whatever_else_the_role_is(database: Database, level: str) -> None:
    table = TradesTable(f"{database.url}?options=-cclient_min_messages%3D{level}")
    assert table.store(rows(3)).inserted == 3
    assert table._connection
    with table._connection.cursor() as cursor:
        cursor.execute("SHOW client_min_messages")
        assert cursor.fetchall() == [("warning",)]
    table.disconnect()


def test_a_frozen_server_is_left_for_another(
    own_postgres: Postgres, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hall, "SECONDS_UNSUSPECTED", 0.5)
    monkeypatch.setattr(hall, "SECONDS_TO_ANSWER", 2)
    hosts = ",".join(f"{server.address.host}:{server.address.port}" for server in (own_postgres, postgres))
    table = TradesTable(f"postgresql://kafka_user:kafka_password@{hosts}/kafka_db?connect_timeout=2")
    table.store(rows(1))
    assert own_postgres.database.count() == 1
    assert own_postgres.process
    frozen = [parent := psutil.Process(own_postgres.process.pid), *parent.children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        batch = rows(5)
        with pytest.raises(psycopg2.OperationalError):
            table.store(batch)
        table.disconnect()
        before = postgres.database.count()
        assert table.store(batch).inserted == 5
        assert postgres.database.count() == before + 5
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):  # a worker that PostgreSQL no longer needed
                process.resume()


def test_a_locked_table_is_waited_for(table: TradesTable, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hall, "SECONDS_UNSUSPECTED", 0.2)
    asked: list[bool] = []

    def answers(url: str, connection: Connection) -> bool:
        asked.append(really_answers(url, connection))
        return asked[-1]

    really_answers = hall.answers
    monkeypatch.setattr(hall, "answers", answers)
    with ThreadPoolExecutor(1) as writer:
        with closing(database.connect()) as connection:
            connection.cursor().execute("LOCK TABLE trades IN ACCESS EXCLUSIVE MODE")
            stored = writer.submit(table.store, rows(3))
            eventually(lambda: len(asked) > 1)
        assert stored.result(30).inserted == 3
    assert all(asked)
