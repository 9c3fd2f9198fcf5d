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
from functools import cached_property
from itertools import chain
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
    activity: int  # of 256 trades in this market, how many are in this share


LISTINGS = (
    Listing("AAPL", 271.40, 0.016, 1, 150, 38),
    Listing("MSFT", 512.70, 0.014, 3, 100, 24),
    Listing("GOOGL", 283.10, 0.018, 2, 120, 22),
    Listing("AMZN", 229.60, 0.019, 1, 130, 26),
    Listing("TSLA", 431.80, 0.036, 3, 110, 60),
    Listing("META", 638.30, 0.021, 5, 70, 14),
    Listing("NVDA", 184.20, 0.029, 1, 200, 72),
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

# A byte of chance decides whether a trade differs from the share's last one, so most need one comparison: up to 63, in
# 1 trade of 4, the side changes; from 63 to 66, in 1 of 64, the depth of the book; 63 is both, as chance would have it.
SIDE_CHANGES_BELOW, DEPTH_CHANGES_FROM, NOTHING_CHANGES_FROM = 64, 63, 67

SPREADS = (1, 3, 1, 1, 5)  # multiples of a share's usual spread at the depths its book goes through, over and over

LOT = 100  # shares
ODD_LOTS = 8  # one size in so many is not a whole number of lots
VOLUME_SPREAD = 1.1  # standard deviation of a volume's logarithm

QUOTE_LIFE = 10_000_000  # nanoseconds until quotes are renewed: far below what an eye can follow
CLOCK_SET_BACK = 1000  # microseconds; less than that, trades were made faster than one a microsecond

# The microseconds of a millisecond, formatted once and not once a trade: the end of a timestamp and of the JSON, and
# the 12 bits of an id that order it within its millisecond (RFC 9562, 6.2, method 3).
STAMP_ENDS = [f'{microsecond:03}Z"}}' for microsecond in range(1000)]
ID_FRACTIONS = [f"{microsecond * 4096 // 1000:03x}" for microsecond in range(1000)]


class Quote:
    """One side of a book at one depth: where a trade may print."""

    def __init__(self, side: str, offset: int) -> None:
        self.side = side  # that trades on it
        self.offset = offset  # cents above the bid of a full book
        self.price_json = ""  # ticker, price and the key of the volume
        self.volume_json: list[str] = []  # equally likely volumes, the side and the key of the timestamp
        self.opposite = self  # the quote across the spread
        self.next_depth = self  # the quote on the same side when the depth of the book changes


class Book:
    """One share's present state."""

    def __init__(self, listing: Listing) -> None:
        self.ticker = listing.ticker
        self.listing = listing
        self.deviation = 0.0  # logarithm of the fair price over the listing's
        self.flurry = 0.0  # logarithm of this share's own volatility factor
        self.quotes = self._link_quotes()
        self.quote = self.quotes[0]  # of the latest trade
        self._volume_json = {
            (step, side): [
                f'{volume},"side":"{side}","timestamp":"'
                for volume in _volumes(listing.volume * exp(1.5 * FLURRY[0] * step))
            ]
            for step in FLURRY_STEPS
            for side in ("buy", "sell")
        }

    def _link_quotes(self) -> list[Quote]:
        """Return the book's quotes, linked to those that may follow them."""
        spread = self.listing.spread
        widths = [(multiple - 1) * spread // 2 for multiple in SPREADS]  # cents further out than in a full book
        depths = [(Quote("buy", spread + width), Quote("sell", -width)) for width in widths]
        for depth, next_depth in zip(depths, depths[1:] + depths[:1], strict=True):
            for side, quote in enumerate(depth):
                quote.opposite = depth[1 - side]
                quote.next_depth = next_depth[side]
        return [quote for depth in depths for quote in depth]

    def renew(self) -> None:
        """Put bids and asks on the cent grid, around the fair price; the busier the share, the larger the trades."""
        step = min(max(round(2 * self.flurry / FLURRY[0]) / 2, FLURRY_STEPS[0]), FLURRY_STEPS[-1])
        fair = 100 * self.listing.price * exp(self.deviation)
        bid = int(fair - (self.listing.spread - 1) / 2)
        for quote in self.quotes:
            quote.price_json = f'","ticker":"{self.ticker}","price":{(bid + quote.offset) / 100},"volume":'
            quote.volume_json = self._volume_json[step, quote.side]


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
        self._moment = self._id_moment = 0  # microseconds since 1970; of the latest trade

    @cached_property  # all of these draw when the first trade is wanted: until then, a seed counts
    def _market(self) -> Market:
        return Market(Random(self.generator.random.getrandbits(64)))  # its moves must not shift other draws

    @cached_property
    def _id_middle(self) -> str:
        return f"-{0x8000 | self.generator.random.getrandbits(14):04x}-"

    @cached_property
    def _chances(self) -> Iterator[tuple[str, Book, int, int]]:
        return chain.from_iterable(_chances(self.generator.random, self._market.books))

    def trade(self) -> Trade:
        """Return the next trade. Its id is a version 7 UUID (RFC 9562), greater than every one before it."""
        [(_, message)] = self.trade_messages(1)
        return decode(message.encode())

    def trade_messages(self, count: int) -> list[tuple[str, str]]:
        """Return the next trades as they travel: ticker and JSON. They happen now, a microsecond apart.

        A `Trade` that is made only to be encoded would cost as much again; here, what repeats is formatted
        once. A test holds that the result is what `encode` makes of the trade.
        """
        messages: list[tuple[str, str]] = []
        while len(messages) < count:
            messages += self._print_trades(count - len(messages))
        return messages

    def _print_trades(self, at_most: int) -> list[tuple[str, str]]:
        """Print trades of one millisecond, at least one."""
        market, market_clock, id_middle = self._market, self._market_clock, self._id_middle
        now = self._clock()
        if market_clock is None:
            market.move(now)
        moment = now // 1000
        moment = self._moment + 1 if 0 <= self._moment - moment < CLOCK_SET_BACK else moment
        id_moment = max(moment, self._id_moment + 1)  # ids ascend even if the clock is set back
        millisecond, microsecond = divmod(moment, 1000)
        id_millisecond, id_microsecond = divmod(id_moment, 1000)
        second = f"{datetime.fromtimestamp(millisecond // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{millisecond % 1000:03}"
        stamp_ends = STAMP_ENDS[microsecond : microsecond + at_most]
        id_fractions = ID_FRACTIONS[id_microsecond : id_microsecond + len(stamp_ends)]
        id_head = f'{{"trade_id":"{id_millisecond >> 16:08x}-{id_millisecond & 0xFFFF:04x}-7'
        messages = []
        # Each 100 ns in here cost a tenth of the producer's rate.
        for id_fraction, stamp_end, (id_tail, book, change, level) in zip(
            id_fractions, stamp_ends, self._chances, strict=False
        ):
            if market_clock is not None:
                market.move(market_clock())
            quote = book.quote
            if change < NOTHING_CHANGES_FROM:
                if change < SIDE_CHANGES_BELOW:
                    quote = quote.opposite
                if change >= DEPTH_CHANGES_FROM:
                    quote = quote.next_depth
                book.quote = quote
            json = (
                f"{id_head}{id_fraction}{id_middle}{id_tail}{quote.price_json}{quote.volume_json[level]}"
                f"{second}{stamp_end}"
            )
            messages.append((book.ticker, json))
        self._moment = moment + len(messages) - 1
        self._id_moment = id_moment + len(messages) - 1
        return messages


def _chances(random: Random, books: list[Book]) -> Iterator[Iterator[tuple[str, Book, int, int]]]:
    """Draw what chance decides of each trade, in blocks: 12 hexadecimal digits, its share, two bytes."""
    shares = [book for book in books for _ in range(book.listing.activity)]
    while True:
        id_tails = random.randbytes(6 * 256).hex(" ", 6).split()
        shares_drawn = map(shares.__getitem__, random.randbytes(256))
        yield zip(id_tails, shares_drawn, random.randbytes(256), random.randbytes(256), strict=True)


def _revert(value: float, deviation: float, memory: float, seconds: float, shock: float) -> float:
    """Step an Ornstein–Uhlenbeck process with this stationary standard deviation and memory by so many seconds."""
    kept = exp(-seconds / memory)
    return value * kept + deviation * sqrt(1 - kept * kept) * shock


def _volumes(median: float) -> list[int]:
    """Return the quantiles of a log-normal volume, most of them rounded to lots, as a trader rounds an order."""
    levels = 256  # a byte of chance
    exact = [median * exp(VOLUME_SPREAD * NormalDist().inv_cdf((level + 0.5) / levels)) for level in range(levels)]
    return [
        round(volume) if level % ODD_LOTS == 0 else max(LOT, round(volume / LOT) * LOT)
        for level, volume in enumerate(exact)
    ]
