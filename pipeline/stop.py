"""Ctrl-C, SIGTERM and a closed terminal as a request that the loops look at, so that nothing in flight is lost.

A script takes the signals before its slower imports: this module imports next to nothing.
"""

import signal
import threading

_stop = threading.Event()


def take_signals() -> None:
    """Turn signals into a request to stop, from now on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: request_stop())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, lambda *_: request_stop())


def stop_requested() -> bool:
    """Tell whether the user asked the command to end."""
    return _stop.is_set()


def wait_for_stop(seconds: float) -> bool:
    """Wait that long, or until the user asks the command to end; tell whether they did."""
    return _stop.wait(seconds)


def request_stop() -> None:
    """Ask the command to end, as Ctrl-C does."""
    _stop.set()
