"""The benchmarks run: small, to check their output, not their figures."""

import os
import re
from pathlib import Path

import pytest

from benchmarks import dashboard, producer
from tests.live_page import CHROMIUM, NO_CHROMIUM
from tests.script import Script
from tests.services import Kafka


def run(*words: str, timeout: float = 100) -> str:
    script = Script(["-m", *words], dict(os.environ))
    try:
        assert script.wait(timeout) == 0, script.stderr
    finally:
        script.process.terminate()  # also stops the servers it started
        script.process.wait()
    return script.stdout


def first_column(output: str) -> list[str]:
    table = [line for line in output.splitlines() if line.startswith("|")]
    return [line.split("|")[1].strip() for line in table[2:]]


def test_sink_compares_the_consumer_with_the_limit_in_every_spelling_and_checks_the_rows() -> None:
    options = ("--systems", "copy,consumer", "--spelling", "ours,local,mixed", "--partitions", "2")
    output = run("benchmarks.sink", "--trades", "3000", "--rounds", "1", *options)
    limit = "psql \\copy (the limit)"
    systems = [limit, "consumer.py", "consumer.py", "consumer.py", f"{limit}, rows as stored from 2 partitions"]
    assert first_column(output) == systems
    assert "consumer.py local-2:" in output


def test_sink_names_what_it_can_compare() -> None:
    script = Script(["-m", "benchmarks.sink", "--systems", "copy,nothing"], dict(os.environ))
    assert script.wait() == 2
    assert "no nothing: choose from copy,consumer" in script.stderr


def test_latency_prints_percentiles_for_every_rate() -> None:
    output = run("benchmarks.latency", "--rate", "200,400", "--seconds", "1")
    assert "p99" in output
    assert first_column(output) == ["200 trades/s", "400 trades/s"]


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
@pytest.mark.timeout(300)  # two servers, three scripts and a browser have to start
def test_latency_prints_how_long_a_trade_takes_to_the_screen() -> None:
    output = run("benchmarks.latency", "--screen", "1", "--seconds", "3", timeout=270)
    assert first_column(output) == ["50 trades/s, refreshed every 1 s"]
    seen, median = (float(cell.replace(",", "")) for cell in output.splitlines()[-1].split("|")[2:4])
    assert seen > 50
    assert 0 < median < 60_000  # milliseconds, on a machine busy with other tests


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_memory_reads_every_process_and_draws_the_curve(tmp_path: Path) -> None:
    readings, picture = tmp_path / "memory.csv", tmp_path / "memory.png"
    files = ("--csv", str(readings), "--picture", str(picture))
    output = run("benchmarks.memory", "--minutes", "0.05", "--every", "0.3", "--rate", "200", *files)
    processes = ["producer.py", "consumer.py", "dashboard.py", "Kafka", "PostgreSQL"]
    assert first_column(output) == processes
    assert readings.read_text().splitlines()[0].split(",") == ["minutes", *processes]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_producer_compares_itself_with_a_bare_loop(own_broker: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "SECONDS_OF_PACE", 0.2)
    speed = producer.full_speed(own_broker.bootstrap_servers, 2000)
    assert speed > 0
    assert producer.bare_loop(own_broker.bootstrap_servers, 2000) > 0
    kept, least, most = producer.pace(own_broker.bootstrap_servers, 1000)
    assert 0 < least <= most  # how near to 1 is no matter of a test, on a machine busy with others
    assert kept > 0
    used, before, after = producer.upkeep(own_broker.bootstrap_servers, "1000", 0.2)
    assert used >= 0
    assert 10 < before <= after + 10


def test_dashboard_counts_queries_and_times_ticks(capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.measure(dashboard.options_parser().parse_args(["--rows", "1000", "--seconds", "6", "--viewers", "2"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("latest 200 trades, of 200 rows: ")
    assert lines[2].startswith("latest 200 trades, of 1,000 rows: ")
    assert lines[3].startswith("candles: ")
    [asked] = re.findall(r" 2 viewers: .* per interval ([\d.]+) queries for the latest trades", lines[4])
    assert 0 < float(asked) <= 2, "two viewers share the queries"


def test_retention_prints_what_pruning_costs_others() -> None:
    output = run("benchmarks.retention", "--rows", "20000", "--rounds", "1", "--seconds", "1")
    assert " 0 trades/s pruned" not in output
    assert first_column(output) == ["alone", "during pruning", "during the vacuum after it"]
