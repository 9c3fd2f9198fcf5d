"""How long until rows flow again: until each of the producer's tickers has a row traded after a given moment."""

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime

import psycopg2
from psycopg2.extensions import connection as Connection

TICKERS = 7  # how many producer.py trades
SECONDS_BETWEEN_LOOKS = 0.1

# Counts tickers traded since a moment, using the index on timestamp.
QUERY = "SELECT count(DISTINCT ticker) FROM trades WHERE timestamp >= %s"


class Flow(threading.Thread):
    """Polls the table. Rows flow once every ticker has new ones, and so every partition that the tickers use."""

    def __init__(self, database_url: str) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()
        self.seconds: float | None = None  # from the mark until rows flowed again; None: not yet
        self._database_url = database_url
        self._connection: Connection | None = None
        self._marked = time.monotonic()
        self._since = datetime.now(UTC)

    def mark(self) -> None:
        """Measure from now on: something has just been hit, or has just come back."""
        self._marked, self._since, self.seconds = time.monotonic(), datetime.now(UTC), None
        self._hang_up()  # its server may no longer answer

    def run(self) -> None:
        """Poll the table until stopped."""
        while not self.stopped.wait(SECONDS_BETWEEN_LOOKS):
            if self.seconds is None:
                marked, since = self._marked, self._since
                if self._tickers(since) >= TICKERS and marked == self._marked:
                    self.seconds = time.monotonic() - marked

    def _tickers(self, since: datetime) -> int:
        try:
            if self._connection is None:
                self._connection = psycopg2.connect(self._database_url, connect_timeout=2)
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(QUERY, [since.replace(tzinfo=None)])
                [(count,)] = cursor.fetchall()
                return int(count)
        except psycopg2.Error:
            self._connection = None
            return 0

    def _hang_up(self) -> None:
        """Shut down the connection, even during a query that may never be answered."""
        if self._connection is not None:
            with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(self._connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
