"""The trade on the wire: one JSON object per Kafka message, and the row that COPY stores it from.

The same trade in storage is `sql/001_trades.sql`; a test holds the two together.
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
    """One executed trade, as it travels."""

    trade_id: Annotated[str, msgspec.Meta(min_length=36, max_length=36)]  # a UUID (RFC 9562)
    ticker: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TICKER_LENGTH)]
    price: Annotated[float, msgspec.Meta(gt=0, le=MAX_PRICE)]  # at most two decimals
    volume: Annotated[int, msgspec.Meta(gt=0, le=MAX_VOLUME)]  # shares
    side: Literal["buy", "sell"]  # of the aggressor
    timestamp: str  # ISO-8601; UTC where it names no offset


COLUMNS = Trade.__struct_fields__

encode = msgspec.json.Encoder().encode  # Trade -> bytes
_decode = msgspec.json.Decoder(Trade).decode


class InvalidTrade(ValueError):
    """A message that is not a trade; its text is the reason, fit for a dead letter's header."""


def decode(value: bytes | str | None) -> Trade:
    """Decode one message's value. Raises `InvalidTrade` for anything that is not JSON of the event's shape."""
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
    """Return one trade as a person reads it."""
    return f"{trade.timestamp}  {trade.ticker:<5} {trade.side:<4} {trade.volume:>7,} @ {trade.price:,.2f}"


def copy_rows(values: Sequence[bytes | None]) -> list[bytes]:
    """Return `rows_of` the trades in the messages' values. Raises `InvalidTrade` as that does."""
    return rows_of(decode_all(values))


def rows_of(trades: Sequence[Trade]) -> list[bytes]:
    """Return each trade as a row of `COPY trades FROM STDIN (FORMAT binary)`, its texts in UTF-8.

    A row is the number of its fields, then each field's length in bytes and its value, integers in network order:
    https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". PostgreSQL has less to read in it than in
    text, which makes storing a row a sixth cheaper.

    What JSON types cannot express is checked here too, so that PostgreSQL never meets a value that it would refuse,
    round or shift. Raises `InvalidTrade` if any of the trades is invalid; give them one by one to learn which.
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
    """Return UUIDs in lower case: one key, however the sender spells it."""
    if _are_uuids(texts):
        return texts
    if not _are_uuids(lowered := [text.lower() for text in texts]):
        wrong = next(text for text in texts if not _are_uuids([text.lower()]))
        raise InvalidTrade(f"trade_id is not a UUID: {wrong!r}")
    return lowered


_TO_SHAPE = bytes.maketrans(b"123456789abcdef", b"0" * 15)


def _are_uuids(texts: list[str]) -> bool:
    """Tell whether all are lower-case UUIDs, at once: each is known to be 36 characters long."""
    return "".join(texts).encode().translate(_TO_SHAPE) == b"00000000-0000-0000-0000-000000000000" * len(texts)


_EPOCH, _MICROSECOND = datetime(2000, 1, 1), timedelta(microseconds=1)  # PostgreSQL's


def _microseconds(texts: list[str]) -> list[int]:
    """Return ISO-8601 timestamps as PostgreSQL counts them; what is finer is cut off, and no offset means UTC."""
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
    """Return the same moment in UTC, which is also what one without an offset is in."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4) + value


def _ticker(text: str) -> bytes:
    if "\0" in text:
        raise InvalidTrade("ticker has a NUL character, which PostgreSQL cannot store")
    return _field(text.encode())


def _price(price: float) -> bytes:
    """Return a NUMERIC: three digits to the base 10,000, the second of them the ones, and two decimals to show.

    https://github.com/postgres/postgres/blob/REL_18_STABLE/src/backend/utils/adt/numeric.c, numeric_recv
    """
    if round(price, 2) != price:
        raise InvalidTrade(f"price has more than two decimals: {price!r}")
    whole, cents = divmod(round(price * 100), 100)
    return _field(pack(">hhHHHHH", 3, 1, 0, 2, *divmod(whole, 10_000), cents * 100))


Value = TypeVar("Value")


class _Fields(dict[Value, bytes]):
    """Remembers the field of each value: `functools.lru_cache` at half the cost of a hit; starts again when full."""

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
_VOLUME, _TIMESTAMP = Struct(">ii").pack, Struct(">iq").pack  # with their lengths
_ROW = pack(">hi", 6, 36)  # fields; bytes of the first, a UUID as text
