"""PostgreSQL before the first row: a server that stops answering is noticed."""

import signal
from contextlib import closing

import psycopg2
import pytest

from pipeline.postgres import connect, watched
from tests.services import Postgres


def test_a_statement_ends_when_its_server_freezes(own_postgres: Postgres) -> None:
    with closing(connect(own_postgres.url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        processes = own_postgres.processes()
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            with watched(own_postgres.url, connection), pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 2")
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
