"""The trade on the wire: one JSON object per Kafka message, and the line that COPY stores it from.

The same trade in storage is `sql/001_trades.sql`; a test holds the two together.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec.structs import astuple

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
    return _decode_all([value])[0]


def _decode_all(values: Sequence[bytes | None]) -> list[Trade]:
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
    """Return a line of `COPY trades FROM STDIN` (text format, UTF-8) for each message's value.

    What JSON types cannot express is checked here too, so that PostgreSQL never meets a value that it would refuse,
    round or shift. Works on whole columns, which costs half of what a loop over the trades does. Raises
    `InvalidTrade` if any of the values is no trade; give them one by one to learn which.
    """
    ids, tickers, prices, volumes, sides, timestamps = zip(*map(astuple, _decode_all(values)), strict=True)
    columns = (
        ids if _are_plain_uuids(ids) else map(_uuid, ids),
        map(_SYMBOLS.__getitem__, tickers),
        map(_CENTS.__getitem__, prices),
        map(_SHARES.__getitem__, volumes),
        sides,
        timestamps if _are_plain_utc(timestamps) else map(_utc, timestamps),
    )
    return ("\n".join(map("\t".join, zip(*columns, strict=True))) + "\n").encode()


def _are_plain_uuids(texts: Sequence[str]) -> bool:
    """Tell whether all are lower-case UUIDs; each is 36 characters long, so as one string they line up."""
    together, count = "".join(texts), len(texts)
    dashes = together[8::36] + together[13::36] + together[18::36] + together[23::36]
    return dashes == together.encode().translate(None, b"0123456789abcdef").decode() == "-" * 4 * count


def _uuid(text: str) -> str:
    if not _are_plain_uuids([text.lower()]):
        raise InvalidTrade(f"trade_id is not a UUID: {text!r}")
    return text.lower()  # one key, however the sender spells it


def _symbol(text: str) -> str:
    if "\0" in text:
        raise InvalidTrade("ticker has a NUL character, which PostgreSQL cannot store")
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _cents(price: float) -> str:
    if round(price, 2) != price:
        raise InvalidTrade(f"price has more than two decimals: {price!r}")
    return f"{price:.2f}"


Value = TypeVar("Value")


class _Texts(dict[Value, str]):
    """Remembers the text of each value: a market has few symbols, prices on a grid of cents and mostly round lots.

    As `functools.lru_cache`, at half the cost of a hit; when full, it starts again.
    """

    def __init__(self, make: Callable[[Value], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, value: Value) -> str:
        if len(self) >= 65_536:
            self.clear()
        text = self[value] = self._make(value)
        return text


_SYMBOLS, _CENTS, _SHARES = _Texts(_symbol), _Texts(_cents), _Texts(str)

PLAIN_UTC = "2026-01-31T08:30:00.000000Z"  # how the producer writes it


def _are_plain_utc(texts: Sequence[str]) -> bool:
    """Tell whether all are timestamps that look like `PLAIN_UTC`, which PostgreSQL reads by itself."""
    width, count = len(PLAIN_UTC), len(texts)
    if set(map(len, texts)) != {width}:
        return False
    together = "".join(texts)
    signs = [(place, sign) for place, sign in enumerate(PLAIN_UTC) if not sign.isdigit()]
    digits = together.encode().translate(None, b"-:.TZ")
    return (
        all(together[place::width] == sign * count for place, sign in signs)
        and len(digits) == (width - len(signs)) * count
        and digits.isdigit()
        and all(map(_is_second, {text[:19] for text in texts}))
    )


def _is_second(text: str) -> bool:
    """Tell whether the calendar and the clock know this second."""
    try:
        return bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _utc(text: str) -> str:
    """Return any ISO-8601 timestamp as PostgreSQL reads it: in UTC, to the microsecond."""
    try:
        if len(text) <= len("2026-01-31"):
            raise ValueError("a date without a time")
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise InvalidTrade(f"timestamp is not ISO-8601: {error}") from None
    return moment.isoformat()
