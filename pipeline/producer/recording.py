"""Recorded trades, read from a file at the pace at which they happened, or at another.

CSV with the table's column names and JSON lines, gzipped or not, and Parquet: the first bytes tell which, not the name.
Files are streamed, so they may be larger than memory. A trade is valid here if the consumer would store it.
"""

import csv
import gzip
import io
import os
import re
import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, repeat
from operator import itemgetter
from time import monotonic
from typing import cast

import msgspec

from pipeline.command import first_line
from pipeline.producer.pace import MAX, Step
from pipeline.trade import COLUMNS, InvalidTrade, Trade, decode_all, encode, lines_of
from pipeline.user_error import UsageError

LINES_AT_ONCE = 1000  # more would not fit in the cache of the processor, and be a quarter slower
TRADES_AT_ONCE = 500
OVERDUE = 1.0  # seconds' worth of late trades that are sent at once; a longer delay shifts what follows
DAMAGES = (OSError, EOFError, zlib.error, csv.Error, ValueError, NotImplementedError)  # the last two are Parquet's
NOT_A_FORMULA = re.compile(r"^'(?='*[=+\-@\t\r])")  # how the page's CSV keeps spreadsheets from running a text
COMPLAINTS = 20  # how many invalid lines are reported one by one

Record = bytes | Sequence[str | None]  # JSON, or the texts of COLUMNS; none if the line has too few or too many cells


