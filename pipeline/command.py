"""How every command starts, stops and fails.

    if __name__ == "__main__":
        sys.exit(run(parser, main))

A problem that the user can fix is a `UserError`: one line on stderr, and an exit code.
"""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path

from pipeline.settings import Settings, read_settings
from pipeline.stop import take_signals
from pipeline.user_error import UserError

Main = Callable[[argparse.Namespace, Settings], None]


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser whose `--help` is the script's own docstring, followed by the options."""
    return argparse.ArgumentParser(
        prog=name(),
        usage=argparse.SUPPRESS,
        description=documentation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run(parser: argparse.ArgumentParser, main: Main, words: Sequence[str] | None = None) -> int:
    """Run a command: parse `words` (or sys.argv), read the settings, call `main`. Returns the exit code."""
    take_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character gets a question mark
    options = parser.parse_args(words)
    exit_code = 0
    try:
        try:
            settings = read_settings()
            logging.basicConfig(level=settings.log_level, format="%(message)s")
            main(options, settings)
        except UserError as error:
            print(f"{name()}: {error}", file=sys.stderr)
            exit_code = error.exit_code
        print(end="", flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            print(f"{name()}: {error.strerror}", file=sys.stderr)
            return 1
        # As in `python consumer.py | head`, or after the terminal was closed: the reader has seen enough.
    return exit_code


def name() -> str:
    """Return the command's name as the user typed it: consumer.py, or pipeline.maintenance.replay."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).name


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what is wrong; for PostgreSQL, never the statement or its parameters."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def printable(text: str) -> str:
    """Return the text without characters that could tamper with the terminal, wherever it came from."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
