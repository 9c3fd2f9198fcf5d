"""What should be in the table and in the dead-letter topic, derived from what the topic itself holds."""

from collections.abc import Iterable

from tests.messages import Row, expected_row

OLD = "2010-01-01"  # retention has to delete the rows before this date; no message is that old
MOST_FINDINGS = 5  # of one kind that are reported one by one

Letter = tuple[bytes | None, bytes | None]  # key and value


class Ledger:
    """Records the topic's messages, valid or not, whoever sent them; finds what the pipeline did wrong with them."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}  # trade_id → hash of the row: a million rows would take a gigabyte
        self.dead_letters: set[Letter] = set()
        self.repeats: list[Row] = []  # trades that the topic holds once more, with equal values
        self.lost = 0  # trades
        self.findings: list[str] = []

    def add(self, key: bytes | None, value: bytes | None) -> None:
        """Record a message of the topic."""
        row = expected_row(value) if value is not None else None
        if row is None:  # a replay may send it again
            self.dead_letters.add((key, value))
        elif row[0] not in self.rows:
            self.rows[row[0]] = hash(row)
        elif self.rows[row[0]] == hash(row):
            self.repeats.append(row)
        else:
            self.findings.append(f"the topic holds another trade of this id: {row}")

    def compare_rows(self, rows: Iterable[Row]) -> int:
        """Compare the table with the messages; return how many rows it has."""
        missing = dict(self.rows)
        wrong, count = [], 0
        for row in rows:
            count += 1
            if missing.pop(row[0], None) != hash(row):
                wrong.append(f"a row that was not produced, or twice: {row}")
        self._tell(wrong)
        if missing:
            self.lost = len(missing)
            self.findings.append(f"{len(missing):,} trades that Kafka holds are not in the table, {min(missing)} first")
        return count

    def compare_dead_letters(self, letters: Iterable[Letter]) -> int:
        """Compare the dead-letter topic with the messages; return how many distinct dead letters there are."""
        found = set(letters)
        self._tell(
            [f"a dead letter without an invalid message: {_short(letter)}" for letter in found - self.dead_letters]
        )
        if missing := self.dead_letters - found:
            example = _short(next(iter(missing)))
            self.findings.append(
                f"{len(missing):,} invalid messages are not in the dead-letter topic, such as {example}"
            )
        return len(found)

    def _tell(self, findings: list[str]) -> None:
        self.findings += findings[:MOST_FINDINGS]
        if more := findings[MOST_FINDINGS:]:
            self.findings.append(f"and {len(more):,} more of these")


def _short(letter: Letter) -> str:
    key, value = letter
    return f"{key!r} {value if value is None else value[:200]!r}"
