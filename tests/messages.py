"""Messages for the tests: valid trades, invalid ones, mutated ones, and independently what each should become."""

import json
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

FIELDS = ("trade_id", "ticker", "price", "volume", "side", "timestamp")

Row = tuple[str, str, Decimal, int, str, datetime]


def trade(**fields: object) -> bytes:
    """Return a message with a valid trade, with the given fields replaced; None leaves a field out."""
    message = {
        "trade_id": str(uuid4()),
        "ticker": "AAPL",
        "price": 187.25,
        "volume": 100,
        "side": "buy",
        "timestamp": "2026-01-31T08:30:00.123456Z",
    } | fields
    return json.dumps({name: value for name, value in message.items() if value is not None}).encode()


def expected_row(message: bytes) -> Row | None:
    """Return the row that a message should become, or None for a dead letter.

    Written from the contract with only the standard library, so that it shares nothing with the code under test.
    """
    try:
        fields = json.loads(message.decode(), parse_constant=_refuse)
        identity, ticker, price, volume, side, timestamp = (fields[name] for name in FIELDS)
        assert [type(text) for text in (identity, ticker, side, timestamp)] == [str] * 4
        assert re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", identity)
        assert 1 <= len(ticker) <= 10
        assert "\0" not in ticker
        assert ticker.encode()  # raises for a lone surrogate
        assert type(price) in (int, float)
        assert 0 < price <= 99_999_999.99
        assert round(price, 2) == price
        assert type(volume) is int
        assert 0 < volume <= 2_147_483_647
        assert side in ("buy", "sell")
        moment = datetime.fromisoformat(timestamp)
        assert len(timestamp) > len("2026-01-31")
        utc = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
        return str(UUID(identity)), ticker, Decimal(f"{price:.2f}"), volume, side, utc
    except (AssertionError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _utc(form: str) -> Callable[[datetime], str]:
    return lambda moment: moment.strftime(form)


# How producers spell the same trade: the format of the timestamp, and options for `json.dumps`.
SPELLINGS: dict[str, tuple[Callable[[datetime], str], dict[str, Any]]] = {
    "microseconds, Z": (_utc("%Y-%m-%dT%H:%M:%S.%fZ"), {"separators": (",", ":")}),  # our producer
    "json.dumps, isoformat": (datetime.isoformat, {}),  # +00:00, no fraction in a whole second
    "milliseconds, Z": (lambda moment: moment.isoformat(timespec="milliseconds")[:-6] + "Z", {}),  # JavaScript
    "seconds, Z": (_utc("%Y-%m-%dT%H:%M:%SZ"), {}),
    "no offset": (lambda moment: moment.replace(tzinfo=None).isoformat(), {}),
    "a space, no offset": (_utc("%Y-%m-%d %H:%M:%S.%f"), {}),
    "+0000": (_utc("%Y-%m-%dT%H:%M:%S.%f%z"), {}),
    "-00:00": (_utc("%Y-%m-%dT%H:%M:%S-00:00"), {}),
    "a space, +00": (_utc("%Y-%m-%d %H:%M:%S.%f+00"), {}),  # PostgreSQL
    "nanoseconds, Z": (_utc("%Y-%m-%dT%H:%M:%S.%f789Z"), {}),  # Java, Go
    "+05:30": (lambda moment: moment.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(), {}),
    "-05:00, seconds": (lambda moment: moment.astimezone(timezone(timedelta(hours=-5))).strftime("%FT%T%z"), {}),
    "keys sorted": (datetime.isoformat, {"sort_keys": True}),
    "pretty-printed": (datetime.isoformat, {"indent": 2}),
}


def spelled(spelling: str, number: int) -> bytes:
    """Return a valid trade in one of the `SPELLINGS`; `number` sets its id and its time; even ids are upper-case."""
    spell, options = SPELLINGS[spelling]
    moment = datetime(2026, 1, 31, 8, 30, tzinfo=UTC) + timedelta(microseconds=number)
    identity = str(UUID(int=number))
    fields = json.loads(trade(trade_id=identity if number % 2 else identity.upper(), timestamp=spell(moment)))
    return json.dumps(fields | {"venue": "XNAS"}, **options).encode()


STRANGE_VALUES: list[object] = [
    0, -1, 1, 0.01, 0.001, 1e-300, 1e300, 99_999_999.99, 99_999_999.995, 100_000_000, 2**31 - 1, 2**31, 2**63, 10**400,
    100.0, 100.5, True, False, [], {}, [[]], "", "0", "187.25", "buy", "BUY", "sell ", "NaN", "\0", "A\0", "\\N", "\\.",
    "\t", "\n", "\r\n", "a\tb", "ABCDEFGHIJ", "ABCDEFGHIJK", "株式会社", "<script>", "🟢" * 10,
    "2026-01-31", "2026-01-31T08:30", "2026-01-31T08:30:00", "2026-01-31 08:30:00.5",
    "2026-01-31T08:30:00.123456+05:30",
    "2026-W05-6T08:30:00", "2026-02-30T08:30:00.000000Z", "2026-01-31T25:00:00.000000Z", "20260131T083000Z", "now",
    "0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59.999999-10:00", "2026-01-31T08:30:00.000000z", "infinity", "epoch",
    "2026-01-31\t08:30:00.000000Z", "2026-01-31T08:30:00.1234567Z", "2026-01-31T08:30:00,123456Z",
    "2026-01-31T23:59:59.9999999", "2026-01-31\n08:30:00.000000Z",
    "00000000-0000-0000-0000-000000000000", "{00000000-0000-0000-0000-000000000000}", "F" * 36, "-" * 36,
    "FFFFFFFF-FFFF-4FFF-8FFF-FFFFFFFFFFFF", "0000000000000000-0000-0000-000000000",
]  # fmt: skip

BROKEN_BYTES = [
    b"", b" ", b"null", b"[]", b"{}", b"0", b'"', b"{", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", b"not JSON", b"NaN",
    b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'"' + b"x" * 900_000 + b'"',
    trade().replace(b"187.25", b"NaN"), trade().replace(b"187.25", b"1e400"), trade().replace(b"187.25", b"-Infinity"),
    trade().replace(b"187.25", b"187.250000"), trade().replace(b"AAPL", b"\\ud800"),
    trade().replace(b"AAPL", b"\\u0000"),
    trade().replace(b"AAPL", b"A\xc0\xaf"), trade().replace(b"AAPL", b"\\ud83d\\ude80"),
    trade() + b",", trade() + trade(),
    trade().replace(b'"price": 187.25', b'"price": 1, "price": 187.25'), trade()[:-1], b" \n" + trade() + b"\n ",
    trade(extra="x" * 900_000), trade(extra=[[[[1]]]]),
]  # fmt: skip


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """Yield valid trades, trades with a strange value in one field, broken bytes, and trades with replaced bytes."""
    chance = random.Random(seed)
    for _ in range(count):
        kind = chance.random()
        if kind < 0.3:
            yield trade(ticker=chance.choice("ABCDEFG"), price=chance.randrange(1, 10**10) / 100)
        elif kind < 0.8:
            yield trade(**{chance.choice(FIELDS): chance.choice([*STRANGE_VALUES, None])})
        elif kind < 0.85:
            yield chance.choice([broken for broken in BROKEN_BYTES if len(broken) < 10_000])
        else:
            message = bytearray(trade())
            for _ in range(chance.randrange(1, 4)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            yield bytes(message)
