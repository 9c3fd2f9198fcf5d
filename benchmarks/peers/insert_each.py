"""The consumer found in many tutorials: one INSERT and one commit per message."""

import json
import os

import psycopg2
from confluent_kafka import Consumer

INSERT = """
    INSERT INTO trades (trade_id, ticker, price, volume, side, timestamp)
    VALUES (%(trade_id)s, %(ticker)s, %(price)s, %(volume)s, %(side)s, %(timestamp)s) ON CONFLICT DO NOTHING
"""

consumer = Consumer(
    {
        "bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"],
        "group.id": os.environ["KAFKA_GROUP_ID"],
        "auto.offset.reset": "earliest",
        "session.timeout.ms": 6000,
    }
)
consumer.subscribe([os.environ["KAFKA_TOPIC"]])
connection = psycopg2.connect(os.environ["DATABASE_URL"])
cursor = connection.cursor()
while True:
    message = consumer.poll(1)
    if message is None or message.error():
        continue
    cursor.execute(INSERT, json.loads(message.value() or b""))
    connection.commit()
