"""How prices move: a small market of seven shares. `tape.py` formats its trades.

Fair prices and their volatility move with *time*, so a thousand times more trades a second do not make a thousand times
larger moves. Sides and spreads change from *trade to trade*, as orders eat into the book and it fills up again: they
move a price by a few cents and cause no drift. Together they show the stylised facts of R. Cont, "Empirical
properties of asset returns", Quantitative Finance 1 (2001) 223–236, and R. Roll's bid–ask bounce, Journal of Finance 39
(1984) 1127–1139; `tests/test_market.py` holds each to its bound.
"""

from math import exp, sqrt
from random import Random
from statistics import NormalDist
from typing import NamedTuple


class Listing(NamedTuple):
    """What sets one share apart from the others."""

    ticker: str
    price: float  # dollars; the level its price keeps returning to
    daily_volatility: float  # standard deviation of the log return of one session
    spread: int  # cents between bid and ask while the book is full
    volume: int  # shares; the median trade
    activity: int  # how many of 256 trades in this market are in this share


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
REVERSION = 5 * SESSION  # seconds in which a price loses 63 % of its distance from its level

# The market's weight in each share's moves; its square is the correlation of two shares, as among large tech shares.
MARKET_LOAD = 0.65

# Volatility is a product of two log-normal factors (standard deviation of the logarithm, seconds of memory):
# the mood of the whole market, and flurries in a single share.
MOOD = (0.35, 900.0)
FLURRY = (0.45, 30.0)

# After how many of 256 trades in a share the side changes, a full book becomes thin, and a thin one full.
SIDE_CHANGES, BOOK_THINS, BOOK_FILLS = 64, 1, 4
THIN = 5  # spread of a thin book, as a multiple of the full book's

LOT = 100  # shares
ODD_LOTS = 8  # one volume in this many is not rounded to lots
VOLUME_SPREAD = 1.1  # standard deviation of a volume's logarithm

QUOTE_LIFE = 10_000_000  # nanoseconds until quotes are renewed: far less than the eye can follow


class Quote:
    """One side of a share's book, full or thin: a price at which it may trade."""

    def __init__(self, ticker: str, side: str, offset: int) -> None:
        self.ticker = ticker
        self.side = side  # of the trades at this quote
        self.offset = offset  # cents above the bid of a full book
        self.successors: list[Quote] = []  # the 256 equally likely quotes of the share's next trade
        self.price_text, self.volume_texts = "", [""]  # formatted by tape.py


class Share:
    """One share's current state."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.deviation = 0.0  # logarithm of the fair price over the listing's
        self.flurry = 0.0  # logarithm of this share's own volatility factor
        self.quotes = _book(listing.ticker, listing.spread)

    @property
    def bid(self) -> int:
        """The bid of a full book, in cents; the fair price is halfway between bid and ask."""
        return int(100 * self.listing.price * exp(self.deviation) - (self.listing.spread - 1) / 2)

    @property
    def median_volume(self) -> int:
        """The median trade, in shares: larger in a busier share, in steps of half a standard deviation of flurry."""
        busy = min(max(round(2 * self.flurry / FLURRY[0]) / 2, -1.0), 1.0)
        return round(self.listing.volume * exp(1.5 * FLURRY[0] * busy))


class Market:
    """All shares, and how their prices evolve over time."""

    def __init__(self, random: Random) -> None:
        self.shares = [Share(listing) for listing in LISTINGS]
        self.quotes = [share.quotes[0] for share in self.shares]  # of each share's latest trade
        self._random = random
        self._moment: int | None = None  # nanoseconds; when the quotes were last renewed
        self._mood = 0.0  # logarithm of the whole market's volatility factor

    def move(self, moment: int) -> bool:
        """Advance the market to `moment` (ns); return whether its quotes are new.

        Volatility factors and deviations are Ornstein–Uhlenbeck processes, stepped by their transition law, exact for a
        step of any length (D. T. Gillespie, Physical Review E 54 (1996) 2084–2091); but the volatility of a step is
        that at its end. Prices are therefore stationary: the standard deviation of a price about its level is
        sqrt(REVERSION / 2 / SESSION) = 1.6 times that of a session's return.
        """
        elapsed = -1 if self._moment is None else moment - self._moment
        if 0 <= elapsed < QUOTE_LIFE:
            return False
        self._moment = moment
        seconds = max(0, elapsed) / 1e9  # none at first; a clock that was set back does not undo moves
        shock = self._random.gauss
        self._mood = _revert(self._mood, *MOOD, seconds, shock(0, 1))
        common = shock(0, 1)
        for share in self.shares:
            share.flurry = _revert(share.flurry, *FLURRY, seconds, shock(0, 1))
            volatility = exp(self._mood + share.flurry - MOOD[0] ** 2 - FLURRY[0] ** 2)  # its mean square is 1
            sway = share.listing.daily_volatility * sqrt(REVERSION / 2 / SESSION) * volatility
            surprise = MARKET_LOAD * common + sqrt(1 - MARKET_LOAD**2) * shock(0, 1)
            share.deviation = _revert(share.deviation, sway, REVERSION, seconds, surprise)
        return True


def volumes(median: int) -> list[int]:
    """Return 256 equally likely volumes: log-normal, most of them rounded to lots, as a trader rounds an order."""
    exact = [median * exp(VOLUME_SPREAD * NormalDist().inv_cdf((level + 0.5) / 256)) for level in range(256)]
    lots = [max(LOT, round(volume / LOT) * LOT) for volume in exact]
    return [round(exact[level]) if level % ODD_LOTS == 0 else lots[level] for level in range(256)]


def _book(ticker: str, spread: int) -> list[Quote]:
    """Return the bid and ask of a full and of a thin book, each with the quotes that may follow it."""
    wider = (THIN - 1) * spread // 2  # cents further out
    full = [Quote(ticker, "sell", 0), Quote(ticker, "buy", spread)]
    thin = [Quote(ticker, "sell", -wider), Quote(ticker, "buy", spread + wider)]
    for book, other, changes in ((full, thin, BOOK_THINS), (thin, full, BOOK_FILLS)):
        for quote, opposite, elsewhere in zip(book, reversed(book), other, strict=True):
            stays = 256 - SIDE_CHANGES - changes
            quote.successors = [opposite] * SIDE_CHANGES + [elsewhere] * changes + [quote] * stays
    return full + thin


def _revert(value: float, deviation: float, memory: float, seconds: float, shock: float) -> float:
    """Step an Ornstein–Uhlenbeck process by `seconds`, given its stationary standard deviation and memory (seconds)."""
    kept = exp(-seconds / memory)
    return value * kept + deviation * sqrt(1 - kept * kept) * shock
