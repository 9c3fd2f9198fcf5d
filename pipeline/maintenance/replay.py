"""List the dead letters of KAFKA_TOPIC and, once their cause is fixed, send them back to it.

    python -m pipeline.maintenance.replay                          # their places, reasons and first bytes; then counts
    python -m pipeline.maintenance.replay --reason "two decimals"  # only those with this text in their reason
    python -m pipeline.maintenance.replay --replay 0:17 2:4        # send these back: partition:offset, as listed
    python -m pipeline.maintenance.replay --replay --reason "two decimals"
    python -m pipeline.maintenance.replay --replay --all

A replayed message keeps its original key and value; one that is still invalid becomes a dead letter again. Its
letter gets a mark in the same partition of the dead-letter topic, so that the mark lasts as long as the letter. Message
and mark are written in one transaction: whatever is killed, and whenever, either both exist or neither does. A second
replay started meanwhile ends the first and continues from its marks. So no letter is ever replayed twice.
"""

from pipeline.stop import stop_requested, take_signals

if __name__ == "__main__":
    take_signals()  # before the slower imports

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from pipeline.command import parser, printable, run
from pipeline.kafka import client, reason_of, wait_for_brokers
from pipeline.reasons import REASON_PREFIX, headers_of, reasons
from pipeline.settings import Settings
from pipeline.user_error import UsageError, UserError

MARK = "__replay.of"  # header of a mark: the place of the letter that was replayed
TRANSACTION_SIZE = 100  # letters; consumers of new trades wait for a transaction to end
FIRST_BYTES = 60
SECONDS_FOR_BROKER = 10.0
SECONDS_UNNOTICED = 0.1  # how long a stop may go unnoticed


def unreplayed(settings: Settings) -> Iterator[Message]:
    """Yield the letters that have no mark. Reads the topic twice, so as not to hold it in memory."""
    places: set[str] = set()
    for message in read(settings):
        mark = dict(headers_of(message)).get(MARK)
        if mark is None or reasons(message):  # others may write letters, too, with no reason or with such a header
            places.add(place(message))
        else:
            places.discard(mark.decode(errors="replace"))
    for message in read(settings) if places else ():
        if place(message) in places:
            places.discard(place(message))
            yield message
        if not places:  # newer dead letters are left for the next run
            return


def read(settings: Settings) -> Iterator[Message]:
    """Yield the messages in the dead-letter topic. Raises `UserError`, `KafkaException`."""
    topic = settings.dead_letter_topic
    own: dict[str, Any] = {
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "group.id": settings.group_id,  # joins no group
        "auto.offset.reset": "earliest",  # if the oldest letters are deleted meanwhile
    }
    with closing(client(Consumer, settings.kafka | own)) as consumer:
        known = consumer.list_topics(timeout=SECONDS_FOR_BROKER).topics
        unfinished = set(known[topic].partitions) if topic in known else set()
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in unfinished])
        answered = time.monotonic()
        while unfinished and not stop_requested():
            if (message := consumer.poll(SECONDS_UNNOTICED)) is None:
                if time.monotonic() - answered > SECONDS_FOR_BROKER:
                    raise UserError(f"Kafka at {settings.bootstrap_servers} stopped answering: try again")
                continue
            answered = time.monotonic()
            if (error := message.error()) is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                unfinished.discard(message.partition())
            else:
                raise KafkaException(error)


def transactional_producer(settings: Settings) -> Producer:
    """Return a producer that fences off any earlier replay, running or killed, and aborts its open transaction."""
    own: dict[str, Any] = {
        "transactional.id": f"{settings.dead_letter_topic}.replay",
        "transaction.timeout.ms": 10_000,  # how long consumers of the topic wait for a killed replay
        "message.max.bytes": 1_000_000_000,  # the topic's own limit decides
        "queue.buffering.max.kbytes": 2_000_000_000,
        "queue.buffering.max.messages": 0,  # no limit
    }
    producer = client(Producer, settings.kafka | own)
    producer.init_transactions(SECONDS_FOR_BROKER)
    return producer


