"""Graceful shutdown: Ctrl-C, SIGTERM or a closed terminal sets a flag that the loops check; nothing in flight is lost.

Scripts call `take_signals` before their slower imports, so this module imports next to nothing.
"""

import signal
from contextlib import suppress
from queue import Empty, SimpleQueue

_requested = False
_wake: SimpleQueue[None] = SimpleQueue()  # an Event's lock, held when a signal arrives, would hang the signal's handler


def take_signals() -> None:
    """From now on, treat these signals as a request to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, lambda *_: request_stop())


def stop_requested() -> bool:
    """Return whether the user asked the command to stop."""
    return _requested


def wait_for_stop(seconds: float) -> bool:
    """Wait `seconds`, or until the user asks the command to stop; return whether they did."""
    with suppress(Empty):
        _wake.get(timeout=seconds)
        _wake.put(None)  # for the next
    return _requested


def request_stop() -> None:
    """Ask the command to stop, as Ctrl-C does."""
    global _requested
    _requested = True
    _wake.put(None)
