"""The market shows the stylized facts of real trades, at every rate, and one seed makes one tape.

The bounds are for at least 100,000 trades a seed; sources are named at each test. Cont (2001) is "Empirical
properties of asset returns: stylized facts and statistical issues", Quantitative Finance 1, 223–236.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from uuid import RFC_4122, UUID

import numpy as np
import pytest
from faker import Faker
from numpy.typing import NDArray

from pipeline.producer.market import LISTINGS, LOT, THIN
from pipeline.producer.tape import TradeProvider
from pipeline.trade import Trade, decode, encode

SEEDS = (1, 2, 3)
RATES = (200, 10_000)  # trades/s
TRADES = 100_000
START = int(datetime(2026, 11, 22, 8, tzinfo=UTC).timestamp()) * 10**9
BUSY = ("NVDA", "TSLA")  # the tickers with more than 20,000 of 100,000 trades

Floats = NDArray[np.float64]


def ticking(rate: float, seed: int = 0) -> Callable[[], int]:
    """Return a clock (ns) that makes trades arrive as a Poisson process of this rate (trades/s)."""

    def moments() -> Iterator[int]:
        random, now = Random(seed), START
        while True:
            yield now
            now += int(random.expovariate(rate) * 1e9)

    return moments().__next__


def market(seed: int, clock: Callable[[], int], market_clock: Callable[[], int] | None = None) -> Callable[[], Trade]:
    fake = Faker()
    fake.seed_instance(seed)
    fake.add_provider(TradeProvider(fake, clock, market_clock))
    trade: Callable[[], Trade] = fake.trade
    return trade


@cache
def tape(seed: int, rate: float) -> list[Trade]:
    trade = market(seed, ticking(rate, seed))
    return [trade() for _ in range(TRADES)]


@cache
def prices(seed: int, rate: float) -> dict[str, Floats]:
    by_ticker = defaultdict(list)
    for trade in tape(seed, rate):
        by_ticker[trade.ticker].append(trade.price)
    return {ticker: np.array(values) for ticker, values in by_ticker.items()}


def returns(seed: int, rate: float, ticker: str) -> Floats:
    """Return the log returns from each trade to the next in the same share."""
    steps: Floats = np.diff(np.log(prices(seed, rate)[ticker]))
    return steps


def autocorrelation(values: Floats, lags: range) -> Floats:
    centred = values - values.mean()
    return np.array([np.mean(centred[lag:] * centred[:-lag]) / np.var(values) for lag in lags])


def excess_kurtosis(values: Floats) -> float:
    centred = values - values.mean()
    return float(np.mean(centred**4) / np.var(values) ** 2 - 3)


def skewness(values: Floats) -> float:
    centred = values - values.mean()
    return float(np.mean(centred**3) / np.std(values) ** 3)


every_tape = pytest.mark.parametrize(("seed", "rate"), [(seed, rate) for seed in SEEDS for rate in RATES])
every_seed = pytest.mark.parametrize("seed", SEEDS)


@every_tape
def test_returns_have_fat_tails(seed: int, rate: float) -> None:
    """Cont (2001), fact 2: excess kurtosis is positive; the normal distribution has 0."""
    for ticker in BUSY:
        assert excess_kurtosis(returns(seed, rate, ticker)) > 2


@every_tape
def test_returns_cannot_be_predicted_from_older_returns(seed: int, rate: float) -> None:
    """Cont (2001), fact 1: no linear autocorrelation beyond the first trades, where prices bounce between the quotes.

    0.05 is seven standard errors of white noise over 20,000 trades.
    """
    for ticker in BUSY:
        assert np.abs(autocorrelation(returns(seed, rate, ticker), range(6, 51))).max() < 0.05


@every_tape
def test_volatility_clusters_over_tens_of_trades_and_the_clusters_decay(seed: int, rate: float) -> None:
    """Cont (2001), facts 6 and 8: absolute returns are autocorrelated, positively and slowly decaying."""
    for ticker in BUSY:
        near, tens, far = (
            autocorrelation(np.abs(returns(seed, rate, ticker)), lags).mean()
            for lags in (range(1, 11), range(20, 41), range(300, 401))
        )
        assert near > 0.05
        assert near > tens > 0.02
        assert tens > far


@every_seed
def test_prints_bounce_between_bid_and_ask(seed: int) -> None:
    """R. Roll, Journal of Finance 39 (1984): the bounce correlates successive returns negatively, by -1/2 at most."""
    for ticker in BUSY:
        (first,) = autocorrelation(returns(seed, 10_000, ticker), range(1, 2))
        assert -0.5 < first < -0.15


@every_seed
def test_buys_print_at_the_ask_and_sells_at_the_bid(seed: int) -> None:
    """While the market's time stands still, bids and asks never touch: they are a full or a thin book apart."""
    fake = Faker()
    fake.seed_instance(seed)
    messages = TradeProvider(fake, market_clock=lambda: 0).trade_messages(TRADES)
    bids: dict[str, set[int]] = defaultdict(set)
    asks: dict[str, set[int]] = defaultdict(set)
    for print_ in (decode(message.encode()) for _, message in messages):
        (asks if print_.side == "buy" else bids)[print_.ticker].add(round(100 * print_.price))
    for listing in LISTINGS:
        spreads = {
            min(asks[listing.ticker]) - max(bids[listing.ticker]),
            max(asks[listing.ticker]) - min(bids[listing.ticker]),
        }
        assert spreads == {listing.spread, listing.spread * THIN}
        assert max(spreads) / (100 * listing.price) < 0.0005  # 5 basis points


