"""A campaign from start to finish: which processes run, what happens to them, and what is compared at the end."""

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain

import psutil
import psycopg2
from confluent_kafka.admin import AdminClient, NewPartitions

from pipeline.local_stack.server import Server
from tests.chaos.flow import Flow
from tests.chaos.ledger import OLD, Ledger, Letter
from tests.chaos.page import Page
from tests.chaos.report import Report
from tests.chaos.traffic import PARTITIONS, Pace, RecordingProducer, trade_number
from tests.messages import Row, trade
from tests.script import Script, environment_of
from tests.services import Database, KafkaClient, eventually

TOPIC, GROUP = "orders", "chaos"
DEAD_LETTERS = f"{TOPIC}.dlq"
MOST_PARTITIONS = 6
MOST_CONSUMERS = 3
RETENTION = "3650d"  # far longer than the age of any message; only the old rows go
RECORDED = 0.2  # share of the messages from the recording producer; the rest are producer.py's
USUAL_SECONDS = 7  # that a fault takes, pauses included; a guess that sets producer.py's rate
LONG = 30  # faults; from this many, a campaign has time for faults of over a minute and for a browser
PAUSE = (0.2, 3.0)  # seconds between two faults
OUTAGE = (0.0, 4.0)  # seconds that something stays down
SECONDS_TO_FLOW = 90  # Kafka may wait max.poll.interval.ms for a member that died while joining
SECONDS_TO_CATCH_UP = 180

# Old rows, which the retention that runs meanwhile has to delete.
OLD_ROWS = """
    INSERT INTO trades SELECT gen_random_uuid(), 'OLD', 1, 1, 'buy', timestamp '2001-01-01' + n * interval '1 second'
    FROM generate_series(1, 500) AS n
"""


@dataclass(frozen=True)
class Fault:
    """Something that may happen: what to which component, how often relative to others, and under what condition."""

    name: str  # "component: what hits it"
    action: Callable[[], None]
    weight: float = 1
    possible: Callable[[], bool] = lambda: True


