"""The trade on the wire (pipeline/trade.py) and in storage (sql/) are one and the same."""

import json
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from pipeline.consumer.table import TradesTable
from pipeline.postgres import SQL_FOLDER, execute_file
from pipeline.trade import COLUMNS, MAX_PRICE, MAX_TICKER_LENGTH, MAX_VOLUME, Trade, copy_rows, decode, encode
from tests.services import Database

TRADE = Trade("0199a5c4-7d1e-7c3a-9f00-3b5e8a2f6c11", "AAPL", 271.35, 100, "buy", "2026-01-31T08:30:00.000000Z")

# The table as documented for users: column -> PostgreSQL type, and the Python type of the trade's field.
CONTRACT = {
    "trade_id": ("character varying", str),
    "ticker": ("character varying(10)", str),
    "price": ("numeric(10,2)", float),
    "volume": ("integer", int),
    "side": ("character varying(10)", str),
    "timestamp": ("timestamp without time zone", str),
}


def columns(database: Database, table: str) -> dict[str, str]:
    """Return name and type of a table's columns, in order, as PostgreSQL reports them."""
    with closing(database.connect()) as connection:
        execute_file(connection, SQL_FOLDER / "temporary" / "incoming.sql")
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
                [table],
            )
            return dict(cursor.fetchall())


def test_a_trade_has_the_tables_columns_in_its_order() -> None:
    assert tuple(CONTRACT) == COLUMNS == Trade.__struct_fields__


@pytest.mark.parametrize("table", ["trades", "incoming"])
def test_both_tables_have_the_trades_columns(database: Database, table: str) -> None:
    assert columns(database, table) == {name: kind for name, (kind, _) in CONTRACT.items()}


def test_the_event_is_one_json_object_with_the_columns_as_keys() -> None:
    event: dict[str, Any] = json.loads(encode(TRADE))
    assert {name: type(value) for name, value in event.items()} == {name: kind for name, (_, kind) in CONTRACT.items()}
    assert decode(encode(TRADE)) == TRADE


@pytest.mark.parametrize(
    ("column", "largest", "larger"),
    [
        ("price", MAX_PRICE, MAX_PRICE + 0.01),
        ("volume", MAX_VOLUME, MAX_VOLUME + 1),
        ("ticker", "T" * MAX_TICKER_LENGTH, "T" * (MAX_TICKER_LENGTH + 1)),
    ],
)
def test_the_limits_on_the_wire_are_those_of_the_columns(
    database: Database, column: str, largest: object, larger: object
) -> None:
    database.query(f"INSERT INTO trades (trade_id, {column}) VALUES ('largest', %s)", largest)
    with pytest.raises(psycopg2.DataError):
        database.query(f"INSERT INTO trades (trade_id, {column}) VALUES ('larger', %s)", larger)


def test_a_table_made_by_hand_from_the_contract_takes_a_trade(database: Database) -> None:
    written = ", ".join(f"{name} {kind}" for name, (kind, _) in CONTRACT.items())
    database.query(f"DROP TABLE trades; CREATE TABLE trades ({written}, PRIMARY KEY (trade_id))")
    assert TradesTable(database.url).store(copy_rows([encode(TRADE)])).inserted == 1
    assert database.query("SELECT price::text, timestamp::text FROM trades") == [("271.35", "2026-01-31 08:30:00")]


def test_the_sql_can_be_run_again(database: Database) -> None:
    for path in sorted(SQL_FOLDER.glob("*.sql")) * 2:
        database.query(path.read_text())
    assert database.query("SELECT count(*) FROM pg_indexes WHERE tablename = 'trades'") == [(2,)]
