"""List the dead letters of KAFKA_TOPIC and, once their cause is mended, send them back to it.

    python -m pipeline.maintenance.replay                          # their places, reasons and first bytes; then counts
    python -m pipeline.maintenance.replay --reason "two decimals"  # those whose reason has this in it
    python -m pipeline.maintenance.replay --replay 0:17 2:4        # send these back: partition:offset, as listed
    python -m pipeline.maintenance.replay --replay --reason "two decimals"
    python -m pipeline.maintenance.replay --replay --all

A replayed message has the key and the value that it came with; one that is still invalid becomes a dead letter again.
It leaves a mark in the dead-letter topic, in the partition of its letter and thus as long-lived, and both are written
in one transaction: whatever is killed when, the letter is either replayed and marked, or neither. A second replay that
is started meanwhile ends the first and goes on from its marks. So nothing is replayed twice, however often it is run.
"""

from pipeline.stop import stop_requested, take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.command import parser, printable, run
from pipeline.kafka import client, reason_of, wait_for_brokers
from pipeline.reasons import REASON_PREFIX, headers_of, reasons
from pipeline.settings import Settings
from pipeline.user_error import UsageError, UserError

MARK = "__replay.of"  # header of a mark: the place of the letter that was replayed
TRANSACTION_SIZE = 100  # letters; what is traded meanwhile waits for the end of one
FIRST_BYTES = 60
SECONDS_FOR_BROKER = 10.0

Place = tuple[int, int]  # partition and offset in the dead-letter topic


def unreplayed(settings: Settings) -> Iterator[Message]:
    """Yield the letters that have no mark, partition by partition. Reads the topic twice, to hold none of it."""
    places: set[Place] = set()
    for message in _read(settings):
        if reasons(message):
            places.add(place(message))
        elif mark := dict(headers_of(message)).get(MARK):
            places.discard(read_place(mark.decode()))
    for message in _read(settings) if places else ():
        if place(message) in places:
            places.discard(place(message))
            yield message
        if not places:  # what became a dead letter meanwhile is for the next time
            return


def _read(settings: Settings) -> Iterator[Message]:
    """Yield what the dead-letter topic holds. Raises `UserError`, `KafkaException`."""
    topic = settings.dead_letter_topic
    own = {"enable.auto.commit": False, "enable.partition.eof": True, "group.id": settings.group_id}  # joins no group
    with closing(client(Consumer, settings.kafka | own)) as consumer:
        known = consumer.list_topics(timeout=SECONDS_FOR_BROKER).topics
        unfinished = set(known[topic].partitions) if topic in known else set()
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in unfinished])
        while unfinished and not stop_requested():
            message = consumer.poll(SECONDS_FOR_BROKER)
            if message is None:
                raise UserError(f"Kafka at {settings.bootstrap_servers} does not answer any more: try again")
            if (error := message.error()) is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                unfinished.discard(message.partition())
            else:
                raise KafkaException(error)


class Replay:
    """Sends letters back to their topic, each with its mark."""

    def __init__(self, settings: Settings) -> None:
        """Take over from a replay that runs or was killed: what it had not completed is as if it had never been."""
        self._settings = settings
        self._refusal: str | None = None
        own: dict[str, Any] = {
            "transactional.id": f"{settings.dead_letter_topic}.replay",
            "transaction.timeout.ms": 10_000,  # consumers of the topic wait for one that was killed this long
            "message.max.bytes": 1_000_000_000,  # the topic's own limit decides
            "queue.buffering.max.kbytes": 2_000_000_000,
        }
        self._producer = client(Producer, settings.kafka | own)
        self._producer.init_transactions(SECONDS_FOR_BROKER)

    def run(self, letters: Iterator[Message]) -> Iterator[int]:
        """Replay the letters; yield how many, transaction by transaction. Raises `KafkaException`, `UserError`."""
        while (some := list(islice(letters, TRANSACTION_SIZE))) and not stop_requested():
            self._producer.begin_transaction()
            for letter in some:
                self._send(letter)
            self._producer.flush()
            if self._refusal:
                self._producer.abort_transaction()
                raise UserError(self._refusal)
            self._producer.commit_transaction()
            yield len(some)

    def _send(self, letter: Message) -> None:
        headers = [(name, value) for name, value in headers_of(letter) if not name.startswith(REASON_PREFIX)]

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._refusal = f"Kafka did not take {name_of(place(letter))}: {error.str()}; choose others"

        topic = self._settings.topic
        self._producer.produce(topic, letter.value(), letter.key(), headers=headers, on_delivery=on_delivery)
        mark = {MARK: name_of(place(letter))}
        self._producer.produce(self._settings.dead_letter_topic, partition=letter.partition(), headers=mark)
        self._producer.poll(0)


