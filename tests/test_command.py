"""Stop signals become a request, from the first import on."""

import signal
import subprocess
import sys

import pytest

from tests.services import ROOT

LOOP = """
from pipeline.command import stop_requested, take_signals, wait_for_stop
take_signals()
print("ready", flush=True)
while not wait_for_stop(30):
    pass
assert stop_requested()
print("stopped in order", flush=True)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_loop_in_order(ending: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(ending)
        assert process.stdout.readline() == "stopped in order\n"
        assert process.wait(10) == 0
