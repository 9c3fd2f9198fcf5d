"""An outage is reported at once, then now and then, then as over."""

import logging

import pytest

from pipeline import outage
from pipeline.outage import Outage


def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    database = Outage("PostgreSQL")
    database.end()
    assert caplog.messages == []
    for _ in range(3):
        database.report("connection refused")
    assert database.ongoing
    database.end()
    database.end()
    assert not database.ongoing
    first, last = caplog.messages
    assert "PostgreSQL: connection refused" in first
    assert "PostgreSQL works again" in last


def test_a_long_outage_is_recalled(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "SECONDS_BETWEEN_REMINDERS", 0)
    database = Outage("PostgreSQL")
    database.report("connection refused")
    database.report("still starting up")
    assert "still starting up" in caplog.messages[1]
