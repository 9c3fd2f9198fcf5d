"""The trade on the wire: one JSON object per Kafka message, and the line that COPY stores it from.

The same trade in storage is `sql/001_trades.sql`; a test holds the two together.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
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


def copy_lines(values: Sequence[bytes | None]) -> bytes:
    """Return `lines_of` the trades in the messages' values. Raises `InvalidTrade` as that does."""
    return lines_of(decode_all(values))


def lines_of(trades: Sequence[Trade]) -> bytes:
    """Return a line of `COPY trades FROM STDIN` (text format, UTF-8) for each trade.

    What JSON types cannot express is checked here too, so that PostgreSQL never meets a value that it would refuse,
    round or shift. Raises `InvalidTrade` if any of the trades is invalid; give them one by one to learn which.
    """
    trade_ids = _uuids([trade.trade_id for trade in trades])
    timestamps = _in_utc([trade.timestamp for trade in trades])
    lines = [
        f"{trade_id}\t{_SYMBOLS[trade.ticker]}\t{_PRICES[trade.price]}\t{trade.volume}\t{trade.side}\t{timestamp}\n"
        for trade_id, trade, timestamp in zip(trade_ids, trades, timestamps, strict=True)
    ]
    return "".join(lines).encode()


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


# ISO-8601 that PostgreSQL reads as we do: microseconds at most (finer digits apart), and a zero offset or none, since
# it ignores the offset of a plain TIMESTAMP.
_PLAIN = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?)(\d*)(Z|[+-]00(:?00)?)?", re.ASCII)


def _in_utc(texts: list[str]) -> list[str]:
    """Return ISO-8601 timestamps as PostgreSQL reads them. A batch has few shapes, so those are what is looked at."""
    try:
        moments = list(map(datetime.fromisoformat, texts))
        shapes = set("\n".join(texts).encode().translate(_TO_SHAPE).decode().split("\n"))
        are_plain = all(match and not match[2] for match in map(_PLAIN.fullmatch, shapes))
        if are_plain and {moment.tzinfo for moment in moments} <= {None, UTC}:
            return texts
        return list(map(_rewritten, texts, moments))
    except (ValueError, OverflowError) as error:
        raise InvalidTrade(f"timestamp is not ISO-8601: {error}") from None


def _rewritten(text: str, moment: datetime) -> str:
    if moment.tzinfo not in (None, UTC):
        moment = moment.astimezone(UTC)
    elif match := _PLAIN.fullmatch(text):
        return match[1]  # much quicker than isoformat()
    elif len(text) <= len("2026-01-31"):
        raise ValueError("a date without a time")
    return moment.isoformat()


def _symbol(text: str) -> str:
    if "\0" in text:
        raise InvalidTrade("ticker has a NUL character, which PostgreSQL cannot store")
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _price(price: float) -> str:
    if round(price, 2) != price:
        raise InvalidTrade(f"price has more than two decimals: {price!r}")
    return f"{price:.2f}"


Value = TypeVar("Value")


class _Texts(dict[Value, str]):
    """Remembers the text of each value. As `functools.lru_cache`, at half the cost of a hit; starts again when full."""

    def __init__(self, make: Callable[[Value], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, value: Value) -> str:
        if len(self) >= 65_536:
            self.clear()
        text = self[value] = self._make(value)
        return text


_SYMBOLS, _PRICES = _Texts(_symbol), _Texts(_price)
