"""A small stock market as a Faker provider: seven shares whose trades look like the prints on a tape.

    fake = Faker()
    fake.add_provider(TradeProvider)
    fake.trade()

Two clocks drive it. Prices and their volatility move with *time*, so a thousand times more trades a second do not
make a thousand times larger moves. Sides and spreads change from *trade to trade*, as orders eat into the book and it
fills up again; they move a print by some cents and never carry the price away.

What it shows are stylised facts of R. Cont, "Empirical properties of asset returns: stylized facts and statistical
issues", Quantitative Finance 1 (2001) 223–236, and R. Roll's bid–ask bounce, Journal of Finance 39 (1984) 1127–1139;
`tests/test_market.py` holds each to its bound.
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain, count
from math import exp, sqrt
from random import Random
from statistics import NormalDist
from typing import NamedTuple

from faker import Faker, Generator
from faker.providers import BaseProvider

from pipeline.trade import Trade, decode


class Listing(NamedTuple):
    """What sets one share apart from the others."""

    ticker: str
    price: float  # dollars; the level its price keeps returning to
    daily_volatility: float  # standard deviation of the log return of one session
    spread: int  # cents between bid and ask while the book is full
    volume: int  # shares; the median trade
    activity: int  # of 128 trades in this market, how many are in this share


LISTINGS = (
    Listing("AAPL", 271.40, 0.016, 1, 150, 19),
    Listing("MSFT", 512.70, 0.014, 3, 100, 12),
    Listing("GOOGL", 283.10, 0.018, 2, 120, 11),
    Listing("AMZN", 229.60, 0.019, 1, 130, 13),
    Listing("TSLA", 431.80, 0.036, 3, 110, 30),
    Listing("META", 638.30, 0.021, 5, 70, 7),
    Listing("NVDA", 184.20, 0.029, 1, 200, 36),
)

SESSION = 23_400.0  # seconds from New York's opening bell to the close
REVERSION = 5 * SESSION  # seconds in which a price forgets 63 % of its distance from its level

# The market's pull on each share: two of them correlate by its square, as large technology shares do.
MARKET_LOAD = 0.65

# Volatility is a product of two log-normal factors (standard deviation of the logarithm, seconds of memory):
# the mood of the whole market, and flurries in a single share.
MOOD = (0.35, 900.0)
FLURRY = (0.45, 30.0)
FLURRY_STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # standard deviations of flurry for which volumes differ

# One draw decides over a trade, from its low bits on: 7 for the share; 2 for the side, which changes in 1 trade of 4;
# 6 for the depth of the book, which changes in 1 of 64; 8 for the volume.
SHARE_BITS, SIDE_BITS, DEPTH_BITS, VOLUME_SHIFT, DRAW_BITS = 0b1111111, 0b11 << 7, 0b111111 << 9, 15, 23

SPREADS = (1, 3, 1, 1, 5)  # multiples of a share's usual spread at the depths its book goes through, over and over

LOT = 100  # shares
ODD_LOTS = 8  # one size in so many is not a whole number of lots
VOLUME_SPREAD = 1.1  # standard deviation of a volume's logarithm

QUOTE_LIFE = 10_000_000  # nanoseconds until quotes are renewed: far below what an eye can follow
MILLISECOND = 1_000_000  # nanoseconds
MICROSECONDS = {microsecond: f"{microsecond:03}" for microsecond in range(1000)}  # formatted once, not once a trade
COUNTERS = [f"{counter:03x}" for counter in range(4096)]


class Quote:
    """One side of a book at one depth: where a trade may print."""

    def __init__(self, side: str, offset: int) -> None:
        self.side = side  # that trades on it
        self.offset = offset  # cents above the bid of a full book
        self.json = ""  # ticker, price and the key of the volume
        self.opposite = self  # the quote across the spread
        self.next_depth = self  # the quote on the same side when the depth of the book changes


class Book:
    """One share's present state."""

    def __init__(self, listing: Listing) -> None:
        self.ticker = listing.ticker
        self.listing = listing
        self.deviation = 0.0  # logarithm of the fair price over the listing's
        self.flurry = 0.0  # logarithm of this share's own volatility factor
        self.quotes = _quotes(listing.spread)
        self.quote = self.quotes[0]  # of the latest trade
        self.volumes_by_flurry = [_volumes(listing.volume * exp(1.5 * FLURRY[0] * step)) for step in FLURRY_STEPS]
        self.volumes = self.volumes_by_flurry[0]  # equally likely

    def renew(self) -> None:
        """Put bids and asks on the cent grid, around the fair price; the busier the share, the larger the trades."""
        step = min(max(round(2 * self.flurry / FLURRY[0]) / 2, FLURRY_STEPS[0]), FLURRY_STEPS[-1])
        self.volumes = self.volumes_by_flurry[FLURRY_STEPS.index(step)]
        fair = 100 * self.listing.price * exp(self.deviation)
        bid = int(fair - (self.listing.spread - 1) / 2)
        for quote in self.quotes:
            quote.json = f'"ticker":"{self.ticker}","price":{(bid + quote.offset) / 100},"volume":'


