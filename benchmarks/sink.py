r"""How fast consumer.py and its peers drain a full topic into PostgreSQL, with `psql \copy` as the limit.

    python -m benchmarks.sink                                   # everything, half an hour
    python -m benchmarks.sink --systems copy,consumer           # only ours, and the limit
    python -m benchmarks.sink --systems copy,consumer --spelling ours,isoformat,javascript,java,local,mixed
    python -m benchmarks.sink --systems copy,consumer --preload 20000000 --spelling ours --partitions 1
    python -m benchmarks.sink --systems consumer --trades 5000000 --rounds 1 --spelling ours --partitions 1
    python -m benchmarks.sink --systems copy,consumer --spelling ours --partitions 3 --consumers 3

It starts its own broker and PostgreSQL and fills a topic for each spelling of the messages (benchmarks/backlog.py) and
number of partitions. In each round, the systems take turns at draining every topic that they can read, each time as a
new group into a new database with the same table, primary key and index. All settings are those of local_stack.py,
except two of PostgreSQL's: autovacuum is off, so that it does not hit one system and spare the next, and the time of
every commit is recorded. The printed figures come from those times:

  rate         rows per second from the first commit to the last, without the rows of the first: start-up, joining
               the group and filling the first batch do not count. `psql \copy` is one commit, so it is timed as a
               whole, from the start of the process. Several consumers start storing once all have joined.
  from start   rows per second from the start of the process to the last commit, everything included.

Several partitions deliver the rows in an order other than that of their keys. What that costs PostgreSQL is shown by
`psql \copy` of the rows in the order in which consumer.py stored them.

Every system has to end with exactly the rows that were produced; each runs with its fastest settings under which a
redelivered row is harmless (benchmarks/systems.py).
"""

import argparse
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median
from uuid import uuid4

from benchmarks.backlog import SPELLINGS, fill
from benchmarks.command import machine, numbers, parser, run, say, say_table
from benchmarks.drain import Drain, clone, drain, preload, save_rows
from benchmarks.systems import SYSTEMS, Task
from tests.services import Kafka, Postgres

HEADINGS = (
    *("system", "spelling", "partitions", "rows/s", "lowest – highest", "of `\\copy`", "consumer.py is"),
    *("from start", "of `\\copy`", "commits", "peak memory"),
)


@dataclass(frozen=True)
class Contestant:
    """A system, the topic that it drains (psql reads the same rows from a file) and the rows already in the table.

    psql with `partitions` loads the rows in the order in which consumer.py stored them from that many partitions.
    """

    name: str
    spelling: str = ""
    partitions: int = 0
    rows_before: int = 0

    @property
    def topic(self) -> str:
        """The topic with these messages; empty for psql."""
        return f"{self.spelling}-{self.partitions}" if self.spelling else ""

    @property
    def as_stored(self) -> bool:
        """Whether psql loads the rows in the consumer's order."""
        return not self.topic and self.partitions > 0

    @property
    def title(self) -> str:
        """The name to print."""
        full = f", {self.rows_before / 1e6:g} M rows there" if self.rows_before else ""
        order = f", rows as stored from {self.partitions} partitions" if self.as_stored else ""
        return SYSTEMS[self.name].title + order + full


