"""Says in one line that something is away, then rarely, and in one line that it is back."""

import logging
import time

SECONDS_BETWEEN_REMINDERS = 60

log = logging.getLogger(__name__)


class Outage:
    """One service's troubles, reported by whoever meets them; safe to share between threads."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._began: float | None = None
        self._last_said = 0.0

    @property
    def ongoing(self) -> bool:
        """Tell whether the service is away."""
        return self._began is not None

    def report(self, reason: str) -> None:
        """Note that the service fails for this reason; said at once, then every minute."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
            log.warning("⚠️  %s: %s. No data lost; retrying ...", self._service, reason)
        elif now - self._last_said < SECONDS_BETWEEN_REMINDERS:
            return
        else:
            log.warning("⚠️  %s: for %.0f s now: %s", self._service, now - self._began, reason)
        self._last_said = now

    def end(self) -> None:
        """Note that the service works."""
        if self._began is not None:
            log.warning("✅ %s works again, after %.0f s.", self._service, time.monotonic() - self._began)
            self._began = None
