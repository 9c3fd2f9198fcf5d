"""Recorded trades, read from a file at their original pace or any other.

Reads CSV with the table's column names, JSON lines, either of them gzipped, and Parquet, recognized by the first bytes,
not the name. Files are streamed, so they may be larger than memory. A trade is valid if the consumer would store it.
"""

import csv
import gzip
import io
import os
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from select import select
from time import monotonic
from typing import TYPE_CHECKING, cast

import msgspec

from pipeline.command import first_line
from pipeline.producer.pace import MAX, Step
from pipeline.stop import stop_requested
from pipeline.trade import COLUMNS, InvalidTrade, Trade, decode_all, encode, in_utc, rows_of
from pipeline.user_error import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LINES_AT_ONCE = 1000  # more would not fit in the processor's cache and would be a quarter slower
SECONDS_UNNOTICED = 0.1  # how long a stop may go unnoticed
OVERDUE = 1.0  # seconds' worth of late trades sent at once; a longer delay shifts everything that follows
DAMAGES = (OSError, EOFError, zlib.error, csv.Error, ValueError, NotImplementedError)  # the last two are Parquet's
NOT_A_FORMULA = re.compile(r"^'(?='*[=+\-@\t\r])")  # how the dashboard's CSV keeps spreadsheets from running text
COMPLAINTS = 20  # invalid lines that are reported one by one

Record = bytes | dict[str, str]  # JSON, or text by column; empty if the line has too few or too many cells
Records = list[tuple[int, Record]]  # numbered by line, from 1


