"""Recordings: every format, whatever is wrong with a file, the pace, and the round trip through the table."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import psutil
import pytest

import producer
from pipeline.command import run
from pipeline.dashboard.snapshot import as_csv as as_pages_csv
from pipeline.dashboard.snapshot import as_trades
from pipeline.producer import recording
from pipeline.producer.market import SESSION
from pipeline.producer.recording import Recording
from pipeline.trade import COLUMNS, decode
from pipeline.user_error import UsageError
from tests.conftest import RunScript
from tests.messages import FIELDS, expected_row, mutations, trade
from tests.recorded_day import PATH, TRADES, recorded_day
from tests.services import Database, KafkaClient, eventually

FLAT_OUT = 1e9
MICROSECOND = 1e-6


def made(count: int, **fields: object) -> list[dict[str, object]]:
    """Return `count` trades, a tenth of a second apart."""
    stamps = (f"2026-01-31T08:{number // 600:02}:{number // 10 % 60:02}.{number % 10}00007Z" for number in range(count))
    return [json.loads(trade(timestamp=stamp, **fields)) for stamp in stamps]


def csv_text(rows: list[dict[str, object]], columns: tuple[str, ...] = FIELDS) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def sent(path: Path, *, strict: bool = False, count: int = sys.maxsize, skip: int = 0) -> list[dict[str, object]]:
    steps = Recording(str(path), strict).steps(FLAT_OUT, count, skip)
    return [json.loads(message) for step in steps for _, message in step.trades]


def as_csv(rows: list[dict[str, object]], path: Path) -> None:
    path.write_text(csv_text(rows))


def as_reordered_csv(rows: list[dict[str, object]], path: Path) -> None:
    """Write CSV with Excel's byte-order mark and line endings, and an extra column."""
    columns = ("note", "price", "side", "timestamp", "trade_id", "volume", "ticker")
    path.write_text(csv_text(rows, columns), encoding="utf-8-sig")


def as_csv_gz(rows: list[dict[str, object]], path: Path) -> None:
    path.write_bytes(gzip.compress(csv_text(rows).encode()))