class Campaign:
    """The project's processes, running between Kafka and PostgreSQL, and what is done to them."""

    def __init__(self, kafka: KafkaClient, database_url: str, seed: int, faults: int, trades: int) -> None:
        self.kafka = kafka
        self.database = Database(database_url)
        self.random = random.Random(seed)
        self.report = Report(seed)
        self.ledger = Ledger()
        self.count = faults
        self.long = faults >= LONG
        # When a partition's leader changes, librdkafka sometimes sends a trade twice although it is idempotent:
        # https://github.com/confluentinc/librdkafka/issues/4953. The table has to hold it once.
        self.may_repeat = "," in kafka.bootstrap_servers
        self.trades = round(trades * (1 - RECORDED))  # from producer.py
        self.rate = max(100, round(self.trades / faults / USUAL_SECONDS))
        self.environment = environment_of(kafka.bootstrap_servers, database_url, TOPIC, GROUP)
        self.environment |= {"TRADES_RETENTION": RETENTION, "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS)}
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
        self.pace = Pace(faults)
        messages = round(trades * RECORDED)
        self.recorder = RecordingProducer(kafka.bootstrap_servers, TOPIC, messages, self.pace.progress)
        self.flow = Flow(database_url)
        self.page = Page(database_url, with_browser=self.long)
        self.consumers: list[Script] = []
        self.producer: Script | None = None
        self.retention: Script | None = None
        self.deleted_letters: list[Letter] = []
        self.acknowledged = 0  # trades that earlier producers reported as acknowledged
        self.began = time.monotonic()

    # -- from start to finish

    def run(self, faults: Sequence[Fault]) -> Report:
        """Run the campaign; return its report."""
        try:
            self.set_up()
            for number in range(1, self.count + 1):
                self.hit(number, self.choose(faults))
            self.catch_up()
            self.take_down()
            self.take_stock()
        finally:
            self.recorder.stopped.set()
            self.flow.stopped.set()
            for script in self.running():
                script.kill()
            self.page.kill()
        self.report.seconds = time.monotonic() - self.began
        return self.report

    def set_up(self) -> None:
        """Start everything; the producers last, once the group has its starting offsets."""
        self.kafka.create_topic(TOPIC, PARTITIONS)
        self.start_consumer()
        eventually(lambda: len(self.kafka.committed(TOPIC, GROUP)) == PARTITIONS)
        self.retention = self.script("-m", "pipeline.maintenance.retention")
        self.page.start()
        self.flow.start()
        self.recorder.start()
        self.start_producer()
        self.flow.mark()
        eventually(lambda: self.flow.seconds is not None)

    def choose(self, faults: Sequence[Fault]) -> Fault:
        """Choose one of the faults that are possible now."""
        possible = [fault for fault in faults if fault.possible()]
        return self.random.choices(possible, [fault.weight for fault in possible])[0]

    def hit(self, number: int, fault: Fault) -> None:
        """Trigger one fault; then, two times out of three, wait until rows flow again."""
        self.sleep(PAUSE)
        self.say(f"fault {number} of {self.count}: {fault.name}")
        self.pace.begin_fault()
        self.flow.mark()
        fault.action()
        self.pace.end_fault()
        self.report.done[fault.name] += 1
        if self.random.random() < 2 / 3:
            self.wait_for_rows(fault.name)
        if self.flow.seconds is not None:
            self.report.seconds_to_flow[fault.name].append(self.flow.seconds)
        self.look_after()
        with suppress(psycopg2.Error):  # the server may still be recovering from the fault
            self.database.query(OLD_ROWS)

    def wait_for_rows(self, what: str) -> None:
        """Wait until rows flow again."""
        try:
            eventually(lambda: self.flow.seconds is not None, timeout=SECONDS_TO_FLOW)
        except AssertionError:
            self.find(f"{what}: no rows for {SECONDS_TO_FLOW} s")
            for script in self.running():
                self.say(f"    {script.words}: {' | '.join(script.lines()[-6:])}")

    def catch_up(self) -> None:
        """Produce the remaining trades, and wait until the group has committed everything."""
        self.stop_producer()
        if (missing := self.trades - self.acknowledged) > 0:
            self.start_producer("--rate", "max", "--count", str(missing))
            assert self.producer is not None
            eventually(lambda: self.producer is None or not self.producer.running, timeout=SECONDS_TO_CATCH_UP)
            self.stop_producer()
        while self.recorder.is_alive():
            self.recorder.join(3)
            self.say("the recording producer ends")
        began = time.monotonic()
        self.drain()
        self.report.seconds_to_catch_up = time.monotonic() - began

    def drain(self) -> None:
        """Wait until the group has committed everything that the topic holds."""
        # A transaction ends with a control record, which no consumer can commit: so add one message per partition.
        for partition in range(self.kafka.partitions(TOPIC)):
            self.kafka.produce(TOPIC, [trade()], partition=partition)
        deadline = time.monotonic() + SECONDS_TO_CATCH_UP
        while behind := self.kafka.lag(TOPIC, GROUP):
            self.say(f"{behind:,} messages behind")
            self.look_after()
            if time.monotonic() > deadline:
                return self.find(f"{behind:,} messages behind after {SECONDS_TO_CATCH_UP} s")
            time.sleep(1)

    def take_down(self) -> None:
        """Stop everything as a user does."""
        for script in self.running():
            self.end(script)
        self.report.findings += self.page.stop()
        self.run_to_end("-m", "pipeline.maintenance.retention", "--once")

    def take_stock(self) -> None:
        """Compare topic, table and dead-letter topic."""
        self.say("comparing ...")
        self.enter_topic()
        self.report.acknowledged = self.acknowledged + sum(self.recorder.acknowledged)
        self.report.messages = len(self.ledger.rows) + len(self.ledger.dead_letters)
        self.compare_acknowledged()
        self.report.rows = self.ledger.compare_rows(self.rows(f"timestamp >= '{OLD}'"))
        self.report.dead_letters = self.ledger.compare_dead_letters(chain(self.deleted_letters, self.letters()))
        self.report.repeats = len(self.ledger.repeats)
        if self.ledger.repeats and not self.may_repeat:
            self.find(f"the topic holds {len(self.ledger.repeats):,} trades twice, {self.ledger.repeats[0]} first")
        self.report.lost += self.ledger.lost
        self.report.findings += self.ledger.findings
        if old := sum(1 for _ in self.rows(f"timestamp < '{OLD}'")):
            self.find(f"{old:,} rows that retention should have deleted")

    def enter_topic(self) -> None:
        """Record what the topic holds in the ledger."""
        for message in self.kafka.stream(TOPIC):
            self.ledger.add(message.key(), message.value())

    def compare_acknowledged(self) -> None:
        """Check that Kafka holds everything it has acknowledged."""
        if self.recorder.refused:
            self.find(f"{len(self.recorder.refused)} messages refused by Kafka: {self.recorder.refused[0]}")
        numbers = Counter(trade_number(trade_id) is None for trade_id in self.ledger.rows)
        held = {trade_number(trade_id) for trade_id in self.ledger.rows}
        held |= {int(key[8:]) for key, _ in self.ledger.dead_letters if key and key.startswith(b"invalid-")}
        if lost := [number for number, known in enumerate(self.recorder.acknowledged) if known and number not in held]:
            self.report.lost += len(lost)
            self.find(f"{len(lost):,} acknowledged messages are not in Kafka, {lost[0]} first")
        if numbers[True] < self.acknowledged:
            self.report.lost += self.acknowledged - numbers[True]
            self.find(f"producer.py reported {self.acknowledged:,} trades acknowledged; Kafka holds {numbers[True]:,}")

    def rows(self, condition: str) -> Iterator[Row]:
        """Read the table."""
        with closing(self.database.connect()) as connection, connection.cursor("rows") as cursor:
            cursor.itersize = 10_000
            cursor.execute(f"SELECT trade_id, ticker, price, volume, side, timestamp FROM trades WHERE {condition}")
            yield from cursor

    def letters(self) -> Iterator[Letter]:
        """Read the dead-letter topic, without the markers that replays leave."""
        for message in self.kafka.stream(DEAD_LETTERS):
            if "__connect.errors.topic" in dict(message.headers() or []):
                yield message.key(), message.value()

    # -- the project's processes

    def script(self, *words: str) -> Script:
        """Start one of the project's scripts."""
        self.report.started[words[1] if words[0] == "-m" else words[0]] += 1
        return Script(words, self.environment)

    def start_consumer(self) -> None:
        """Start one more consumer."""
        self.consumers.append(self.script("consumer.py"))

    def take_consumer(self) -> Script:
        """Remove a random consumer from the list, and return it."""
        return self.consumers.pop(self.random.randrange(len(self.consumers)))

    def start_producer(self, *options: str) -> None:
        """Start producer.py, at the usual rate unless the options say otherwise."""
        self.producer = self.script("producer.py", *(options or ("--rate", str(self.rate))))

    def stop_producer(self, kill: bool = False) -> None:
        """Stop producer.py, and add up how many trades it reported as acknowledged."""
        assert self.producer is not None
        if kill:
            self.producer.kill()
        self.end(self.producer)
        told = re.findall(r"([\d,]+) (?:trades )?acknowledged", self.producer.stdout)
        self.acknowledged += int(told[-1].replace(",", "")) if told else 0
        self.producer = None

    def run_to_end(self, *words: str, timeout: float = 60) -> None:
        """Run a script that ends by itself, and has to succeed."""
        script = self.script(*words)
        try:
            if script.wait(timeout) != 0:
                self.find(f"{script.words} ended with: {script.stderr[-300:]}")
        except AssertionError:
            self.find(f"{script.words} did not end within {timeout:g} s")
            script.kill()
        self.look_over(script)

    def running(self) -> list[Script]:
        """Return the project's processes, except for the page."""
        return [*self.consumers, *(script for script in (self.producer, self.retention) if script)]

    def end(self, script: Script) -> None:
        """Stop a script as a user does."""
        if script.running:
            eventually(lambda: script.takes_signals or not script.running)  # before that, Python is still starting
            try:
                code = script.stop(self.random.choice([signal.SIGINT, signal.SIGTERM]))
                if code != 0:
                    self.find(f"{script.words} exited with code {code}: {script.stderr[-300:]}")
            except AssertionError:
                self.find(f"{script.words} took more than ten seconds to stop: {script.stderr[-300:]}")
                script.kill()
        self.look_over(script)

    def look_over(self, script: Script) -> None:
        """Report a traceback, which no script may print."""
        if "Traceback" in script.stderr:
            self.find(f"{script.words} printed a traceback: {script.stderr[-2000:]}")

    def look_after(self) -> None:
        """Report processes that ended without being asked to, and replace them."""
        for script in [script for script in self.running() if not script.running]:
            code = script.wait()
            self.find(f"{script.words} ended by itself, exit code {code}: {script.stderr[-1000:]}")
            if script in self.consumers:
                self.consumers.remove(script)
                self.start_consumer()
            elif script is self.producer:
                self.stop_producer()
                self.start_producer()
            else:
                self.retention = self.script("-m", "pipeline.maintenance.retention")
        self.report.findings += self.page.look()

    # -- faults of the project's own processes, the same for one machine and for several

    def own_faults(self) -> list[Fault]:
        """Return the faults that hit the scripts, and what an operator may do."""
        return [
            Fault("consumer: killed", self.kill_consumer, 5),
            Fault("consumer: frozen for longer than its session", self.freeze_consumer),
            Fault("consumer: joined", self.start_consumer, 2, lambda: len(self.consumers) < MOST_CONSUMERS),
            Fault("consumer: left", self.remove_consumer, 2, lambda: len(self.consumers) > 1),
            Fault("producer: killed", self.kill_producer, 2),
            Fault("producer: restarted", self.restart_producer),
            Fault("table: locked while the group changes", self.lock_table, 2),
            Fault("dead-letter topic: refuses", self.refuse_dead_letters, 2),
            Fault("dead-letter topic: replayed", self.replay, 2),
            Fault("dead-letter topic: replay killed", self.kill_replay),
            Fault("dead-letter topic: deleted", self.delete_dead_letters),
            Fault("topic: partitions added", self.add_partition, 1, lambda: self.partitions() < MOST_PARTITIONS),
            Fault("topic: deleted and recreated", self.make_topic_again),
        ]

    def kill_consumer(self) -> None:
        """Kill a consumer, and start another, at once or a little later."""
        victim = self.take_consumer()
        victim.kill()
        self.flow.mark()
        self.look_over(victim)
        if self.consumers and self.random.random() < 0.5:
            self.sleep(OUTAGE)
        self.start_consumer()

    def freeze_consumer(self) -> None:
        """Suspend a consumer, so that the group may go on without it, and resume it."""
        frozen = self.random.choice(self.consumers)
        frozen.process.send_signal(signal.SIGSTOP)
        self.flow.mark()
        self.sleep((7.0, 11.0))  # the session times out after 6
        frozen.process.send_signal(signal.SIGCONT)

    def remove_consumer(self) -> None:
        """Stop a consumer for good."""
        self.end(self.take_consumer())
        self.flow.mark()

    def kill_producer(self) -> None:
        """Kill producer.py and start another; what it had in flight may or may not be in Kafka."""
        self.stop_producer(kill=True)
        self.flow.mark()
        self.start_producer()

    def restart_producer(self) -> None:
        """Stop producer.py, and start it again."""
        self.stop_producer()
        self.flow.mark()
        self.start_producer()

    def lock_table(self) -> None:
        """Make the consumers wait for the table with full batches, and change the group meanwhile."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE trades IN EXCLUSIVE MODE")
            self.sleep((1.0, 4.0))
            if len(self.consumers) == MOST_CONSUMERS:
                self.take_consumer().kill()
            self.start_consumer()
            self.sleep((1.0, 4.0))
        self.flow.mark()

    def refuse_dead_letters(self) -> None:
        """Make Kafka refuse dead letters for a while: good rows have to flow meanwhile."""
        self.kafka.configure(DEAD_LETTERS, max_message_bytes="1")
        seed = self.random.getrandbits(32)
        self.kafka.produce(TOPIC, [b"refused %d-%d" % (seed, number) for number in range(20)], key=None)
        self.sleep((1.0, 3.0))
        self.flow.mark()
        self.wait_for_rows("while dead letters are refused")
        self.kafka.configure(DEAD_LETTERS, max_message_bytes="104857600")

    def delete_dead_letters(self) -> None:
        """Delete the dead-letter topic, after noting its letters: a consumer that needs it recreates it."""
        assert self.producer is not None
        self.recorder.hold()
        self.producer.process.send_signal(signal.SIGSTOP)
        self.drain()
        self.deleted_letters += self.letters()
        self.kafka.delete_topic(DEAD_LETTERS)
        eventually(lambda: DEAD_LETTERS not in self.kafka.topics())
        self.recorder.go_on()
        self.producer.process.send_signal(signal.SIGCONT)
        self.kafka.produce(TOPIC, [b"deleted-%d" % self.random.getrandbits(32)], key=None)
        self.flow.mark()
        eventually(lambda: DEAD_LETTERS in self.kafka.topics(), timeout=SECONDS_TO_FLOW)
        eventually(lambda: self.kafka.committed(DEAD_LETTERS, GROUP))  # the trace of the group, which later faults need

    def replay(self) -> None:
        """Replay all dead letters, which become dead letters again."""
        self.run_to_end("-m", "pipeline.maintenance.replay", "--replay", "--all", timeout=120)

    def kill_replay(self) -> None:
        """Kill a replay at a random point; consumers may have to wait until its transaction is aborted."""
        replay = self.script("-m", "pipeline.maintenance.replay", "--replay", "--all")
        self.sleep((0.3, 3.0))
        replay.kill()
        self.look_over(replay)
        self.flow.mark()

    def partitions(self) -> int:
        """Return the number of the topic's partitions."""
        return self.kafka.partitions(TOPIC)

    def add_partition(self) -> None:
        """Give the topic one more partition."""
        wanted = self.partitions() + 1
        self.admin.create_partitions([NewPartitions(TOPIC, wanted)])[TOPIC].result()
        eventually(lambda: self.partitions() == wanted)

    def make_topic_again(self) -> None:
        """Delete the topic once all of it is stored; this campaign or a running producer recreates it.

        Nothing in the new topic may be skipped.
        """
        assert self.producer is not None
        witness = self.producer if self.random.random() < 0.5 else None
        self.recorder.hold()
        if witness:
            witness.process.send_signal(signal.SIGSTOP)
            self.may_repeat = True  # its trades in flight may be in the old topic without it ever learning that
        else:
            self.stop_producer()
        self.drain()
        self.enter_topic()
        if idle := self.random.random() < 0.3:  # no consumer is running to notice
            while self.consumers:
                self.end(self.take_consumer())
        self.kafka.delete_topic(TOPIC)
        eventually(lambda: TOPIC not in self.kafka.topics())
        if witness:
            witness.process.send_signal(signal.SIGCONT)
        self.sleep(OUTAGE)
        if not witness or self.random.random() < 0.5:
            with suppress(Exception):  # a script may have created it first
                self.kafka.create_topic(TOPIC, PARTITIONS)
        eventually(lambda: TOPIC in self.kafka.topics(), timeout=SECONDS_TO_FLOW)
        self.recorder.go_on()
        if not witness:
            self.start_producer()
        if idle:
            self.sleep(PAUSE)
            self.start_consumer()
        self.flow.mark()

    # -- along the way

    def sleep(self, bounds: tuple[float, float]) -> None:
        """Sleep for a random time between the bounds (seconds)."""
        time.sleep(self.random.uniform(*bounds))

    def find(self, finding: str) -> None:
        """Record something that is wrong, and print it at once."""
        self.report.findings.append(finding)
        self.say(f"❌ {finding}")

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)


def freeze(server: Server) -> None:
    """Suspend a server; its kernel keeps acknowledging packets."""
    signal_all(server, signal.SIGSTOP)


def thaw(server: Server) -> None:
    """Resume a frozen server."""
    signal_all(server, signal.SIGCONT)


def signal_all(server: Server, number: signal.Signals) -> None:
    """Send a signal to a server and its children; one of them may end meanwhile."""
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
