"""The negative control: setups that must lose rows, to prove that the campaign notices a loss."""

from pipeline.local_stack.postgres_server import PostgresServer
from tests.chaos.campaign import DEAD_LETTERS, TOPIC, Campaign, Fault
from tests.chaos.cluster import Cluster
from tests.chaos.machines import Machines
from tests.chaos.report import Report
from tests.services import KafkaClient

TRADES = 5_000


def asynchronous_standby(seed: int) -> Report:
    """Promote an asynchronous standby (commits do not wait for it) after cutting it off for a while."""
    with Machines(synchronous=False) as machines:
        campaign, cluster = campaign_on(machines, seed)

        def kill(primary: PostgresServer) -> None:
            machines.kill(primary)
            machines.lines[machines.pair.standby].mend()  # not the primary's: what it sent is lost, too

        def act() -> None:
            machines.isolate(machines.pair.standby)
            campaign.sleep((3.0, 4.0))
            cluster.primary(kill, machines.reconnect)

        return campaign.run([Fault("asynchronous standby: promoted, lagging behind", act)])


def one_copy(seed: int) -> Report:
    """Kill the broker that has the only copy of the topic, and bring it back empty."""
    with Machines(copies=1) as machines:
        campaign, cluster = campaign_on(machines, seed)

        def act() -> None:
            broker = machines.brokers[seed % len(machines.brokers)]
            machines.move(TOPIC, [broker])
            campaign.sleep((3.0, 4.0))
            cluster.wipe(broker)
            machines.start(broker)
            for topic in (TOPIC, DEAD_LETTERS):
                machines.elect(topic)  # otherwise Kafka might wait for the lost copy

        return campaign.run([Fault("broker with the only copy: comes back empty", act)])


def campaign_on(machines: Machines, seed: int) -> tuple[Campaign, Cluster]:
    """Return a campaign of one fault, and the cluster's faults to choose from."""
    kafka = KafkaClient(machines.bootstrap_servers)
    campaign = Campaign(kafka, machines.database_url, seed, faults=1, trades=TRADES)
    return campaign, Cluster(campaign, machines)


def run(seed: int) -> bool:
    """Run both; return whether both lost trades."""
    reports = [asynchronous_standby(seed), one_copy(seed)]
    for report in reports:
        print(report)
    lost = [report.lost for report in reports]
    outcome = "as they must" if all(lost) else "❌ and should have: the campaign would not notice a loss"
    print(f"With an asynchronous standby {lost[0]:,} trades were lost, with one copy {lost[1]:,}, {outcome}.")
    return all(lost)