class Recording:
    """An open file of trades, to be read once."""

    def __init__(self, path: str, strict: bool = False) -> None:
        """Open the file; with `strict`, the first invalid line ends reading. Raises `UsageError`, as `steps` does."""
        self.path = path
        self.finished = False
        self.left_out = 0  # invalid lines
        self._strict = strict
        self._size = self._rows = 0  # the file's bytes; the rows of a Parquet file, which is not read sequentially
        batches = self._read()
        self._batches = chain([next(batches)], batches)  # an unreadable file fails at once

    def steps(self, speed: float, count: int, skip: int) -> Iterator[Step]:
        """Yield trades when they are due: in the file's order, with the gaps between them divided by `speed`.

        Skip the first `skip`, then send `count`. A trade that is older than one before it is sent at once.
        """
        began, due, latest, share_before = monotonic(), 0.0, float("inf"), 0.0
        for trades, share in ((trades, share) for records, share in self._batches for trades in self._valid(records)):
            skip, trades = max(0, skip - len(trades)), trades[skip : skip + count]
            messages: list[tuple[str, str]] = []
            for number, trade in enumerate(trades):
                if speed < MAX:  # at full speed, timestamps do not matter
                    moment = in_utc(datetime.fromisoformat(trade.timestamp)).timestamp()
                    due += max(0.0, moment - latest) / speed
                    latest = moment if latest == float("inf") else max(latest, moment)
                    began = max(began, monotonic() - due - OVERDUE)
                    while (wait := began + due - monotonic()) > 0:
                        yield Step(messages, wait, share_before + (share - share_before) * number / len(trades))
                        messages = []
                messages.append((trade.ticker, encode(trade).decode()))
            yield Step(messages, share=share)
            share_before = share
            count -= len(trades)
            if not count:
                return
        self.finished = True

    def _valid(self, records: Records) -> Iterator[list[Trade]]:
        """Yield the valid trades; an invalid one is found by bisection, as most batches have none."""
        try:
            trades = _trades([record for _, record in records])
            rows_of(trades)  # for the checks it makes
        except ValueError as reason:  # InvalidTrade, or text that is not Unicode
            if middle := len(records) // 2:
                yield from self._valid(records[:middle])
                yield from self._valid(records[middle:])
                return
            trades = []
            self._leave_out(records[0][0], reason)
        yield trades

    def _leave_out(self, line: int, reason: ValueError) -> None:
        if self._strict:
            raise UsageError(f"{self.path}, line {line}: {reason}") from None
        self.left_out += 1
        if self.left_out <= COMPLAINTS:
            print(f"⚠️  {self.path}, line {line} is skipped: {reason}", file=sys.stderr, flush=True)

    def _share(self, line: int) -> float:
        if self._rows:
            return line / self._rows
        return min(1.0, self._file.tell() / self._size) if self._size else 0.0

    def _read(self) -> Iterator[tuple[Records, float]]:
        """Yield batches of records, each with the share of the file that has been read by then.

        Raises `UsageError` for a damaged file or one without trades.
        """
        records: Records = []
        line = 0
        try:
            # Open until the process ends.
            self._file: io.BufferedReader = io.BufferedReader(_Stoppable(self.path, opener=_open_at_once))
            self._size = os.fstat(self._file.fileno()).st_size
            for line, record in self._open(self._file):
                records.append((line, record))
                if len(records) == LINES_AT_ONCE:
                    yield records, self._share(line)
                    records.clear()  # already used; two batches would not fit in the cache
        except DAMAGES as error:
            if stop_requested():
                yield [], 1.0
                return
            if line:
                yield records, 1.0  # trades before the damage are still sent
            place = f"cannot be read beyond line {line}" if line else "cannot be read"
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UsageError(f"{self.path} {place}: {reason}") from None
        if not line:
            raise UsageError(f"{self.path}: it contains no trades")
        yield records, 1.0

    def _open(self, file: io.BufferedReader) -> Iterator[tuple[int, Record]]:
        if file.peek(4).startswith(b"PAR1"):
            return self._parquet(file)
        if file.peek(2).startswith(b"\x1f\x8b"):
            file = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
        if file.peek(3).startswith(BOM_UTF8):
            file.read(len(BOM_UTF8))
        if file.peek(1).lstrip().startswith(b"["):
            raise UsageError(f"{self.path}: it is a JSON array; give one JSON object per line")
        if file.peek(1).lstrip().startswith(b"{"):
            return ((number, line) for number, line in enumerate(file, 1) if line.strip())
        return self._csv(file)

    def _csv(self, file: io.BufferedReader) -> Iterator[tuple[int, Record]]:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""), strict=True)
        rows = filter(None, _rows(reader))
        header = self._known(next(rows, []))
        for row in rows:
            record = dict(zip(header, row, strict=True)) if len(row) == len(header) else {}
            if record and record["ticker"].startswith("'"):
                record["ticker"] = NOT_A_FORMULA.sub("", record["ticker"])
            yield reader.line_num, record

    def _parquet(self, file: io.BufferedReader) -> Iterator[tuple[int, Record]]:
        import pyarrow.parquet  # imported only when needed: it takes a quarter of a second

        content = pyarrow.parquet.ParquetFile(file)
        self._known(content.schema_arrow.names)
        self._rows = content.metadata.num_rows
        texts = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        batches = content.iter_batches(LINES_AT_ONCE, columns=list(COLUMNS))
        return enumerate(chain.from_iterable(batch.select(COLUMNS).cast(texts).to_pylist() for batch in batches), 1)

    def _known(self, columns: list[str]) -> list[str]:
        if not columns:
            raise UsageError(f"{self.path}: the file is empty")
        if twice := [name for name in COLUMNS if columns.count(name) > 1]:
            raise UsageError(f"{self.path}: the column {', '.join(twice)} is there twice")
        if missing := [name for name in COLUMNS if name not in columns]:
            raise UsageError(f"{self.path}: the column {', '.join(missing)} is missing; it needs {', '.join(COLUMNS)}")
        return columns


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the rows of a CSV reader; one whose quotes are wrong has a single cell, and reading goes on after it."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # an open quote, which has swallowed all that follows
                raise
            yield [""]


class _Stoppable(io.FileIO):
    """A file whose reading ends when the user asks to stop, although it may be a pipe that nobody writes to."""

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        while not stop_requested():
            if select([self], [], [], SECONDS_UNNOTICED)[0]:
                return super().readinto(buffer)
        raise OSError("stopped")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would have to be opened by its writer first


def _trades(records: list[Record]) -> list[Trade]:
    """Convert records to trades, all at once, which takes half the time."""
    if not all(records):
        raise InvalidTrade("it does not have as many cells as the header")
    try:
        if records and isinstance(records[0], dict):
            return msgspec.convert(records, list[Trade], strict=False)
        return decode_all(cast(list[bytes], records))
    except msgspec.ValidationError as error:
        raise InvalidTrade(str(error).replace("$[0]", "$")) from None
