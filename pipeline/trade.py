"""The trade on the wire: one JSON object per Kafka message, and the line that COPY stores it from.

The same trade in storage is `sql/001_trades.sql`; a test holds the two together.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

MAX_PRICE = 99_999_999.99  # NUMERIC(10,2)
MAX_VOLUME = 2_147_483_647  # INTEGER
MAX_TICKER_LENGTH = 10  # VARCHAR(10)


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


def decode(value: bytes | None) -> Trade:
    """Decode one message's value. Raises `InvalidTrade` for anything that is not JSON of the event's shape."""
    if value is None:
        raise InvalidTrade("the message has no value")
    try:
        return _decode(value)
    except (msgspec.DecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise InvalidTrade(str(error)) from None


def copy_line(trade: Trade) -> str:
    """Return the line of `COPY trades FROM STDIN` (text format) that stores this trade.

    What JSON types cannot express is checked here, so that PostgreSQL never meets a value that it would
    refuse, round or shift, and no batch fails for one of its rows. Raises `InvalidTrade`.
    """
    return (
        f"{_uuid(trade.trade_id)}\t{_symbol(trade.ticker)}\t{_cents(trade.price)}\t"
        f"{trade.volume}\t{trade.side}\t{_utc(trade.timestamp)}\n"
    )


def _uuid(text: str) -> str:
    """Check 8-4-4-4-12 hexadecimal digits; bytes.translate does it at half the cost of a regular expression."""
    dashes_only = text.lower().encode().translate(None, b"0123456789abcdef")
    if dashes_only == b"----" and text[8] == text[13] == text[18] == text[23] == "-":
        return text.lower()  # the canonical form: one key, however the sender spells it
    raise InvalidTrade(f"trade_id is not a UUID: {text!r}")


@lru_cache(maxsize=4096)  # a market has few symbols, so escaping them is done once
def _symbol(text: str) -> str:
    if "\0" in text:
        raise InvalidTrade("ticker has a NUL character, which PostgreSQL cannot store")
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@lru_cache(maxsize=65536)  # prices live on a grid of cents, so most have been seen before
def _cents(price: float) -> str:
    if round(price, 2) != price:
        raise InvalidTrade(f"price has more than two decimals: {price!r}")
    return f"{price:.2f}"


def _utc(text: str) -> str:
    """Return a timestamp that PostgreSQL reads as the same moment in UTC, to the microsecond."""
    try:
        moment = datetime.fromisoformat(text)
        # PostgreSQL reads the usual form by itself. Any other valid one is spelled out for it.
        if len(text) == 27 and text[26] == "Z" and text[19] == "." and text[10] == "T" and text[5] != "W":
            return text
        if len(text) <= len("2026-01-31"):
            raise ValueError("a date without a time")
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise InvalidTrade(f"timestamp is not ISO-8601: {error}") from None
    return moment.isoformat()