@every_seed
def test_order_flow_keeps_its_side_for_a_while(seed: int) -> None:
    """F. Lillo and J. D. Farmer, Studies in Nonlinear Dynamics & Econometrics 8 (2004): signs of orders persist."""
    last: dict[str, str] = {}
    same = []
    for trade in tape(seed, 200):
        if trade.ticker in last:
            same.append(trade.side == last[trade.ticker])
        last[trade.ticker] = trade.side
    assert 0.7 < np.mean(same) < 0.8
    assert 0.48 < np.mean([trade.side == "buy" for trade in tape(seed, 200)]) < 0.52


@every_seed
def test_volumes_are_skewed_and_mostly_round_lots(seed: int) -> None:
    """P. Gopikrishnan et al., Physical Review E 62 (2000) R4493: few trades make much of the volume."""
    volumes = np.array([trade.volume for trade in tape(seed, 200)])
    assert volumes.min() > 0
    assert skewness(volumes) > 2
    assert np.sort(volumes)[-TRADES // 10 :].sum() > 0.3 * volumes.sum()
    assert 0.8 < np.mean(volumes % LOT == 0) < 0.95


@every_seed
def test_volume_rises_with_volatility(seed: int) -> None:
    """Cont (2001), fact 10."""
    moves: dict[str, list[float]] = defaultdict(list)
    volumes: dict[str, int] = defaultdict(int)
    for trade in tape(seed, 200):
        if trade.ticker == "NVDA":
            moves[trade.timestamp[:18]].append(trade.price)  # in each ten seconds
            volumes[trade.timestamp[:18]] += trade.volume
    ranges = [np.ptp(moves[span]) for span in moves]
    assert np.corrcoef(ranges, [volumes[span] for span in moves])[0, 1] > 0.1


@every_seed
def test_activity_differs_between_tickers(seed: int) -> None:
    counts = {ticker: len(values) for ticker, values in prices(seed, 200).items()}
    assert set(counts) == {"AAPL", "MSFT", "GOOGL", "AMZN", "TSLA", "META", "NVDA"}
    assert max(counts.values()) > 3 * min(counts.values())
    for listing in LISTINGS:
        assert counts[listing.ticker] / TRADES == pytest.approx(listing.activity / 256, rel=0.1)


@every_seed
def test_tickers_partly_move_together(seed: int) -> None:
    """One market factor, as in W. F. Sharpe, Management Science 9 (1963): returns correlate, but not fully.

    Over ten seconds, that is; over shorter times the bounce hides it (T. W. Epps, J. Am. Statist. Assoc. 74, 1979).
    """
    last: dict[str, dict[str, float]] = defaultdict(dict)  # in each ten seconds
    for trade in tape(seed, 200):
        last[trade.timestamp[:18]][trade.ticker] = trade.price
    closes = np.array([[row[listing.ticker] for listing in LISTINGS] for row in last.values() if len(row) == 7])
    correlations = np.corrcoef(np.diff(np.log(closes), axis=0).T)[np.triu_indices(7, 1)]
    assert 0.1 < correlations.mean() < 0.7


@every_tape
def test_prices_are_positive_and_on_the_cent_grid(seed: int, rate: float) -> None:
    for values in prices(seed, rate).values():
        assert values.min() > 0
        assert (values == values.round(2)).all()


@every_seed
def test_prices_stay_plausible_over_a_month(seed: int) -> None:
    days, trades = 30, 20_000
    trade = market(seed, ticking(trades / (days * 86_400), seed))
    by_ticker = defaultdict(list)
    for print_ in (trade() for _ in range(trades)):
        by_ticker[print_.ticker].append(print_.price)
    for listing in LISTINGS:
        values = np.array(by_ticker[listing.ticker])
        assert 0.7 * listing.price < values.min() < listing.price < values.max() < 1.4 * listing.price
        assert np.ptp(values) > 0.03 * listing.price  # but they do move


@every_seed
def test_ten_thousand_trades_a_second_do_not_make_a_day_in_a_second(seed: int) -> None:
    """Prices move with the clock: the standard deviation of a second's return is 1/150 of a session's."""
    trade = market(seed, ticking(10_000, seed))
    first: dict[str, float] = {}
    highest = {listing.ticker: 0.0 for listing in LISTINGS}
    for print_ in (trade() for _ in range(10_000)):
        start = first.setdefault(print_.ticker, print_.price)
        highest[print_.ticker] = max(highest[print_.ticker], abs(print_.price / start - 1))
    for listing in LISTINGS:
        assert highest[listing.ticker] < listing.daily_volatility / 10


def test_a_seed_makes_the_same_trades_and_another_seed_others() -> None:
    one, again, other = (market(seed, ticking(50)) for seed in (7, 7, 8))
    trades = [one() for _ in range(5000)]
    assert trades == [again() for _ in range(5000)]
    assert trades != [other() for _ in range(5000)]


def test_the_seed_may_be_set_after_the_provider_is_added() -> None:
    fake = Faker()
    fake.add_provider(TradeProvider(fake, ticking(50)))
    fake.seed_instance(7)
    assert fake.trade() == market(7, ticking(50))()


def test_a_market_clock_makes_prices_repeat_whatever_the_time_is() -> None:
    def what(trade: Trade) -> tuple[object, ...]:
        return trade.ticker, trade.price, trade.volume, trade.side, trade.trade_id[19:]

    slow, fast = (market(7, ticking(rate), iter(range(0, 10**15, 10**6)).__next__) for rate in (3, 3000))
    assert [what(slow()) for _ in range(5000)] == [what(fast()) for _ in range(5000)]


def test_the_provider_is_used_as_faker_providers_are() -> None:
    fake = Faker()
    fake.add_provider(TradeProvider)
    before = datetime.now(UTC)
    trade = fake.trade()
    assert isinstance(trade, Trade)
    assert (
        before.replace(microsecond=before.microsecond) <= datetime.fromisoformat(trade.timestamp) <= datetime.now(UTC)
    )


def test_a_message_is_the_trade_encoded() -> None:
    fake = Faker()
    fake.add_provider(TradeProvider(fake, ticking(50)))
    fake.seed_instance(7)
    trade = market(7, ticking(50))
    for _ in range(10_000):
        expected = trade()
        assert fake.trade_messages(1) == [(expected.ticker, encode(expected).decode())]


def test_trades_made_at_once_are_a_microsecond_apart_and_the_same_as_one_by_one() -> None:
    def provider() -> TradeProvider:
        fake = Faker()
        fake.seed_instance(7)
        return TradeProvider(fake, lambda: START + 999_000, iter(range(0, 10**12, 10**6)).__next__)

    at_once, one_by_one = provider(), provider()
    together = at_once.trade_messages(800)
    assert together == [message for _ in range(800) for message in one_by_one.trade_messages(1)]
    trades = [decode(message.encode()) for _, message in together]
    moments = [datetime.fromisoformat(trade.timestamp) for trade in trades]
    assert {later - earlier for earlier, later in pairwise(moments)} == {timedelta(microseconds=1)}
    assert all(earlier.trade_id < later.trade_id for earlier, later in pairwise(trades))


@pytest.mark.parametrize("fraction", [0, 1, 999, 1_000, 123_456_789, 999_999_999])
def test_the_timestamp_is_the_clocks_in_utc_to_the_microsecond(fraction: int) -> None:
    trade = market(1, lambda: START + fraction)()
    assert trade.timestamp == f"2026-11-22T08:00:00.{fraction // 1000:06}Z"


def test_ids_are_uuids_of_version_7_with_the_clocks_milliseconds() -> None:
    clock = ticking(5000)
    now = [0]

    def noted() -> int:
        now[0] = clock()
        return now[0]

    trade = market(1, noted)
    for _ in range(10_000):
        identity = UUID(trade().trade_id)
        assert (identity.version, identity.variant) == (7, RFC_4122)
        assert identity.int >> 80 == now[0] // 10**6


@pytest.mark.parametrize(
    "clock",
    [
        pytest.param(ticking(5000), id="runs"),
        pytest.param(lambda: START, id="stands still"),
        pytest.param(iter(range(START, 0, -(10**8))).__next__, id="runs backwards"),
    ],
)
def test_ids_ascend_however_the_clock_behaves(clock: Callable[[], int]) -> None:
    trade = market(1, clock)
    ids = [trade().trade_id for _ in range(10_000)]
    assert all(earlier < later for earlier, later in pairwise(ids))
