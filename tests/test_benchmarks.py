"""The benchmarks run: small, for their output and not for their figures."""

import os

from tests.services import Script


def run(*words: str) -> str:
    script = Script(["-m", *words], dict(os.environ))
    try:
        assert script.wait(timeout=90) == 0, script.stderr
    finally:
        script.kill()
    return script.stdout


def test_sink_compares_the_consumer_with_the_limit_and_checks_the_rows() -> None:
    output = run("benchmarks.sink", "--systems", "copy,consumer,insert", "--trades", "3000", "--rounds", "1")
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "psql \\copy (the limit)",
        "consumer.py",
        "one INSERT and commit per message",
    ]


def test_latency_prints_percentiles_of_every_trade_after_the_first_second() -> None:
    output = run("benchmarks.latency", "--rate", "200", "--seconds", "2")
    assert "p50" in output
    assert "p99" in output
    assert output.splitlines()[-1].startswith("| milliseconds |")


def test_retention_prints_what_pruning_costs_others() -> None:
    output = run("benchmarks.retention", "--rows", "20000", "--rounds", "1", "--seconds", "1")
    assert " 0 trades/s pruned" not in output
    assert [line.split("|")[1].strip() for line in output.splitlines()[-3:]] == [
        "alone",
        "beside pruning",
        "beside the vacuum after it",
    ]
