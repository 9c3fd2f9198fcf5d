"""Pathway from Kafka to a PostgreSQL table in snapshot mode, which updates by primary key."""

import os
import sys
from urllib.parse import urlsplit

import pathway as pw  # type: ignore[import-not-found]


class Trade(pw.Schema):  # type: ignore[misc]
    """The event, declared for Pathway."""

    trade_id: str = pw.column_definition(primary_key=True)
    ticker: str
    price: float
    volume: int
    side: str
    timestamp: str


form = sys.argv[1]
database = urlsplit(os.environ["DATABASE_URL"])
trades = pw.io.kafka.read(
    {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": os.environ["KAFKA_GROUP_ID"],
        "auto.offset.reset": "earliest",
        "session.timeout.ms": "6000",
    },
    topic=os.environ["KAFKA_TOPIC"],
    schema=Trade,
    format="json",
    autocommit_duration_ms=100,  # the fastest of 50, 100, 200, 500 and 1500 (the default)
)
moment = trades.timestamp.dt.strptime(form)
pw.io.postgres.write(
    # With an offset, Pathway parses it as time-zone aware, which the column does not accept.
    trades.with_columns(timestamp=moment.dt.to_naive_in_timezone("UTC") if "%z" in form else moment),
    {
        "host": database.hostname,
        "port": database.port,
        "dbname": database.path.lstrip("/"),
        "user": database.username,
        "password": database.password,
    },
    "trades",
    output_table_type="snapshot",
    primary_key=[trades.trade_id],
)
pw.run(monitoring_level=pw.MonitoringLevel.NONE)
