"""Quix Streams with its PostgreSQLSink, set to ignore rows whose key already exists."""

import os
from urllib.parse import urlsplit

from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.sinks.community.postgresql import PostgreSQLSink  # type: ignore[import-not-found]

database = urlsplit(os.environ["DATABASE_URL"])
application = Application(
    broker_address=os.environ["KAFKA_BOOTSTRAP_SERVERS"],
    consumer_group=os.environ["KAFKA_GROUP_ID"],
    auto_offset_reset="earliest",
    commit_every=10_000,  # messages; as fast as 50,000
    consumer_extra_config={"session.timeout.ms": 6000},
)
sink = PostgreSQLSink(
    host=database.hostname or "",
    port=database.port or 5432,
    dbname=database.path.lstrip("/"),
    user=database.username or "",
    password=database.password or "",
    table_name="trades",
    schema_auto_update=False,
    include_metadata=False,
    on_conflict_do_nothing=True,
)
application.dataframe(application.topic(os.environ["KAFKA_TOPIC"], value_deserializer="json")).sink(sink)
application.run()
