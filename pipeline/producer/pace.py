"""A steady rate: how many trades are due now, and how long to wait for the next one."""

from collections.abc import Sequence
from typing import NamedTuple

MAX = 1e9  # trades/s, or times the recorded pace; more than any broker takes
CATCH_UP = 0.05  # how much faster than the rate it may always send, to make up for lost time
BURST = 0.008  # seconds' worth of trades that may be sent at once
TICK = 0.002  # seconds between two sends: trades that are sent together share a request

Trades = Sequence[tuple[str, str]]  # the ticker and JSON of each


class Step(NamedTuple):
    """What the producer does next."""

    trades: Trades  # to send
    seconds: float = 0.0  # until the next ones are due
    share: float = 0.0  # of everything to send, the fraction sent after this step; stays 0 if there is no end


class Pace:
    """Spreads `rate` trades a second evenly.

    After a stall it catches up within seconds at about twice the rate, never in a burst; backlog beyond one second is
    dropped. Times are seconds of any steady clock.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._checked = now
        self._owed = 0.0  # trades that are due by the clock
        self._allowed = 0.0  # of those, trades that may be sent by now

    def due(self, now: float, at_most: int) -> int:
        """Return how many trades to send now, and count them as sent."""
        passed = (now - self._checked) * self._rate
        self._checked = now
        self._owed = min(self._owed + passed, max(self._rate, 1.0))
        speed = 1 + CATCH_UP + self._owed / max(self._rate, 1.0)
        self._allowed = min(self._allowed + speed * min(passed, max(BURST * self._rate, 1.0)), self._owed)
        trades = int(min(self._allowed, at_most))
        self._allowed -= trades
        self._owed -= trades
        return trades

    def wait(self) -> float:
        """Return the seconds to wait before asking again."""
        return 0.0 if self._allowed >= 1 else max((1 - self._allowed) / self._rate, TICK)