class Recording:
    """An open file of trades, to be read once."""

    def __init__(self, path: str, strict: bool = False) -> None:
        """With `strict` the first invalid line ends the reading. Raises `UsageError`, as `steps` does."""
        self.path = path
        self.finished = False
        self.left_out = 0  # invalid lines
        self._strict = strict
        self._error: UsageError | None = None  # raised when the trades before it are sent
        self._rows = 0  # of a Parquet file
        try:
            self._file = open(path, "rb")  # noqa: SIM115  # until the process ends
            self._size = os.fstat(self._file.fileno()).st_size
            self._records = self._open(self._file)
        except DAMAGES as error:
            raise self._damage(error, 0) from None

    def steps(self, speed: float, count: int, skip: int) -> Iterator[Step]:
        """Yield trades when they are due: in the file's order, the gaps between their times divided by `speed`.

        The first `skip` are left out, `count` are sent. Where the times go back there is no gap.
        """
        began, due, before, share_before = monotonic(), 0.0, float("inf"), 0.0
        for trades, share in self._batches():
            skip, trades = max(0, skip - len(trades)), trades[skip : skip + count]
            dues = [0.0] * len(trades)  # at full speed, nobody asks when a trade happened
            if speed < MAX:
                for number, moment in enumerate(map(_seconds, trades)):
                    due += max(0.0, moment - before) / speed
                    dues[number], before = due, moment
            sent = 0
            while sent < len(trades):
                began = max(began, monotonic() - dues[sent] - OVERDUE)
                now = monotonic() - began
                end = bisect_right(dues, now, sent, min(sent + TRADES_AT_ONCE, len(dues)))
                messages = [(trade.ticker, encode(trade)) for trade in trades[sent:end]]
                share_sent = share_before + (share - share_before) * end / len(trades)
                yield Step(messages, max(0.0, dues[end] - now) if end < len(dues) else 0.0, share_sent)
                sent = end
            yield Step([], share=share)
            share_before = share
            count -= len(trades)
            if not count:
                return
        self.finished = True

    def _batches(self) -> Iterator[tuple[list[Trade], float]]:
        """Yield the valid trades of a thousand lines, and the share of the file that is read with them."""
        line = 0
        while self._error is None:
            records: list[tuple[int, Record]] = []
            try:
                records.extend(islice(self._records, LINES_AT_ONCE))
            except DAMAGES as error:
                self._error = self._damage(error, records[-1][0] if records else line)
            line = records[-1][0] if records else line
            yield self._valid(records), self._share(line)
            if not records:
                break
        if self._error or not line:
            raise self._error or UsageError(f"{self.path}: there are no trades in it")

    def _valid(self, records: list[tuple[int, Record]]) -> list[Trade]:
        """Return the valid trades; an invalid one is searched for by halves, as most batches have none."""
        if not records or self._error:
            return []
        try:
            trades = _trades([record for _, record in records])
            lines_of(trades)  # for what it refuses
        except ValueError as reason:  # InvalidTrade, or no Unicode
            if len(records) == 1:
                self._leave_out(records[0][0], reason)
            middle = len(records) // 2
            return self._valid(records[:middle]) + self._valid(records[middle:]) if middle else []
        return trades

    def _leave_out(self, line: int, reason: ValueError) -> None:
        if self._strict:
            self._error = UsageError(f"{self.path}, line {line}: {reason}")
        elif self.left_out < COMPLAINTS:
            print(f"⚠️  {self.path}, line {line} is left out: {reason}", file=sys.stderr, flush=True)
        self.left_out += 1

    def _share(self, line: int) -> float:
        if self._rows:
            return line / self._rows
        if self._file.closed:  # by the csv module's end
            return 1.0
        return self._file.tell() / self._size if self._size else 0.0

    def _damage(self, error: Exception, line: int) -> UsageError:
        place = f"cannot be read on after line {line}" if line else "cannot be read"
        return UsageError(f"{self.path} {place}: {getattr(error, 'strerror', None) or first_line(error)}")

    def _open(self, file: io.BufferedReader) -> Iterator[tuple[int, Record]]:
        """Return the records, numbered by line from 1."""
        if file.peek(4).startswith(b"PAR1"):
            return self._parquet(file)
        if file.peek(2).startswith(b"\x1f\x8b"):
            file = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
        if not file.peek(1):
            raise UsageError(f"{self.path}: the file is empty")
        if file.peek(1).lstrip().startswith(b"{"):
            return ((number, line) for number, line in enumerate(file, 1) if line.strip())
        reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""))
        header = self._known(next(reader, []))
        cells = itemgetter(*map(header.index, COLUMNS))
        return ((reader.line_num, _unguarded(cells(row)) if len(row) == len(header) else ()) for row in reader if row)

    def _parquet(self, file: io.BufferedReader) -> Iterator[tuple[int, Record]]:
        try:
            import pyarrow.parquet  # comes with Streamlit; takes a quarter of a second
        except ImportError:
            raise UsageError(f"{self.path}: for Parquet, pip install pyarrow") from None
        content = pyarrow.parquet.ParquetFile(file)
        self._known(content.schema_arrow.names)
        self._rows = content.metadata.num_rows
        batches = content.iter_batches(LINES_AT_ONCE, columns=list(COLUMNS))
        texts = ([batch.column(name).cast("string").to_pylist() for name in COLUMNS] for batch in batches)
        return enumerate(chain.from_iterable(zip(*columns, strict=True) for columns in texts), 1)

    def _known(self, columns: list[str]) -> list[str]:
        if missing := [name for name in COLUMNS if name not in columns]:
            raise UsageError(f"{self.path}: there is no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
        return columns


def _unguarded(row: Sequence[str]) -> Sequence[str]:
    """Return the cells as they were before they were kept from being formulas; in a valid trade, only a ticker is."""
    return [NOT_A_FORMULA.sub("", cell) for cell in row] if "'" in row[1] else row


def _trades(records: list[Record]) -> list[Trade]:
    """Return the trades of some records, all at once, which takes half the time."""
    if isinstance(records[0], bytes):
        return decode_all(cast(list[bytes], records))
    if not all(records):
        raise InvalidTrade("it has not as many cells as the first line")
    try:
        return msgspec.convert(list(map(dict, map(zip, repeat(COLUMNS), records))), list[Trade], strict=False)
    except msgspec.ValidationError as error:
        raise InvalidTrade(str(error).replace("$[0]", "$")) from None


def _seconds(trade: Trade) -> float:
    moment = datetime.fromisoformat(trade.timestamp)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
