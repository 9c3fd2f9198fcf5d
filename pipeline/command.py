"""Turns Ctrl-C, SIGTERM and a closed terminal into a request that the loops look at.

Importing it is what switches it on, so a script imports it first: from then on a stop is orderly, even
while the other modules still load.
"""

import signal
import threading
from types import FrameType

_requested = threading.Event()


def stop_requested() -> bool:
    """Tell whether the user asked the script to end."""
    return _requested.is_set()


def wait_for_stop(seconds: float) -> bool:
    """Wait for that long, or until the user asks the script to end; tell whether they did."""
    return _requested.wait(seconds)


def request_stop() -> None:
    """Ask the script to end, as Ctrl-C does."""
    _requested.set()


def _on_signal(signum: int, frame: FrameType | None) -> None:
    request_stop()


for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(_signal, _on_signal)
