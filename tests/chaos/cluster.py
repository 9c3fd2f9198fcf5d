"""Faults on several machines: any one may crash, freeze, be cut off or come back empty, sometimes two at once."""

import shutil
from collections.abc import Callable

from pipeline.local_stack.kafka_server import KafkaServer
from pipeline.local_stack.postgres_server import PostgresServer
from tests.chaos.campaign import OUTAGE, Campaign, Fault, freeze, thaw
from tests.chaos.machines import Machine, Machines

OFFSETS = "__consumer_offsets"
REACTION = (0.2, 2.0)  # seconds until the operator, or its stand-in, promotes the standby


class Cluster:
    """The faults of a campaign's five machines. After each fault all of them are up again and in sync."""

    def __init__(self, campaign: Campaign, machines: Machines) -> None:
        self.campaign = campaign
        self.machines = machines

    def faults(self) -> list[Fault]:
        """Return every fault that may happen."""
        faults = [
            *self.campaign.own_faults(),
            Fault("broker: killed", lambda: self.broker(self.machines.kill, self.machines.start), 6),
            Fault("broker: frozen, thawed after its successor took over", lambda: self.broker(freeze, thaw), 3),
            Fault("broker: cut off", lambda: self.broker(self.machines.isolate, self.machines.reconnect), 3),
            Fault("broker: cut off, still hears", lambda: self.broker(self.mute, self.machines.reconnect), 2),
            Fault("broker: cut off, still speaks", self.deafen_broker, 2),
            Fault("broker: comes back empty", lambda: self.broker(self.wipe, self.machines.start), 2),
            Fault("offsets topic: a single copy, and its broker is killed", self.forget_offsets_topic),
            Fault("primary: killed", lambda: self.primary(self.machines.kill, nothing), 5),
            Fault("primary: frozen, thawed after its successor took over", lambda: self.primary(freeze, thaw), 3),
            Fault("primary: cut off", lambda: self.primary(self.machines.isolate, self.machines.reconnect), 3),
            Fault("primary: cut off, still hears", lambda: self.primary(self.mute, self.machines.reconnect), 2),
            Fault("primary: cut off, still speaks", lambda: self.primary(self.deafen, self.machines.reconnect), 2),
            Fault("standby: killed", lambda: self.standby(self.machines.kill, self.machines.start), 2),
            Fault("standby: frozen", lambda: self.standby(freeze, thaw), 2),
            Fault("standby: cut off", lambda: self.standby(self.machines.isolate, self.machines.reconnect), 2),
            Fault("standby: comes back empty", lambda: self.standby(self.machines.kill, self.rebuild)),
            Fault("broker and primary: killed at once", self.kill_broker_and_primary, 3),
            Fault("broker and consumer: killed at once", self.kill_broker_and_consumer, 3),
        ]
        return [Fault(fault.name, self.then_heal(fault.action), fault.weight, fault.possible) for fault in faults]

    def then_heal(self, action: Callable[[], None]) -> Callable[[], None]:
        """Return the action, followed by a wait until any one machine may fail again."""

        def heal() -> None:
            action()
            self.machines.heal()

        return heal

    # -- brokers: rows have to flow again without the one that failed

    def broker(self, hit: Callable[[KafkaServer], None], mend: Callable[[KafkaServer], None]) -> None:
        """Hit a broker, and mend it, usually after its successors have taken over."""
        broker = self.campaign.random.choice(self.machines.brokers)
        hit(broker)
        self.campaign.flow.mark()
        self.wait_for_rows_or_not()
        mend(broker)

    def deafen_broker(self) -> None:
        """Let nothing reach a broker while its own messages still get out, so that the others think it is alive.

        The partitions it leads may stand still until the line is mended.
        """
        broker = self.campaign.random.choice(self.machines.brokers)
        self.deafen(broker)
        self.campaign.sleep((1.0, 10.0))
        self.machines.reconnect(broker)
        self.campaign.flow.mark()

    def wipe(self, broker: KafkaServer) -> None:
        """Kill a broker, and delete all its data."""
        self.machines.kill(broker)
        shutil.rmtree(broker.data)

    def forget_offsets_topic(self) -> None:
        """Leave the group's offsets on one broker only, and kill it: rows flow again once an operator recovers them.

        Kafka does not trust the only copy after its broker has crashed (KIP-966), until somebody tells it to.
        """
        only = self.campaign.random.choice(self.machines.brokers)
        self.machines.move(OFFSETS, [only])
        self.machines.kill(only)
        self.campaign.sleep(OUTAGE)
        self.machines.start(only)
        self.machines.elect(OFFSETS)
        self.campaign.flow.mark()
        self.campaign.wait_for_rows("after the only broker with the offsets came back")
        self.machines.move(OFFSETS, self.machines.brokers)

    # -- PostgreSQL: rows have to flow again as soon as the standby is promoted

    def primary(self, hit: Callable[[PostgresServer], None], mend: Callable[[PostgresServer], None]) -> None:
        """Hit the primary and promote the standby; later, rebuild the old primary as the standby."""
        old = self.machines.pair.primary
        hit(old)
        self.campaign.sleep(REACTION)
        self.machines.pair.promote()
        self.campaign.flow.mark()
        self.wait_for_rows_or_not()
        mend(old)
        self.campaign.sleep(REACTION)  # meanwhile there are two primaries: the old one must not acknowledge anything
        self.machines.rebuild()

    def standby(self, hit: Callable[[PostgresServer], None], mend: Callable[[PostgresServer], None]) -> None:
        """Hit the standby, which every commit waits for, and mend it."""
        standby = self.machines.pair.standby
        hit(standby)
        self.campaign.sleep(OUTAGE)
        mend(standby)
        self.campaign.flow.mark()

    def rebuild(self, _: PostgresServer) -> None:
        """Rebuild the standby."""
        self.machines.rebuild()

    # -- two at once

    def kill_broker_and_primary(self) -> None:
        """Kill both; the standby is promoted while the broker is still down."""
        broker = self.campaign.random.choice(self.machines.brokers)
        self.machines.kill(broker)
        self.primary(self.machines.kill, nothing)
        self.machines.start(broker)

    def kill_broker_and_consumer(self) -> None:
        """Kill both; another consumer starts while the broker is down."""
        broker = self.campaign.random.choice(self.machines.brokers)
        self.machines.kill(broker)
        self.campaign.kill_consumer()
        self.wait_for_rows_or_not()
        self.machines.start(broker)

    # -- what can be done to any of them

    def wait_for_rows_or_not(self) -> None:
        """Usually, wait until rows flow without the machine that was hit; then always pause."""
        if self.campaign.random.random() < 0.8:
            self.campaign.wait_for_rows("while a machine is away")
        self.campaign.sleep(OUTAGE)

    def mute(self, machine: Machine) -> None:
        """Drop everything that a machine sends; it still receives."""
        self.machines.isolate(machine, hears=True)

    def deafen(self, machine: Machine) -> None:
        """Drop everything sent to a machine; it can still send."""
        self.machines.isolate(machine, speaks=True)


def nothing(machine: Machine) -> None:
    """Leave a machine as it is."""
