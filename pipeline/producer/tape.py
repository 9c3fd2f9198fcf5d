"""Formats the market's trades, fast: a Faker provider.

fake = Faker()
fake.add_provider(TradeProvider)
fake.trade()
"""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import chain
from random import Random

from faker import Faker, Generator
from faker.providers import BaseProvider

from pipeline.producer.market import LISTINGS, Market, volumes
from pipeline.trade import Trade, decode

CLOCK_SET_BACK = 1000  # microseconds; a smaller step back only means more than one trade per microsecond

# The microseconds of a millisecond, formatted once instead of per trade: as the end of a timestamp and of the JSON, and
# as the 12 bits that order an id within its millisecond (RFC 9562, 6.2, method 3).
STAMP_ENDS = [f'{microsecond:03}Z"}}' for microsecond in range(1000)]
ID_FRACTIONS = [f"{microsecond * 4096 // 1000:03x}" for microsecond in range(1000)]


class TradeProvider(BaseProvider):
    """Makes trades: `fake.trade()`, or `fake.trade_messages()` where speed matters.

    `clock` returns nanoseconds since 1970 and stamps the trades. `market_clock`, if given, moves prices in its place
    and is read once per trade: if it depends only on how often it has been read, a seed reproduces every price to the
    cent. Tickers, sides and the random bits of the ids follow from the seed in any case.
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
        self._moment = self._id_moment = 0  # of the latest trade, in microseconds since 1970

    @cached_property
    def _drawn(self) -> tuple[Market, str, Iterator[tuple[str, int, int, int]]]:
        """The market, the middle of its ids, and its chances; drawn at the first trade, so seed before that."""
        random = self.generator.random
        market = Market(Random(random.getrandbits(64)))  # its moves must not shift other draws
        id_middle = f"-{0x8000 | random.getrandbits(14):04x}-"
        return market, id_middle, chain.from_iterable(_chances(random))

    def trade(self) -> Trade:
        """Return the next trade. Its id is a version 7 UUID (RFC 9562), greater than every one before it."""
        [(_, message)] = self.trade_messages(1)
        return decode(message.encode())

    def trade_messages(self, count: int) -> list[tuple[str, str]]:
        """Return the next trades as they are sent: ticker and JSON. They happen now, a microsecond apart.

        Making a `Trade` only to encode it would cost as much again; here, whatever repeats is formatted once. A test
        ensures that the result is what `encode` would return.
        """
        messages: list[tuple[str, str]] = []
        while len(messages) < count:
            messages += self._trades_of_a_millisecond(count - len(messages))
        return messages

    def _trades_of_a_millisecond(self, at_most: int) -> list[tuple[str, str]]:
        """Format trades until the current millisecond is full; at least one, at most `at_most`."""
        market, id_middle, chances = self._drawn
        quotes, market_clock = market.quotes, self._market_clock
        now = self._clock()
        if market_clock is None:
            _move(market, now)
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
        # Every 100 ns in this loop costs a tenth of the producer's rate.
        for id_fraction, stamp_end, (id_tail, share, successor, level) in zip(
            id_fractions, stamp_ends, chances, strict=False
        ):
            if market_clock is not None:
                _move(market, market_clock())
            quote = quotes[share] = quotes[share].successors[successor]
            json = (
                f"{id_head}{id_fraction}{id_middle}{id_tail}{quote.price_text}{quote.volume_texts[level]}"
                f"{second}{stamp_end}"
            )
            messages.append((quote.ticker, json))
        self._moment = moment + len(messages) - 1
        self._id_moment = id_moment + len(messages) - 1
        return messages


def _move(market: Market, moment: int) -> None:
    """Advance the market to `moment` (ns), and format what each quote contributes to a trade's JSON."""
    if market.move(moment):
        for share in market.shares:
            bid, volume = share.bid, share.median_volume
            for quote in share.quotes:
                quote.price_text = f'","ticker":"{quote.ticker}","price":{(bid + quote.offset) / 100},"volume":'
                quote.volume_texts = _volume_texts(volume, quote.side)


@cache
def _volume_texts(median: int, side: str) -> list[str]:
    """Return the JSON from the volume to the timestamp's key, for 256 equally likely volumes."""
    return [f'{volume},"side":"{side}","timestamp":"' for volume in volumes(median)]


def _chances(random: Random) -> Iterator[Iterator[tuple[str, int, int, int]]]:
    """Draw the random parts of each trade, in blocks: 12 hexadecimal digits, the index of its share, two bytes."""
    by_activity = bytes(number for number, listing in enumerate(LISTINGS) for _ in range(listing.activity))
    while True:
        id_tails = random.randbytes(6 * 256).hex(" ", 6).split()
        shares = random.randbytes(256).translate(by_activity)
        yield zip(id_tails, shares, random.randbytes(256), random.randbytes(256), strict=True)