Results = dict[Contestant, list[Drain]]


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return who takes part, in the order of their turns."""
    found = []
    for rows_before in (0, options.preload) if options.preload else (0,):
        if "copy" in options.systems:
            found.append(Contestant("copy", rows_before=rows_before))
        for name in options.systems:
            for spelling in SYSTEMS[name].reads:
                for partitions in options.partitions if spelling in options.spelling else ():
                    found.append(Contestant(name, spelling, partitions, rows_before))
    if {"copy", "consumer"} <= set(options.systems):
        found += [Contestant("copy", partitions=partitions) for partitions in options.partitions if partitions > 1]
    return found


def measure(options: argparse.Namespace) -> None:
    """Run all rounds and print the table."""
    for name in options.systems:
        SYSTEMS[name].install()
    entrants = contestants(options)
    with Kafka() as broker, Postgres(autovacuum="off", track_commit_timestamp="on") as postgres:
        rows_file = broker.folder / "rows.txt"
        topics = {entrant.topic: entrant for entrant in entrants if entrant.topic}
        for topic, entrant in topics.items():
            broker.create_topic(topic, entrant.partitions)
        backlog = fill(
            broker, {topic: entrant.spelling for topic, entrant in topics.items()}, options.trades, rows_file
        )
        templates = {0: postgres.fresh_database()}
        if options.preload:
            templates[options.preload] = postgres.fresh_database()
            preload(templates[options.preload], options.preload)

        def take_turn(entrant: Contestant) -> Drain:
            folder = broker.folder / f"drain-{uuid4().hex}"
            folder.mkdir()
            copies = options.consumers if entrant.name == "consumer" else 1
            as_stored = broker.folder / f"rows-{entrant.partitions}.txt"
            rows = as_stored if entrant.as_stored else rows_file
            with clone(postgres, templates[entrant.rows_before]) as database:
                task = Task(
                    broker.bootstrap_servers, entrant.topic, entrant.spelling, folder.name, database, rows, folder
                )
                result = drain(entrant.title, SYSTEMS[entrant.name], task, backlog, copies)
                if entrant.name == "consumer" and entrant.partitions > 1 and not as_stored.exists():
                    save_rows(database, as_stored)
            return result

        results: Results = {entrant: [] for entrant in entrants}
        for number in range(options.rounds):
            for entrant in entrants:
                result = take_turn(entrant)
                results[entrant].append(result)
                label = f"{entrant.title} {entrant.topic}"
                say(f"round {number + 1} of {options.rounds}  {label:<55} {result.rate:>9,.0f} rows/s")
    print_results(options, results)


def print_results(options: argparse.Namespace, results: Results) -> None:
    """Print the medians over the rounds, of the figures and of the ratios."""
    consumers = f", {options.consumers} consumers" if options.consumers > 1 else ""
    say(f"\n{options.trades:,} trades{consumers}, medians of {options.rounds} rounds; {machine()}\n")
    rows = []
    for entrant, drains in results.items():
        rates = [each.rate for each in drains]
        limit = results.get(Contestant("copy", rows_before=entrant.rows_before))
        consumer = Contestant("consumer", entrant.spelling, entrant.partitions, entrant.rows_before)
        rows.append(
            [
                entrant.title,
                entrant.spelling,
                str(entrant.partitions or ""),
                f"{median(rates):,.0f}",
                f"{min(rates):,.0f} – {max(rates):,.0f}",
                ratio(drains, limit),
                ratio(results.get(consumer), drains),
                f"{median(each.rate_from_start for each in drains):,.0f}",
                ratio(drains, limit, from_start=True),
                f"{median(each.commits for each in drains):,.0f}",
                f"{median(each.peak_memory for each in drains):,.0f} MB",
            ]
        )
    say_table(HEADINGS, rows)
    say("")
    for entrant in results:
        if entrant.name == "consumer":
            compare(results, entrant, Contestant("consumer", "ours", entrant.partitions, entrant.rows_before))
            compare(results, entrant, Contestant("copy", "", entrant.partitions, entrant.rows_before))
        compare(results, entrant, Contestant(entrant.name, entrant.spelling, entrant.partitions))


def compare(results: Results, entrant: Contestant, other: Contestant) -> None:
    """Print the rate of one contestant as a ratio of another's, if both took part."""
    if entrant != other and other in results:
        share = ratio(results[entrant], results[other])
        say(f"{entrant.title} {entrant.topic}: {share} the rate of {other.title} {other.topic}".rstrip())


def ratio(these: list[Drain] | None, those: list[Drain] | None, from_start: bool = False) -> str:
    """Return the median of the rounds' ratios, as text."""
    if not these or not those:
        return ""
    one, other = ([each.rate_from_start if from_start else each.rate for each in drains] for drains in (these, those))
    return f"{median(mine / theirs for mine, theirs in zip(one, other, strict=True)):.2f} ×"


def options_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = parser(__doc__)
    options.add_argument("--systems", type=some_of(SYSTEMS), default=[*SYSTEMS], help=f"of {','.join(SYSTEMS)}")
    options.add_argument(
        "--spelling", type=some_of(SPELLINGS), default=["ours", "isoformat"], help=f"of {','.join(SPELLINGS)}"
    )
    options.add_argument("--partitions", type=numbers, default=[1, 6], help="of the topics, as 1,6")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--trades", type=int, default=1_000_000, help="in each topic")
    options.add_argument("--consumers", type=int, default=1, help="processes of consumer.py in its group")
    options.add_argument("--preload", type=int, default=0, help="rows in a second table to start from")
    return options


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser for an option that takes a comma-separated list of known names."""

    def names(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"no {','.join(sorted(unknown))}: choose from {','.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    sys.exit(run(options_parser(), measure))
