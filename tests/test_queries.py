"""The dashboard's queries on a large table: PostgreSQL walks the index, whether or not it knows the table."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import TextClause, text

from pipeline.dashboard.feed import query, read_only_engine
from pipeline.dashboard.queries import CANDLES, LATEST_TRADES, NEWEST, STRETCH
from tests.services import Database

ROWS = 200_000
LAST = datetime(2026, 1, 31)
FILL = f"""
    INSERT INTO trades SELECT n, 'AAPL', 1, 1, 'buy', timestamp '{LAST}' - n * interval '1 second'
    FROM generate_series(1, %s) AS n
"""


@pytest.mark.parametrize("analysed", [False, True])
def test_no_query_reads_the_whole_table(database: Database, analysed: bool) -> None:
    database.query(FILL, ROWS)
    if analysed:
        database.query("ANALYZE trades")
    engine = read_only_engine(database.url)
    asked: dict[str, tuple[TextClause, dict[str, object]]] = {
        "latest trades": (LATEST_TRADES, {}),
        "newest": (NEWEST, {}),
        "stretch": (STRETCH, {"end": LAST - timedelta(seconds=1000)}),
        "candles": (CANDLES, {"start": LAST - timedelta(seconds=100), "end": LAST, "step": timedelta(seconds=1)}),
    }
    for name, (statement, values) in asked.items():
        plan = "\n".join(line for (line,) in query(engine, text(f"EXPLAIN {statement.text}"), values))
        assert "Seq Scan on trades" not in plan, f"{name}:\n{plan}"
        assert "trades_timestamp_idx" in plan, f"{name}:\n{plan}"
    engine.dispose()


@pytest.mark.parametrize("statement", [LATEST_TRADES, NEWEST])
def test_the_newest_rows_are_read_one_by_one_from_a_small_table_too(database: Database, statement: TextClause) -> None:
    database.query(FILL, 20_000)
    plan = "\n".join(line for (line,) in database.query(f"EXPLAIN {statement}"))
    assert "using trades_timestamp_idx" in plan
    assert "Bitmap Index Scan" not in plan, plan  # it would take every row