def send(producer: Producer, settings: Settings, letters: list[Message]) -> None:
    """Send letters back to their topic, each with its mark. Raises `UserError` if Kafka refuses one."""
    refused: list[str] = []
    for letter in letters:

        def on_delivery(error: KafkaError | None, _: Message, name: str = place(letter)) -> None:
            if error is not None and error.code() > 0:  # librdkafka's own errors, below 0, only follow from another
                refused.append(f"Kafka rejected {name}: {error.str()}; leave it out and try again")

        headers = [(name, value) for name, value in headers_of(letter) if not name.startswith(REASON_PREFIX)]
        try:
            producer.produce(settings.topic, letter.value(), letter.key(), headers=headers, on_delivery=on_delivery)
            producer.produce(settings.dead_letter_topic, partition=letter.partition(), headers={MARK: place(letter)})
        except KafkaException as exception:
            if exception.args[0].code() != KafkaError._STATE:
                raise
            break  # the transaction has failed already; committing it tells why
        producer.poll(0)
    producer.flush()
    if refused:
        raise UserError(refused[0])


def replay(settings: Settings, chosen: Callable[[Message], bool]) -> None:
    """Send the chosen letters back, in transactions of TRANSACTION_SIZE."""
    count = 0
    producer = transactional_producer(settings)  # before reading the marks: from here on nobody else adds any
    letters = filter(chosen, unreplayed(settings))
    try:
        while (some := list(islice(letters, TRANSACTION_SIZE))) and not stop_requested():
            producer.begin_transaction()
            try:
                send(producer, settings, some)
                producer.commit_transaction()
            except (UserError, KafkaException):
                with suppress(KafkaException):  # fenced off, or out of reach: Kafka aborts it when it times out
                    producer.abort_transaction()
                raise
            count += len(some)
    finally:
        print(f"{count:,} dead letters replayed to {settings.topic}.")


def place(message: Message) -> str:
    """Return a message's place in its topic, in the form of the list and the options: partition:offset."""
    return f"{message.partition()}:{message.offset()}"


def read_place(text: str) -> str:
    """Return a place from the command line, if it has the form that `place` writes."""
    if not re.fullmatch(r"\d+:\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text}: give a place as it is listed, partition:offset, such as 0:17")
    return text


def reason(letter: Message) -> str:
    """Return why a message is a dead letter, in one line that is safe to print, whatever its headers contain."""
    return printable(reasons(letter).get("exception.message", "no reason is given").strip().partition("\n")[0])


def show(letters: Iterator[Message]) -> None:
    """Print each letter (place, origin, reason, first bytes), then the number of letters for each reason."""
    counts: Counter[str] = Counter()
    for letter in letters:
        told, value = reasons(letter), letter.value()
        origin = f"{told.get('topic', '?')} {told.get('partition', '?')}:{told.get('offset', '?')}"
        shown = "no value" if value is None else f"{value[:FIRST_BYTES]!r}{'…' if len(value) > FIRST_BYTES else ''}"
        print(f"{place(letter)}  from {origin}  {reason(letter)}  {shown}")
        counts[reason(letter).partition(": ")[0]] += 1  # without its details
    known = "found before the stop" if stop_requested() else "not replayed yet"
    print(f"{counts.total():,} dead letters {known}" + (", by reason:" if counts else "."))
    for text, count in counts.most_common():
        print(f"{count:>9,}  {text}")


def options() -> argparse.ArgumentParser:
    """Return the command-line parser; a wrong option ends it with one line and exit code 2."""
    known = parser(__doc__)
    known.add_argument("places", nargs="*", type=read_place, metavar="P:O", help="only those at partition:offset")
    known.add_argument("--reason", metavar="TEXT", default="", help="only those whose reason contains the text")
    known.add_argument("--replay", action="store_true", help="send the chosen ones back to KAFKA_TOPIC")
    known.add_argument("--all", action="store_true", help="with --replay: all that have not been replayed yet")
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
