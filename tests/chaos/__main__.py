"""Trades flow while everything is killed, again and again; afterwards every row is accounted for.

    python -m tests.chaos                                     # 100 faults, 1,000,000 trades, a random seed
    python -m tests.chaos --faults 20 --trades 100000 --seed 7
    python -m tests.chaos --seeds 1-5                         # one campaign after the other
    python -m tests.chaos --cluster                           # three brokers, a primary and a synchronous standby
    python -m tests.chaos --control                           # one copy, an asynchronous standby: these must lose rows

A campaign runs the real producer.py and a recording producer, which spells trades in every common way and makes every
200th message invalid; one to three consumers; retention; the page, with a viewer. At random moments one of them is
killed, frozen, started or stopped; a server crashes, freezes or stays down; the table is locked; the dead-letter topic
refuses messages, is replayed or deleted; the topic gets more partitions, or is deleted and recreated. The seed fixes
the faults, their order and the pauses, but not the exact microsecond at which a fault strikes.

Code that shares nothing with the consumer derives the expected outcome from what the topic holds: every valid message
as a row with equal values, exactly once; every invalid one in the dead-letter topic, same bytes and key; no other rows
and no other dead letters. Everything that Kafka has acknowledged has to be in the topic. No process may end by itself,
print a traceback, or take more than ten seconds to stop.
"""

import argparse
import random
import signal
import sys

from tests.chaos import control
from tests.chaos.campaign import Campaign, Fault
from tests.chaos.cluster import Cluster
from tests.chaos.machines import Machines
from tests.chaos.report import Report
from tests.chaos.single import SingleMachine
from tests.services import Kafka, KafkaClient, Postgres


def main() -> int:
    """Run the campaigns; return the exit code, 0 if nothing was found."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reports = []
    try:
        if options.control:
            return 0 if control.run(options.seeds[0]) else 1
        for seed in options.seeds:
            print(f"Seed {seed}", flush=True)
            run = cluster if options.cluster else single_machine
            reports.append(run(seed, options.faults, options.trades, options.only))
            print(reports[-1], flush=True)
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130
    if len(reports) > 1:
        print(*(report.summary() for report in reports), sep="\n")
    return 1 if any(report.findings for report in reports) else 0


def single_machine(seed: int, faults: int, trades: int, only: str = "") -> Report:
    """Run a campaign on its own broker and PostgreSQL."""
    with Kafka() as broker, Postgres() as postgres:
        broker.archive_classes()  # so that it restarts quickly
        campaign = Campaign(broker, postgres.url, seed, faults, trades)
        return campaign.run(matching(SingleMachine(campaign, broker, postgres).faults(), only))


def cluster(seed: int, faults: int, trades: int, only: str = "") -> Report:
    """Run a campaign on its own five machines."""
    with Machines() as machines:
        campaign = Campaign(KafkaClient(machines.bootstrap_servers), machines.database_url, seed, faults, trades)
        return campaign.run(matching(Cluster(campaign, machines).faults(), only))


def matching(faults: list[Fault], text: str) -> list[Fault]:
    """Return the faults with the text in their names."""
    return [fault for fault in faults if text in fault.name]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    known = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known.add_argument("--faults", type=int, default=100)
    known.add_argument("--trades", type=int, default=1_000_000)
    known.add_argument("--seed", dest="seeds", type=lambda text: [int(text)], default=[random.randrange(1_000_000)])
    known.add_argument("--seeds", type=read_seeds, default=argparse.SUPPRESS, help="several, such as 1-5 or 3,7,9")
    known.add_argument("--only", default="", metavar="TEXT", help="only faults whose name has this in it")
    known.add_argument("--cluster", action="store_true", help="several machines, any of which may die")
    known.add_argument("--control", action="store_true", help="machines that have to lose rows; exit code 0 if they do")
    return known


def read_seeds(text: str) -> list[int]:
    """Parse a list of seeds: 1-3,7 → 1, 2, 3, 7."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


if __name__ == "__main__":
    sys.exit(main())