class Market:
    """All shares, and how their prices live on with time."""

    def __init__(self, random: Random) -> None:
        self.books = [Book(listing) for listing in LISTINGS]
        self._random = random
        self._moment: int | None = None  # nanoseconds; when the quotes were last renewed
        self._mood = 0.0  # logarithm of the whole market's volatility factor

    def move(self, moment: int) -> None:
        """Let the market live until `moment` (ns), exactly, however long that is; nothing moves within a quote's life.

        Volatility factors and deviations are Ornstein–Uhlenbeck processes, stepped by their transition law (D. T.
        Gillespie, Physical Review E 54 (1996) 2084–2091). Prices are therefore stationary: the standard deviation of
        a price about its level is sqrt(REVERSION / 2 / SESSION) = 1.6 times that of a session's return.
        """
        elapsed = moment - (moment if self._moment is None else self._moment)
        if self._moment is not None and 0 <= elapsed < QUOTE_LIFE:
            return
        self._moment = moment
        seconds = max(0, elapsed) / 1e9  # a clock that was set back does not undo moves
        shock = self._random.gauss
        self._mood = _revert(self._mood, *MOOD, seconds, shock(0, 1))
        common = shock(0, 1)
        for book in self.books:
            book.flurry = _revert(book.flurry, *FLURRY, seconds, shock(0, 1))
            volatility = exp(self._mood + book.flurry - MOOD[0] ** 2 - FLURRY[0] ** 2)  # 1 in the mean of its square
            sway = book.listing.daily_volatility * sqrt(REVERSION / 2 / SESSION) * volatility
            surprise = MARKET_LOAD * common + sqrt(1 - MARKET_LOAD**2) * shock(0, 1)
            book.deviation = _revert(book.deviation, sway, REVERSION, seconds, surprise)
            book.renew()


