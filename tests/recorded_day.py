"""Make docs/recorded-day.csv.gz, a quiet day of the project's own market: a thousand trades from bell to bell.

python -m tests.recorded_day
"""

import csv
import gzip
import io
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from faker import Faker

from pipeline.producer.market import SESSION
from pipeline.producer.tape import TradeProvider
from pipeline.trade import COLUMNS

PATH = Path(__file__).parent.parent / "docs" / "recorded-day.csv.gz"
TRADES = 1000
OPENING = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)  # 9:30 in New York


def recorded_day() -> str:
    """Return the day as CSV, the same every time."""
    fake = Faker()
    fake.seed_instance(1)
    clock = count(int(OPENING.timestamp()) * 10**9, int(SESSION / TRADES * 1e9)).__next__
    provider = TradeProvider(fake, clock)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for _ in range(TRADES):
        trade = provider.trade()
        writer.writerow([getattr(trade, name) for name in COLUMNS])
    return text.getvalue()


if __name__ == "__main__":
    PATH.write_bytes(gzip.compress(recorded_day().encode(), mtime=0))
