"""A short campaign of `python -m tests.chaos`: a few faults, and every row accounted for."""

import pytest

from tests.chaos import Campaign
from tests.services import Kafka, Postgres


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_whatever_is_killed(own_broker: Kafka, own_postgres: Postgres) -> None:
    report = Campaign(own_broker, own_postgres, seed=4).run(faults=8, trades=20_000)
    print(report)
    assert not report.findings
    assert report.rows == report.acknowledged == 20_000
    assert report.dead_letters == report.invalid == 20