class TradeProvider(BaseProvider):
    """Makes trades: `fake.trade()`, or `fake.trade_messages()` where speed matters.

    `clock` returns nanoseconds since 1970 and stamps the trades. `market_clock`, when given, is what moves prices in
    its place, asked once a trade: with one that depends on nothing but how often it was asked, a seed reproduces every
    price to the cent. Tickers, sides and the random bits of the ids follow from the seed in any case.
    """

    def __init__(
        self,
        generator: Generator | Faker,
        clock: Callable[[], int] = time.time_ns,
        market_clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(generator)
        self._clock = clock
        self._market_clock = market_clock
        self._messages = self._print_trades()  # draws nothing before the first trade: until then, a seed counts

    def trade(self) -> Trade:
        """Return the next trade. Its id is a version 7 UUID (RFC 9562), greater than every one before it."""
        return decode(next(self._messages)[1].encode())

    def trade_messages(self) -> Iterator[tuple[str, str]]:
        """Return the endless tape of the same trades as they travel: ticker and JSON.

        A `Trade` that is made only to be encoded would cost the producer a quarter of its rate; here, what repeats is
        formatted once. A test holds that the result is what `encode` makes of the trade.
        """
        return self._messages

    def _print_trades(self) -> Iterator[tuple[str, str]]:
        """Print trades for ever: one generator, everything in local variables, as each 100 ns cost 5 % of the rate."""
        clock, market_clock = self._clock, self._market_clock
        draw = self.generator.random.getrandbits
        market = Market(Random(draw(64)))  # a generator of its own: how often prices move must not shift other draws
        share = [book for book in market.books for _ in range(book.listing.activity)]
        id_middle = f"-{0x8000 | draw(14):04x}-"
        id_tails = _hexadecimal(self.generator.random)
        id_time = 0  # milliseconds since 1970, or later: ids ascend even if the clock stands still or is set back
        now = clock()
        while True:
            millisecond = now - now % MILLISECOND
            id_time = max(millisecond // MILLISECOND, id_time + 1)
            head = f'{{"trade_id":"{id_time >> 16:08x}-{id_time & 0xFFFF:04x}-7'
            second = f"{datetime.fromtimestamp(now // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{now // MILLISECOND % 1000:03}"
            microsecond = MICROSECONDS[(now - millisecond) // 1000]
            if market_clock is None:
                market.move(now)
            for counter in COUNTERS:  # of the ids in one millisecond (RFC 9562, 6.2, method 1)
                if market_clock is not None:
                    market.move(market_clock())
                luck = draw(DRAW_BITS)
                book = share[luck & SHARE_BITS]
                quote = book.quote
                if not luck & SIDE_BITS:
                    quote = book.quote = quote.opposite
                if not luck & DEPTH_BITS:
                    quote = book.quote = quote.next_depth
                yield (
                    book.ticker,
                    f'{head}{counter}{id_middle}{next(id_tails)}",{quote.json}{book.volumes[luck >> VOLUME_SHIFT]},'
                    f'"side":"{quote.side}","timestamp":"{second}{microsecond}Z"}}',
                )
                now = clock()
                try:
                    microsecond = MICROSECONDS[(now - millisecond) // 1000]
                except KeyError:
                    break


def _revert(value: float, deviation: float, memory: float, seconds: float, shock: float) -> float:
    """Step an Ornstein–Uhlenbeck process with this stationary standard deviation and memory by so many seconds."""
    kept = exp(-seconds / memory)
    return value * kept + deviation * sqrt(1 - kept * kept) * shock


def _hexadecimal(random: Random) -> Iterator[str]:
    """Return an iterator over 12 random digits after 12 others: drawn in blocks, they cost a third."""
    return chain.from_iterable(random.randbytes(6 * 256).hex(" ", 6).split() for _ in count())


def _quotes(spread: int) -> list[Quote]:
    """Return a book's quotes, linked to those that may follow them."""
    widths = [(multiple - 1) * spread // 2 for multiple in SPREADS]  # cents further out than in a full book
    depths = [(Quote("buy", spread + width), Quote("sell", -width)) for width in widths]
    for depth, next_depth in zip(depths, depths[1:] + depths[:1], strict=True):
        for side, quote in enumerate(depth):
            quote.opposite = depth[1 - side]
            quote.next_depth = next_depth[side]
    return [quote for depth in depths for quote in depth]


def _volumes(median: float) -> list[int]:
    """Return the quantiles of a log-normal volume, most of them rounded to lots, as a trader rounds an order."""
    levels = 1 << DRAW_BITS - VOLUME_SHIFT
    exact = [median * exp(VOLUME_SPREAD * NormalDist().inv_cdf((level + 0.5) / levels)) for level in range(levels)]
    return [
        round(volume) if level % ODD_LOTS == 0 else max(LOT, round(volume / LOT) * LOT)
        for level, volume in enumerate(exact)
    ]
