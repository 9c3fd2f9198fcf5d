"""Numbers and durations as people write them."""

import pytest

from pipeline.dashboard.wording import amount, duration, frequency, signed


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.04, "0 s"), (0.46, "0.5 s"), (9.96, "10 s"), (33.8, "34 s"), (119, "119 s"), (119.7, "120 s"),
        (120, "2 min"), (1335.8, "22 min"), (7200, "2 h"), (93_600, "26 h"), (172_800, "2 d"), (7e10, "810185 d"),
    ],
)  # fmt: skip
def test_a_stretch_of_time(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (-0.004, "0.00"),
        (0.004, "0.00"),
        (-0.006, "−0.01"),
        (1234.5, "+1,234.50"),
        (10, "+10.00"),
    ],
)
def test_a_change_has_a_sign_unless_it_is_none(value: float, text: str) -> None:
    assert signed(value) == text
    assert signed(value, "%") == f"{text}%"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(None, "– trades/s"), (12_345, "12,345.0 trades/s"), (0.1, "0.1 trades/s"), (0.05, "a trade every 20 s"),
     (1e-5, "a trade every 28 h")],
)  # fmt: skip
def test_a_rate(rate: float | None, text: str) -> None:
    assert frequency(rate) == text


def test_money() -> None:
    assert (amount(1234.5), amount(None)) == ("1,234.50", "–")
