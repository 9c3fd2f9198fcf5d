"""Faults on a single machine: a broker and a PostgreSQL that keep their data."""

from pipeline.local_stack.server import Server
from tests.chaos.campaign import MOST_CONSUMERS, OUTAGE, Campaign, Fault, freeze, thaw
from tests.services import Kafka, Postgres

LONG_OUTAGE = (61.0, 75.0)  # seconds


class SingleMachine:
    """The faults of a campaign's two servers."""

    def __init__(self, campaign: Campaign, broker: Kafka, postgres: Postgres) -> None:
        self.campaign = campaign
        self.broker = broker
        self.postgres = postgres

    def faults(self) -> list[Fault]:
        """Return every fault that may happen."""
        return [
            *self.campaign.own_faults(),
            Fault("PostgreSQL: crashed", lambda: self.crash(self.postgres), 3),
            Fault("PostgreSQL: frozen", lambda: self.freeze(self.postgres)),
            Fault("broker: killed", lambda: self.crash(self.broker), 2),
            Fault("broker: frozen", lambda: self.freeze(self.broker)),
            Fault("broker: away for over a minute", self.long_outage, 0.5, lambda: self.campaign.long),
            Fault("broker and PostgreSQL: crashed at once", lambda: self.crash(self.broker, self.postgres), 2),
            Fault("PostgreSQL: away while consumers come and go", lambda: self.come_and_go(self.postgres), 2),
            Fault("broker: away while consumers come and go", lambda: self.come_and_go(self.broker), 2),
        ]

    def crash(self, *servers: Server) -> None:
        """Kill servers, and restart them in a random order."""
        for server in servers:
            server.kill()
        self.campaign.sleep(OUTAGE)
        self.bring_back(*servers)

    def bring_back(self, *servers: Server) -> None:
        """Restart servers that were killed; from then on, rows should flow again."""
        for server in self.campaign.random.sample(servers, len(servers)):
            server.start()
        self.campaign.flow.mark()

    def freeze(self, server: Server) -> None:
        """Freeze a server for a while."""
        freeze(server)
        self.campaign.sleep((1.0, 12.0))
        thaw(server)
        self.campaign.flow.mark()

    def long_outage(self) -> None:
        """Keep the broker down for longer than a minute."""
        if self.campaign.producer is not None:  # while it starts, it waits for Kafka only half a minute
            self.campaign.producer.wait_for_line("acknowledged")
        self.broker.kill()
        self.campaign.sleep(LONG_OUTAGE)
        self.bring_back(self.broker)

    def come_and_go(self, server: Server) -> None:
        """Start, stop and kill consumers while a server is down."""
        campaign = self.campaign
        server.kill()
        for _ in range(campaign.random.randint(2, 4)):
            campaign.sleep((0.0, 2.0))
            choices = [campaign.kill_consumer]
            if len(campaign.consumers) < MOST_CONSUMERS:
                choices.append(campaign.start_consumer)
            if len(campaign.consumers) > 1:
                choices.append(campaign.remove_consumer)
            campaign.random.choice(choices)()
        self.bring_back(server)
