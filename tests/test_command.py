"""From the first import on, a stop signal becomes a request to stop; every command checks for it."""

import signal
import subprocess
import sys

import pytest

from tests.script import ROOT, Script, environment_of

LOOP = """
from pipeline.stop import stop_requested, take_signals, wait_for_stop
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


STORM = """
import os, signal, threading
from pipeline.stop import take_signals, wait_for_stop
take_signals()
kill = lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(20_000)]
storm = threading.Thread(target=kill)
storm.start()
while storm.is_alive():
    wait_for_stop(0.0001)
"""


def test_no_signal_comes_at_a_bad_moment() -> None:
    subprocess.run([sys.executable, "-c", STORM], cwd=ROOT, check=True, timeout=60)


# Runs a command, and sends it SIGINT with its first import after it has taken the signals.
INTERRUPTED_IMPORT = """
import os, runpy, signal, sys

class Interruption:
    def find_spec(self, *_):
        if callable(signal.getsignal(signal.SIGTERM)):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interruption())
run = runpy.run_module if sys.argv[1] == "-m" else runpy.run_path
sys.argv = [word for word in sys.argv[1:] if word != "-m"]
run(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [
        "producer.py",
        "consumer.py",
        "-m pipeline.local_stack.kafka_server",
        "-m pipeline.maintenance.replay",
        "-m pipeline.maintenance.retention",
    ],
)
def test_ctrl_c_during_the_imports_is_a_graceful_shutdown(command: str) -> None:
    nobody = environment_of("localhost:1", "postgresql://localhost:1/", "orders", "group")
    script = Script(["-c", INTERRUPTED_IMPORT, *command.split()], nobody | {"TRADES_RETENTION": "30d"})
    assert script.wait() == 0
    assert script.stderr == ""


@pytest.mark.parametrize(
    ("output", "code", "said"), [(">&-", 0, ""), (">/dev/full", 1, "producer.py: No space left on device\n")]
)
def test_where_its_lines_go_is_no_reason_for_a_traceback(
    output: str, code: int, said: str, environment: dict[str, str]
) -> None:
    command = ["sh", "-c", f'exec "$0" producer.py --count 1 {output}', sys.executable]
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(environment: dict[str, str]) -> None:
    latin = environment | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "producer.py", "--count", "1"], cwd=ROOT, env=latin, capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.startswith(b"? 20")
