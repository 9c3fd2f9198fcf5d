"""The trade on the wire: every value is either stored as it was meant or refused with a reason."""

import json
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.trade import COLUMNS, InvalidTrade, Trade, copy_lines, decode, encode
from tests.messages import BROKEN_BYTES, STRANGE_VALUES, Row, expected_row, mutations, trade

ESCAPES = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}


def stored(message: bytes) -> Row | None:
    """Return the row that COPY would make of the message's line, None if it is refused."""
    try:
        line = copy_lines([message]).decode().removesuffix("\n")
    except InvalidTrade:
        return None
    assert "\n" not in line, "COPY would read two rows"
    identity, ticker, price, volume, side, timestamp = line.split("\t")
    assert ticker != "\\N", "COPY would read NULL"
    for escaped, character in ESCAPES.items():
        ticker = ticker.replace(escaped, character) if escaped != "\\\\" else ticker.replace("\\\\", "\1")
    moment = datetime.fromisoformat(timestamp).replace(tzinfo=None)
    return identity, ticker.replace("\1", "\\"), Decimal(price), int(volume), side, moment


def test_a_trade_survives_the_wire() -> None:
    sent = Trade("0195f3c0-0000-7000-8000-000000000000", "AAPL", 187.25, 100, "buy", "2026-01-31T08:30:00.123456Z")
    assert decode(encode(sent)) == sent
    assert list(json.loads(encode(sent))) == list(COLUMNS)


@pytest.mark.parametrize("message", BROKEN_BYTES, ids=lambda message: repr(message[:24]))
def test_broken_bytes(message: bytes) -> None:
    assert stored(message) == expected_row(message)


@pytest.mark.parametrize("field", COLUMNS)
def test_strange_values_in_every_field(field: str) -> None:
    for value in [*STRANGE_VALUES, None]:
        message = trade(**{field: value})
        assert stored(message) == expected_row(message), message


def test_a_message_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidTrade, match="no value"):
        decode(None)


def test_mutated_messages() -> None:
    kept = 0
    for message in mutations(seed=1, count=20_000):
        row = expected_row(message)
        assert stored(message) == row, message
        kept += row is not None
    assert 2_000 < kept < 18_000, "the mutations no longer try both"


def test_a_batch_gives_the_same_lines_as_its_messages_one_by_one() -> None:
    good = [message for message in mutations(seed=2, count=2_000) if expected_row(message)]
    one_by_one = b"".join(copy_lines([message]) for message in good)
    # A batch with one unusual timestamp has all of them rewritten, which drops their Z.
    assert copy_lines(good) == one_by_one.replace(b"Z\n", b"\n")


def test_one_bad_message_refuses_its_batch() -> None:
    with pytest.raises(InvalidTrade, match="price"):
        copy_lines([trade(), trade(price=-1), trade()])


def test_timestamps_that_only_together_have_the_plain_length_are_told_apart() -> None:
    plain = "2026-01-31T08:30:00.123456Z"
    with pytest.raises(InvalidTrade, match="timestamp"):
        copy_lines([trade(timestamp=plain + plain[0]), trade(timestamp=plain[1:])])


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes(message: bytes) -> None:
    assert stored(message) == expected_row(message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*COLUMNS, "extra"]), JSON_VALUES))
@settings(max_examples=500, deadline=None)
def test_any_json_value_in_any_field(fields: dict[str, object]) -> None:
    message = trade(**fields)
    assert stored(message) == expected_row(message)
