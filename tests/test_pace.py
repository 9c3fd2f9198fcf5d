"""The pace, on a simulated clock whose sleeps end late, as real ones do."""

from itertools import accumulate
from random import Random

import pytest

from pipeline.producer.pace import Pace


def run(rate: float, seconds: float, stall: tuple[float, float] = (-1, 0)) -> list[tuple[float, int]]:
    """Return how many trades were due at which times; `stall` makes the sleep after a given time that much longer."""
    random = Random(1)
    pace, now, due = Pace(rate, 0.0), 0.0, []
    while now < seconds:
        due.append((now, pace.due(now, 500)))
        late = random.expovariate(1 / 0.0001)  # seconds
        if stall[0] >= 0 and now >= stall[0]:
            late, stall = late + stall[1], (-1, 0)
        now += pace.wait() + late
    return due


def in_windows(due: list[tuple[float, int]], length: float) -> list[int]:
    """Return the number of trades in each complete window that begins with a wake-up."""
    totals = [0, *accumulate(trades for _, trades in due)]
    counts, end = [], 0
    for begin, (start, _) in enumerate(due):
        while end < len(due) and due[end][0] < start + length:
            end += 1
        if end == len(due):
            break
        counts.append(totals[end] - totals[begin])
    return counts


@pytest.mark.parametrize("rate", [0.5, 1, 3, 20, 333, 1_000, 4_999, 10_000, 50_000])
def test_the_rate_is_kept_within_1_percent_over_10_seconds(rate: float) -> None:
    sent = sum(trades for _, trades in run(rate, 10))
    assert abs(sent - 10 * rate) <= max(0.01 * 10 * rate, 1)


@pytest.mark.parametrize("rate", [1_001, 5_000, 10_000, 50_000])
def test_any_100_milliseconds_are_within_10_percent(rate: float) -> None:
    counts = in_windows(run(rate, 10), 0.1)
    assert min(counts) >= 0.9 * rate / 10
    assert max(counts) <= 1.1 * rate / 10


@pytest.mark.parametrize("rate", [1, 20, 1_000, 50_000])
def test_a_stall_is_followed_by_no_burst(rate: float) -> None:
    due = run(rate, 10, stall=(2, 3))
    assert max(trades for _, trades in due) <= max(2, 0.02 * rate)
    assert max(in_windows(due, 1)) <= 1.7 * rate + 1


def test_what_a_short_stall_left_undone_is_made_up_for() -> None:
    sent = sum(trades for _, trades in run(1_000, 10, stall=(2, 0.8)))
    assert sent == pytest.approx(10_000, abs=10)


def test_a_slow_rate_wakes_rarely() -> None:
    assert len(run(1, 10)) < 30


def test_never_more_is_due_than_asked_for() -> None:
    pace = Pace(1e9, 0.0)
    assert [pace.due(0.1 * tick, 7) for tick in range(1, 4)] == [7, 7, 7]
    assert pace.wait() == 0