def as_jsonl(rows: list[dict[str, object]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_jsonl_gz(rows: list[dict[str, object]], path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode("utf-8-sig")))  # as Windows programs do


def as_parquet(rows: list[dict[str, object]], path: Path) -> None:
    frame = pd.DataFrame(rows)
    frame["timestamp"] = pd.to_datetime(frame["timestamp"])
    frame["ticker"] = frame["ticker"].astype("category")
    frame.to_parquet(path, row_group_size=70)


Writer = Callable[[list[dict[str, object]], Path], None]
every_format = pytest.mark.parametrize(
    "write", [as_csv, as_reordered_csv, as_csv_gz, as_jsonl, as_jsonl_gz, as_parquet], ids=lambda write: write.__name__
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LINES_AT_ONCE", 100)


@every_format
def test_every_format_holds_the_same_trades(write: Writer, tmp_path: Path) -> None:
    rows = made(345)
    write(rows, tmp_path / "trades")
    got = sent(tmp_path / "trades")
    assert [expected_row(json.dumps(row).encode()) for row in got] == [
        expected_row(json.dumps(row).encode()) for row in rows
    ]


@every_format
@pytest.mark.parametrize(("skip", "count"), [(0, 1), (3, 7), (99, 2), (100, 101), (290, 9_999), (300, 1)])
def test_what_is_skipped_and_where_it_ends(write: Writer, skip: int, count: int, tmp_path: Path) -> None:
    rows = made(300)
    write(rows, tmp_path / "trades")
    ids = [row["trade_id"] for row in sent(tmp_path / "trades", skip=skip, count=count)]
    assert ids == [row["trade_id"] for row in rows[skip : skip + count]]


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_left_out_is_what_the_consumer_would_not_store(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "COMPLAINTS", sys.maxsize)
    messages = [message for message in mutations(seed, 1500) if b"\n" not in message and message.strip()]
    messages[0] = trade()
    path = tmp_path / "trades.jsonl"
    path.write_bytes(b"\n".join(messages))
    got = [decode(json.dumps(row).encode()) for row in sent(path)]
    assert [expected_row(json.dumps({name: getattr(one, name) for name in COLUMNS}).encode()) for one in got] == [
        row for row in map(expected_row, messages) if row
    ]
    reported = [int(line.split(" line ")[1].split()[0]) for line in capsys.readouterr().err.splitlines()]
    assert reported == [number for number, message in enumerate(messages, 1) if not expected_row(message)]


def test_the_numbers_of_bad_lines_are_an_editors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, quoted, bad, short = made(1)[0], made(1, ticker="A\nB")[0], made(1, price="1.234")[0], "too,short\n"
    path = tmp_path / "trades.csv"
    path.write_text(csv_text([good, quoted, bad]) + "\n" + short + csv_text([good]).partition("\n")[2])
    assert [row["ticker"] for row in sent(path)] == ["AAPL", "A\nB", "AAPL"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" line ")[1].split()[0] for line in lines] == ["5", "7"]
    assert "decimals" in lines[0]
    assert "cells" in lines[1]


def test_a_line_whose_quotes_are_wrong_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, first, second = csv_text(made(2)).splitlines()
    (tmp_path / "trades.csv").write_text("\n".join([header, first, '"x" ,"y"' + first, second, ""]))
    assert len(sent(tmp_path / "trades.csv")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "line 3 is skipped" in line


def test_blank_lines_are_no_trades(tmp_path: Path) -> None:
    (tmp_path / "trades").write_text("\n\n" + csv_text(made(3)).replace("\n", "\n\n"))
    assert len(sent(tmp_path / "trades", strict=True)) == 3


def test_a_file_of_something_else_is_not_a_flood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trades.jsonl"
    path.write_text('{"a": 1}\n' * 500)
    assert sent(path) == []
    assert len(capsys.readouterr().err.splitlines()) == recording.COMPLAINTS


@pytest.mark.parametrize("bad", [1, 2, 99, 100, 101, 250])
def test_strict_ends_at_the_first_bad_line_after_all_before_it(bad: int, tmp_path: Path) -> None:
    rows = made(250)
    rows[bad - 1]["side"] = "held"
    as_jsonl(rows, tmp_path / "trades")
    steps = Recording(str(tmp_path / "trades"), strict=True).steps(FLAT_OUT, sys.maxsize, 0)
    got: list[str] = []

    def read() -> None:
        for step in steps:
            got.extend(json.loads(message)["trade_id"] for _, message in step.trades)

    with pytest.raises(UsageError, match=f"line {bad}: .*side"):
        read()
    assert got == [row["trade_id"] for row in rows[: bad - 1]]


def broken(name: str, path: Path) -> None:
    text = csv_text(made(900)).encode()
    packed = gzip.compress(text)
    if name == "directory":
        path.mkdir()
    elif name != "missing":
        contents = {
            "empty": b"",
            "empty gzip": gzip.compress(b""),
            "only a header": text.splitlines()[0],
            "no side": text.replace(b"side", b"page"),
            "headless": text.partition(b"\n")[2],
            "truncated gzip": packed[: len(packed) // 2],
            "damaged gzip": packed[:900] + b"damage" + packed[900:],
            "gzip in name only": b"\x1f\x8b nothing",
            "parquet in name only": b"PAR1 nothing",
            "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 99,
            "an endless cell": text + b'"' + b"x," * 200_000,
            "an open quote": text + b'"' + text.partition(b"\n")[2],
            "a column twice": b"price," + text.replace(b"\n", b"\n1,"),
            "a JSON array": b'[{"trade_id": ""}]',
        }
        path.write_bytes(contents[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "No such file"),
        ("directory", "directory"),
        ("empty", "empty"),
        ("empty gzip", "empty"),
        ("only a header", "no trades"),
        ("no side", "the column side is missing"),
        ("headless", "the column .* is missing"),
        ("truncated gzip", "ended before"),
        ("damaged gzip", "cannot be read"),
        ("gzip in name only", "cannot be read"),
        ("parquet in name only", "cannot be read"),
        ("a picture", "the column .* is missing"),
        ("an endless cell", "beyond line 901: field larger"),
        ("an open quote", "beyond line 901: unexpected end"),
        ("a column twice", "the column price is there twice"),
        ("a JSON array", "one JSON object per line"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(name: str, said: str, tmp_path: Path) -> None:
    broken(name, tmp_path / "trades.csv")
    with pytest.raises(UsageError, match=said) as error:
        sent(tmp_path / "trades.csv")
    assert "trades.csv" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


class Clock:
    """Time that passes only while the producer waits."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(recording, "monotonic", lambda: fake.now)
    return fake


def played(path: Path, speed: float, clock: Clock, stall: float = 0) -> list[float]:
    """Return the seconds after which each trade is sent; Kafka stalls once, for `stall` seconds, after the tenth."""
    began, moments = clock.now, []
    for step in Recording(str(path)).steps(speed, sys.maxsize, 0):
        moments += [clock.now - began] * len(step.trades)
        clock.now += step.seconds + MICROSECOND
        if stall and len(moments) >= 10:
            clock.now += stall
            stall = 0
    return moments


@pytest.mark.parametrize("speed", [1, 0.5, 10])
def test_the_gaps_are_the_files(speed: float, clock: Clock, tmp_path: Path) -> None:
    as_csv(made(300), tmp_path / "trades")
    moments = played(tmp_path / "trades", speed, clock)
    assert moments == pytest.approx([number / 10 / speed for number in range(300)], abs=0.001)


def test_at_full_speed_there_are_none(clock: Clock, tmp_path: Path) -> None:
    as_csv(made(1000), tmp_path / "trades")
    assert max(played(tmp_path / "trades", FLAT_OUT, clock)) < 0.001


def test_trades_out_of_order_take_no_longer(clock: Clock, tmp_path: Path) -> None:
    rows = made(200)
    as_csv([*rows[0::2], *rows[1::2]], tmp_path / "trades")  # as exported one partition after another
    assert played(tmp_path / "trades", 1, clock)[-1] == pytest.approx(19.9, abs=0.001)


def test_after_a_stall_the_pace_is_kept_and_nothing_is_lost(clock: Clock, tmp_path: Path) -> None:
    as_csv(made(100), tmp_path / "trades")
    moments = played(tmp_path / "trades", 1, clock, stall=60)
    assert len(moments) == 100
    assert moments[-1] == pytest.approx(9.9 + 60 - recording.OVERDUE, abs=0.2)
    assert sum(later - earlier < 0.05 for earlier, later in pairwise(moments)) <= 12


def test_the_share_grows_to_the_whole(clock: Clock, tmp_path: Path) -> None:
    as_csv_gz(made(100), tmp_path / "trades")
    shares = []
    for step in Recording(str(tmp_path / "trades")).steps(1, sys.maxsize, 0):
        shares.append(step.share)
        clock.now += step.seconds + MICROSECOND
    assert shares == sorted(shares)
    assert shares[0] < 0.02
    assert 0.4 < shares[len(shares) // 2] < 0.6
    assert shares[-1] == 1


def test_the_recorded_day_is_what_the_market_makes(clock: Clock) -> None:
    assert gzip.decompress(PATH.read_bytes()).decode() == recorded_day()
    moments = played(PATH, 60, clock)
    assert len(moments) == TRADES
    assert moments[-1] == pytest.approx(SESSION / 60, rel=0.01)


# -- the script, with real servers


def test_the_round_trip_is_exact(
    broker: KafkaClient, database: Database, topic: str, tmp_path: Path, run_script: RunScript
) -> None:
    """Trades → table → CSV as written by psql and by the page's button → replay into an empty table."""
    made_ = run_script("producer.py", "--rate", "max", "--count", "3000")
    assert made_.wait() == 0
    odd = made(4, ticker='"A,B"') + made(1, ticker="=SUM(A1)", price=99_999_999.99, volume=2**31 - 1, side="sell")
    broker.produce(topic, [json.dumps(row).encode() for row in odd])
    consumer = run_script("consumer.py", "--from-beginning")
    eventually(lambda: database.count() == 3005)
    rows = "SELECT * FROM trades ORDER BY timestamp, trade_id"
    recorded = database.query(rows)
    for name in ("psql.csv", "page.csv"):
        path = tmp_path / name
        if name == "psql.csv":
            with database.connect() as connection, connection.cursor() as cursor, path.open("w") as file:
                cursor.copy_expert(f"COPY ({rows}) TO STDOUT (FORMAT csv, HEADER)", file)
        else:
            path.write_text(as_pages_csv(as_trades(recorded[::-1])), newline="")
        database.query("TRUNCATE trades")
        for _ in range(2):  # the second time duplicates nothing
            script = run_script("producer.py", "--replay", str(path), "--speed", "max")
            assert script.wait() == 0
            assert "3,005 trades acknowledged" in script.stdout
        eventually(lambda: database.count() == 3005)
        eventually(lambda: broker.lag(topic, f"group-{topic}") == 0)
        assert database.query(rows) == recorded
    assert consumer.stop() == 0


def test_now_gives_new_ids_and_the_time_of_sending(
    broker: KafkaClient, topic: str, tmp_path: Path, run_script: RunScript
) -> None:
    old = made(500, ticker="OLD")
    as_csv(old, tmp_path / "trades.csv")
    script = run_script("producer.py", "--replay", str(tmp_path / "trades.csv"), "--speed", "max", "--now")
    assert script.wait() == 0
    new = [json.loads(message.value() or b"") for message in broker.read(topic)]
    assert len({row["trade_id"] for row in new} - {row["trade_id"] for row in old}) == 500
    assert [row["timestamp"] for row in new] == sorted(row["timestamp"] for row in new)
    assert new[0]["timestamp"] > "2026-02"
    assert {row["ticker"] for row in new} == {"OLD"}


def test_a_stop_says_how_to_go_on_and_nothing_is_missing(
    broker: KafkaClient, topic: str, tmp_path: Path, run_script: RunScript
) -> None:
    rows = made(3000)
    path = tmp_path / "my trades.csv"
    as_csv(rows, path)
    script = run_script("producer.py", "--replay", str(path), "--speed", "100")
    script.wait_for_line("% of")
    assert script.stop() == 0
    hint = script.stdout.splitlines()[-1]
    assert f"--replay '{path}' --skip " in hint
    script = run_script("producer.py", "--replay", str(path), "--speed", "max", "--skip", hint.split()[-1])
    assert script.wait() == 0
    assert "--skip" not in script.stdout
    ids = [json.loads(message.value() or b"")["trade_id"] for message in broker.read(topic)]
    assert ids == [row["trade_id"] for row in rows]


@pytest.mark.parametrize("lines", [0, 5])
def test_a_pipe_is_replayed_and_waiting_for_it_can_be_stopped(
    lines: int, broker: KafkaClient, topic: str, tmp_path: Path, run_script: RunScript
) -> None:
    os.mkfifo(tmp_path / "pipe")
    script = run_script("producer.py", "--replay", str(tmp_path / "pipe"))
    eventually(lambda: script.takes_signals)
    if lines:
        with (tmp_path / "pipe").open("w") as pipe:
            pipe.write("".join(json.dumps(row) + "\n" for row in made(lines)))
    else:
        assert script.stop() == 0
    assert script.wait() == 0
    assert script.stderr == ""
    assert len(broker.read(topic)) == lines


def test_a_pipe_without_trades_or_end_can_be_stopped(tmp_path: Path, run_script: RunScript) -> None:
    os.mkfifo(tmp_path / "pipe")
    script = run_script("producer.py", "--replay", str(tmp_path / "pipe"))
    with subprocess.Popen(["sh", "-c", 'exec yes "" > "$0"', str(tmp_path / "pipe")]) as writer:
        try:
            eventually(lambda: psutil.Process(writer.pid).name() == "yes")  # once the script has opened the pipe
            assert script.stop() == 0
        finally:
            writer.kill()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--replay", "nowhere.csv"), "nowhere.csv"),
        (("--replay", ""), "No such file"),  # as from an empty variable
        (("--replay", "x", "--rate", "5"), "not allowed with"),
        (("--replay", "x", "--speed", "fast"), "fast"),
        (("--skip", "-1"), "-1"),
        (("--speed", "10"), "--replay"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["producer.py", *words])
    monkeypatch.setattr("pipeline.command.take_signals", lambda: None)  # they are pytest's
    try:
        code: object = run(producer.options(), producer.main)
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert said in error
