"""Graceful shutdown: Ctrl-C, SIGTERM or a closed terminal sets a flag that the loops check; nothing in flight is lost.

Scripts call `take_signals` before their slower imports, so this module imports next to nothing.
"""

import signal
import threading

_stop = threading.Event()


def take_signals() -> None:
    """From now on, treat these signals as a request to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, lambda *_: request_stop())


def stop_requested() -> bool:
    """Return whether the user asked the command to stop."""
    return _stop.is_set()


def wait_for_stop(seconds: float) -> bool:
    """Wait `seconds`, or until the user asks the command to stop; return whether they did."""
    return _stop.wait(seconds)


def request_stop() -> None:
    """Ask the command to stop, as Ctrl-C does."""
    _stop.set()
