"""The trade on the wire: every value is either stored as intended or refused with a reason."""

import json
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.trade import COLUMNS, InvalidTrade, Trade, copy_rows, decode, encode
from tests.messages import BROKEN_BYTES, SPELLINGS, STRANGE_VALUES, Row, expected_row, mutations, spelled, trade

EPOCH = datetime(2000, 1, 1)  # PostgreSQL's


def stored(*messages: bytes) -> list[Row] | None:
    """Return the rows that COPY would store for a batch, or None if the batch is refused."""
    try:
        rows = copy_rows(messages)
    except InvalidTrade:
        return None
    assert len(rows) == len(messages)
    return list(map(row, rows))


def row(content: bytes) -> Row:
    """Parse a row as PostgreSQL would."""
    assert content[:2] == b"\0\6", "it has another number of fields"
    fields, rest = [], content[2:]
    while rest:
        length = int.from_bytes(rest[:4])
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    trade_id, ticker, price, volume, side, timestamp = fields
    assert "\0" not in ticker.decode(), "PostgreSQL would refuse it"
    assert (len(volume), len(timestamp)) == (4, 8)
    moment = EPOCH + timedelta(microseconds=int.from_bytes(timestamp, signed=True))
    shares = int.from_bytes(volume, signed=True)
    return trade_id.decode(), ticker.decode(), numeric(price), shares, side.decode(), moment


def numeric(content: bytes) -> Decimal:
    """Parse a NUMERIC: number of base-10,000 digits, weight of the first, sign, decimals, then the digits."""
    count, weight, sign, decimals, *digits = (int.from_bytes(content[i : i + 2]) for i in range(0, len(content), 2))
    assert (count, sign, decimals) == (len(digits), 0, 2)
    assert max(digits) < 10_000
    return sum((Decimal(digit) * 10_000 ** Decimal(weight - i) for i, digit in enumerate(digits)), Decimal())


def expected(*messages: bytes) -> list[Row] | None:
    """Return the rows that a batch should become: those of its messages, or none at all."""
    rows = [row for message in messages if (row := expected_row(message)) is not None]
    return rows if len(rows) == len(messages) else None


def test_a_trade_survives_the_wire() -> None:
    sent = Trade("0195f3c0-0000-7000-8000-000000000000", "AAPL", 187.25, 100, "buy", "2026-01-31T08:30:00.123456Z")
    assert decode(encode(sent)) == sent
    assert list(json.loads(encode(sent))) == list(COLUMNS)


@pytest.mark.parametrize("message", BROKEN_BYTES, ids=range(len(BROKEN_BYTES)))
def test_broken_bytes(message: bytes) -> None:
    assert stored(message) == expected(message)


@pytest.mark.parametrize("field", COLUMNS)
def test_strange_values_in_every_field(field: str) -> None:
    for value in [*STRANGE_VALUES, None]:
        message = trade(**{field: value})
        assert stored(message) == expected(message), message


def test_a_message_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidTrade, match="no value"):
        decode(None)


def test_mutated_messages() -> None:
    kept = 0
    for message in mutations(seed=1, count=20_000):
        rows = expected(message)
        assert stored(message) == rows, message
        kept += rows is not None
    assert 2_000 < kept < 18_000, "the mutations no longer try both"


def test_a_batch_of_every_kind_gives_the_rows_of_its_messages() -> None:
    good = [message for message in mutations(seed=2, count=2_000) if expected_row(message)]
    assert stored(*good) == expected(*good)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_usual_spellings_are_stored_as_they_were_meant(spelling: str) -> None:
    messages = [spelled(spelling, number) for number in range(5)]
    assert stored(*messages) == expected(*messages)


@given(st.lists(st.tuples(st.sampled_from([*SPELLINGS]), st.integers(0, 10**15)), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_spellings_may_be_mixed_in_a_batch(drawn: list[tuple[str, int]]) -> None:
    messages = [spelled(spelling, number) for spelling, number in drawn]
    assert stored(*messages) == expected(*messages) is not None


def test_timestamps_that_are_nearly_usual_alone_and_among_usual_ones() -> None:
    chance, kept = Random(4), 0
    usual = [str(json.loads(spelled(spelling, 123_456))["timestamp"]) for spelling in SPELLINGS]
    for _ in range(5_000):
        text = chance.choice(usual)
        place = chance.randrange(len(text) + 1)
        text = text[:place] + chance.choice(["", *"0123456789-+:.,TtZz \nW"]) + text[place + chance.randrange(2) :]
        alone, beside = trade(timestamp=text), trade(timestamp=chance.choice(usual))
        assert stored(alone) == expected(alone), text
        assert stored(beside, alone, beside) == expected(beside, alone, beside), text
        kept += expected(alone) is not None
    assert 500 < kept < 4_500, "the mutations no longer try both"


@given(st.lists(st.text("0123456789abcdefABCDEF-\nK", min_size=35, max_size=37) | st.uuids().map(str), min_size=1))
@settings(max_examples=100, deadline=None)
def test_ids_that_are_nearly_uuids(texts: list[str]) -> None:
    messages = [trade(trade_id=text) for text in texts]
    assert stored(*messages) == expected(*messages)


def test_one_bad_message_refuses_its_batch() -> None:
    with pytest.raises(InvalidTrade, match="price"):
        copy_rows([trade(), trade(price=-1), trade()])


def test_timestamps_that_only_together_have_the_plain_length_are_told_apart() -> None:
    plain = "2026-01-31T08:30:00.123456Z"
    with pytest.raises(InvalidTrade, match="timestamp"):
        copy_rows([trade(timestamp=plain + plain[0]), trade(timestamp=plain[1:])])


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes(message: bytes) -> None:
    assert stored(message) == expected(message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*COLUMNS, "extra"]), JSON_VALUES))
@settings(max_examples=500, deadline=None)
def test_any_json_value_in_any_field(fields: dict[str, object]) -> None:
    message = trade(**fields)
    assert stored(message) == expected(message)
