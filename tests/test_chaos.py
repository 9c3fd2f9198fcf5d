"""The campaign's ledger finds what is wrong. Short runs of the campaign, each with a new seed, are in .ci/run."""

from decimal import Decimal

import pytest
from msgspec.structs import replace

from pipeline.trade import decode, encode
from tests.chaos.ledger import Ledger
from tests.chaos.traffic import INVALID_EVERY, is_invalid, message
from tests.messages import Row, expected_row


@pytest.fixture
def ledger() -> Ledger:
    """A ledger with ten trades and an invalid message."""
    ledger = Ledger()
    for number in range(10):
        ledger.add(*message(number))
    ledger.add(b"key", b"not JSON")
    return ledger


def rows(count: int = 10) -> list[Row]:
    return [row for number in range(count) if (row := expected_row(message(number)[1] or b"")) is not None]


def test_what_the_recording_producer_makes_is_valid_or_not_as_it_says() -> None:
    for number in range(20 * INVALID_EVERY):
        value = message(number)[1]
        assert (value is None or expected_row(value) is None) == is_invalid(number), value


def test_a_ledger_is_content_with_what_it_expects(ledger: Ledger) -> None:
    assert ledger.compare_rows(rows()) == 10
    assert ledger.compare_dead_letters([(b"key", b"not JSON"), (b"key", b"not JSON")]) == 1
    assert not ledger.findings


@pytest.mark.parametrize(
    "wrong",
    [
        rows()[1:],
        [*rows(), rows()[0]],
        [*rows(), *rows(11)[10:]],
        [(*rows()[0][:2], Decimal("0.99"), *rows()[0][3:]), *rows()[1:]],
    ],
    ids=["a row lost", "a row doubled", "a row invented", "a value changed"],
)
def test_a_ledger_finds(ledger: Ledger, wrong: list[Row]) -> None:
    ledger.compare_rows(wrong)
    assert ledger.findings


@pytest.mark.parametrize("letters", [[], [(b"key", b"not JSON"), (b"key", b"other")], [(b"other", b"not JSON")]])
def test_a_ledger_finds_dead_letters(ledger: Ledger, letters: list[tuple[bytes, bytes]]) -> None:
    ledger.compare_dead_letters(letters)
    assert ledger.findings


def test_a_ledger_tells_a_trade_that_kafka_holds_twice_from_another_of_its_id(ledger: Ledger) -> None:
    key, value = message(3)
    assert value is not None
    ledger.add(key, value)
    assert [row[0] for row in ledger.repeats] == [rows()[3][0]]
    assert not ledger.findings
    ledger.add(key, encode(replace(decode(value), volume=7)))
    assert ledger.findings
