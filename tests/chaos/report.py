"""What was done, how long recovery took, and what was found to be wrong."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Report:
    """The outcome of one campaign."""

    seed: int
    done: Counter[str] = field(default_factory=Counter)  # faults, by component and what hit it
    seconds_to_flow: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    started: Counter[str] = field(default_factory=Counter)  # processes by script
    findings: list[str] = field(default_factory=list)
    lost: int = 0  # trades
    messages: int = 0  # in the topic
    acknowledged: int = 0  # according to the producers
    rows: int = 0
    dead_letters: int = 0
    repeats: int = 0  # trades that Kafka holds twice but the table only once
    seconds: float = 0.0
    seconds_to_catch_up: float = 0.0

    def summary(self) -> str:
        """Return the outcome in one line."""
        outcome = f"{len(self.findings)} findings" if self.findings else "nothing lost, doubled or invented"
        worst = max((max(seconds) for seconds in self.seconds_to_flow.values()), default=0.0)
        return (
            f"seed {self.seed}: {self.done.total()} faults, {self.rows:,} rows, {outcome}; "
            f"rows flowed again after {worst:.1f} s at worst"
        )

    def __str__(self) -> str:
        started = ", ".join(f"{count} × {script}" for script, count in sorted(self.started.items()))
        faults = "\n".join(self._fault(fault) for fault in sorted(self.done))
        found = "\n".join(f"  ❌ {finding}" for finding in self.findings)
        return (
            f"Seed {self.seed}, done in {self.seconds:.0f} s: {self.done.total()} faults; started: {started}\n"
            f"  hit by {'':<32} rows flowed again after: median   worst\n{faults}\n"
            f"Kafka holds {self.messages:,} messages, {self.acknowledged:,} of them known to be acknowledged\n"
            f"Found, after {self.seconds_to_catch_up:.0f} s to catch up: {self.rows:,} rows, "
            f"{self.dead_letters:,} different dead letters"
            f"{f', {self.repeats:,} trades that Kafka holds twice' if self.repeats else ''}\n"
            f"{found or '  ✅ nothing lost, doubled or invented'}"
        )

    def _fault(self, fault: str) -> str:
        seconds = self.seconds_to_flow.get(fault)
        times = f"{median(seconds):>24.1f} s {max(seconds):>5.1f} s" if seconds else ""
        return f"  {self.done[fault]:>4} × {fault:<40}{times}"