def place(message: Message) -> Place:
    """Return where in its topic a message is."""
    return message.partition() or 0, message.offset() or 0


def name_of(place: Place) -> str:
    """Return a place as it is listed and given: partition:offset."""
    return f"{place[0]}:{place[1]}"


def read_place(text: str) -> Place:
    """Read what `name_of` wrote."""
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text}: give a place as it is listed, partition:offset, such as 0:17")
    return int(partition), int(offset)


def reason(letter: Message) -> str:
    """Return why a letter is none, as one line; whatever it came with, it cannot meddle with the terminal."""
    return printable(reasons(letter).get("exception.message", "no reason is given").strip().partition("\n")[0])


def describe(letter: Message) -> str:
    """Return a letter as one line: its place, where it came from, the reason, its first bytes."""
    told = reasons(letter)
    origin = f"{told.get('topic', '?')} {told.get('partition', '?')}:{told.get('offset', '?')}"
    value = letter.value()
    shown = "no value" if value is None else f"{value[:FIRST_BYTES]!r}{'…' if len(value) > FIRST_BYTES else ''}"
    return f"{name_of(place(letter))}  from {origin}  {reason(letter)}  {shown}"


def show(letters: Iterator[Message]) -> None:
    """Print each letter, then how many there are for each reason, its details left out."""
    counts: Counter[str] = Counter()
    for letter in letters:
        print(describe(letter))
        counts[reason(letter).partition(": ")[0]] += 1
    print(f"{counts.total():,} dead letters not replayed yet" + (", by reason:" if counts else "."))
    for text, count in counts.most_common():
        print(f"{count:>9,}  {text}")


def replay(settings: Settings, chosen: Callable[[Message], bool]) -> None:
    """Send the chosen letters back."""
    count = 0
    work = Replay(settings)  # before the marks are read: from here on nobody else adds any
    try:
        for done in work.run(filter(chosen, unreplayed(settings))):
            count += done
    finally:
        print(f"{count:,} dead letters replayed to {settings.topic}.")


def options() -> argparse.ArgumentParser:
    """Return the command line's options; a wrong one is one line, exit code 2."""
    known = parser(__doc__)
    known.add_argument("places", nargs="*", type=read_place, metavar="P:O", help="only those at partition:offset")
    known.add_argument("--reason", metavar="TEXT", default="", help="only those whose reason contains the text")
    known.add_argument("--replay", action="store_true", help="send the chosen ones back to KAFKA_TOPIC")
    known.add_argument("--all", action="store_true", help="with --replay: every one that is not replayed yet")
    return known


def main(options: argparse.Namespace, settings: Settings) -> None:
    """Do what the command line says."""
    if options.replay and not (options.places or options.reason or options.all):
        raise UsageError("--replay what? Give places (0:17), --reason TEXT or --all")

    def chosen(letter: Message) -> bool:
        return (not options.places or place(letter) in options.places) and options.reason in reason(letter)

    try:
        wait_for_brokers(settings, SECONDS_FOR_BROKER)
        if stop_requested():
            print("Stopped before it started.")
        elif options.replay:
            replay(settings, chosen)
        else:
            show(filter(chosen, unreplayed(settings)))
    except KafkaException as error:
        raise UserError(reason_of(error)) from None


if __name__ == "__main__":
    sys.exit(run(options(), main))
