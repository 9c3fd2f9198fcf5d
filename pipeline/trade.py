"""The trade on the wire: one JSON object per Kafka message, and the row that it becomes for COPY.

`sql/001_trades.sql` defines the same trade in storage; a test keeps the two in step.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct, pack
from typing import Annotated, Literal, TypeVar

import msgspec

MAX_PRICE = 99_999_999.99  # NUMERIC(10,2)
MAX_VOLUME = 2_147_483_647  # INTEGER
MAX_TICKER_LENGTH = 10  # VARCHAR(10)
READABLE_RATE = 20  # trades/s up to which a person can read each one


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One executed trade, as it travels through Kafka."""

    trade_id: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]  # a UUID (RFC 9562)
    ticker: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TICKER_LENGTH)]
    price: Annotated[float, msgspec.Meta(gt=0, le=MAX_PRICE)]  # at most two decimals
    volume: Annotated[int, msgspec.Meta(gt=0, le=MAX_VOLUME)]  # shares
    side: Literal["buy", "sell"]  # of the aggressor
    timestamp: str  # ISO-8601; UTC if it has no offset


COLUMNS = Trade.__struct_fields__

encode = msgspec.json.Encoder().encode  # Trade -> bytes
_decode = msgspec.json.Decoder(Trade).decode


class InvalidTrade(ValueError):
    """An invalid message; the text is the reason, fit for a dead letter's header."""


def decode(value: bytes | str | None) -> Trade:
    """Decode one message's value. Raises `InvalidTrade` for anything but JSON in the shape of `Trade`."""
    return decode_all([value])[0]


def decode_all(values: Sequence[bytes | str | None]) -> list[Trade]:
    """Decode many values. Raises `InvalidTrade` if any of them is invalid."""
    try:
        return list(map(_decode, values))  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTrade("the message has no value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidTrade(str(error)) from None


def describe(trade: Trade) -> str:
    """Return one trade as a line for people to read."""
    return f"{trade.timestamp}  {trade.ticker:<5} {trade.side:<4} {trade.volume:>7,} @ {trade.price:,.2f}"


def copy_rows(values: Sequence[bytes | None]) -> list[bytes]:
    """Decode the values of messages and return `rows_of` their trades. Raises `InvalidTrade` if any is invalid."""
    return rows_of(decode_all(values))


def rows_of(trades: Sequence[Trade]) -> list[bytes]:
    """Return each trade as a row of `COPY trades FROM STDIN (FORMAT binary)`, with text in UTF-8.

    A row is the number of its fields, then each field's length in bytes and its value, integers in network byte order:
    https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". PostgreSQL has less to parse than in text
    format, which makes storing a row a sixth cheaper.

    Rules that JSON types cannot express are checked here, too, so that PostgreSQL never meets a value that it would
    refuse, round or shift. Raises `InvalidTrade` if any of the trades is invalid; pass them one by one to learn which.
    """
    trade_ids = _uuids([trade.trade_id for trade in trades])
    timestamps = _microseconds([trade.timestamp for trade in trades])
    return [
        b"".join(
            (
                _ROW,
                trade_id.encode(),
                _TICKERS[trade.ticker],
                _PRICES[trade.price],
                _VOLUME(4, trade.volume),
                _SIDES[trade.side],
                _TIMESTAMP(8, timestamp),
            )
        )
        for trade_id, trade, timestamp in zip(trade_ids, trades, timestamps, strict=True)
    ]


def _uuids(texts: list[str]) -> list[str]:
    """Return the UUIDs in lower case, so that a key is the same however the sender spells it."""
    if _are_uuids(texts):
        return texts
    if not _are_uuids(lowered := [text.lower() for text in texts]):
        wrong = next(text for text in texts if not _are_uuids([text.lower()]))
        raise InvalidTrade(f"trade_id is not a UUID: {wrong!r}")
    return lowered


_TO_SHAPE = bytes.maketrans(b"123456789abcdef", b"0" * 15)


def _are_uuids(texts: list[str]) -> bool:
    """Return whether all are lower-case UUIDs, in one comparison: each is known to be 36 characters long."""
    return "".join(texts).encode().translate(_TO_SHAPE) == b"00000000-0000-0000-0000-000000000000" * len(texts)


_EPOCH, _MICROSECOND = datetime(2000, 1, 1), timedelta(microseconds=1)  # PostgreSQL's


def _microseconds(texts: list[str]) -> list[int]:
    """Return ISO-8601 timestamps in microseconds since PostgreSQL's epoch, truncated; no offset means UTC."""
    try:
        moments = list(map(datetime.fromisoformat, texts))
        zones = {moment.tzinfo for moment in moments}
        if None in zones and min(map(len, texts)) <= len("2026-01-31"):
            raise ValueError("a date without a time")
        if len(zones) > 1 or not zones <= {None, UTC}:
            moments, zones = list(map(in_utc, moments)), {UTC}
        epoch = _EPOCH.replace(tzinfo=next(iter(zones), UTC))
        return [(moment - epoch) // _MICROSECOND for moment in moments]
    except (ValueError, OverflowError) as error:
        raise InvalidTrade(f"timestamp is not ISO-8601: {error}") from None


def in_utc(moment: datetime) -> datetime:
    """Return the same moment in UTC; one without an offset is in UTC already."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4) + value


def _ticker(text: str) -> bytes:
    if "\0" in text:
        raise InvalidTrade("ticker has a NUL character, which PostgreSQL cannot store")
    return _field(text.encode())


def _price(price: float) -> bytes:
    """Return a NUMERIC of three base-10,000 digits, the second of which is the ones, shown with two decimals.

    https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/numeric.c, numeric_recv
    """
    if round(price, 2) != price:
        raise InvalidTrade(f"price has more than two decimals: {price!r}")
    whole, cents = divmod(round(price * 100), 100)
    return _field(pack(">hhHHHHH", 3, 1, 0, 2, *divmod(whole, 10_000), cents * 100))


Value = TypeVar("Value")


class _Fields(dict[Value, bytes]):
    """Caches the field of each value; a hit costs half of one in `functools.lru_cache`. Starts afresh when full."""

    def __init__(self, make: Callable[[Value], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, value: Value) -> bytes:
        if len(self) >= 65_536:
            self.clear()
        field = self[value] = self._make(value)
        return field


_TICKERS, _PRICES = _Fields(_ticker), _Fields(_price)
_SIDES = {side: _field(side.encode()) for side in ("buy", "sell")}
_VOLUME, _TIMESTAMP = Struct(">ii").pack, Struct(">iq").pack  # each with its length
_ROW = pack(">hi", 6, 36)  # number of fields; length of the first, a UUID as text
