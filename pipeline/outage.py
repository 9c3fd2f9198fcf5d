"""Logs one line when a service goes down, a reminder every minute, and one line when it is back."""

import logging
import time

SECONDS_BETWEEN_REMINDERS = 60

log = logging.getLogger(__name__)


class Outage:
    """The outages of one service, reported by whoever notices them; other threads may read `ongoing`."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._began: float | None = None
        self._last_said = 0.0

    @property
    def ongoing(self) -> bool:
        """Return whether the service is down."""
        return self._began is not None

    def report(self, reason: str) -> None:
        """Record that the service fails for this reason; log it at once, then every minute."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            log.warning("⚠️  %s: %s. No data lost; retrying ...", self._service, reason)
        elif now - self._last_said < SECONDS_BETWEEN_REMINDERS:
            return
        else:
            log.warning("⚠️  %s: still down after %.0f s: %s", self._service, now - self._began, reason)
        self._last_said = now

    def end(self) -> None:
        """Record that the service works; log it after an outage."""
        if self._began is not None:
            log.warning("✅ %s works again, after %.0f s.", self._service, time.monotonic() - self._began)
            self._began = None
