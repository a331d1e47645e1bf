"""The outcome of a scenario in numbers, and the table that shows them. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.faults.scenarios import Scenario

_NUMBER = re.compile(r"^(lost|doubled|out of order)(?:: (\d+) events)?")
BEGIN, END = "<!-- from here on: python -m tests.faults --table docs/reliability.md -->", "<!-- to here -->"
HEAD = (
    "| promise | fault | name | runs | faults | events | lost | doubled | out of order | otherwise wrong | reported |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Tally:
    """Of all runs of a scenario."""

    scenario: Scenario
    runs: int = 0
    faults: int = 0
    events: int = 0
    """That WAL held and the stream was compared with."""
    wrong: Counter[str] = field(default_factory=Counter)
    """`lost`, `doubled`, `out of order` in events, and `otherwise` in findings."""
    gaps: int = 0
    told: Counter[str] = field(default_factory=Counter)
    """Events that are missing, by what tells it."""
    codes: Counter[str] = field(default_factory=Counter)
    """In how many runs bridge or mirrors logged each."""
    not_run: str = ""
    """Why it was impossible here."""

    def condemn(self, findings: Iterable[str]) -> None:
        """Count what the judge found."""
        for words in findings:
            match = _NUMBER.match(words)
            self.wrong[match[1] if match else "otherwise"] += int(match[2] or 1) if match else 1

    @property
    def row(self) -> str:
        """Of the table."""
        scenario = self.scenario
        if self.not_run:
            return f"| {scenario.promise} | {scenario.fault} | `{scenario.name}` | not run: {self.not_run} | | | | | | | |"
        kinds = ("lost", "doubled", "out of order", "otherwise")
        numbers = (self.runs, self.faults, self.events, *(self.wrong[kind] for kind in kinds))
        cells = " | ".join(f"{number:,}" for number in numbers)
        return f"| {scenario.promise} | {scenario.fault} | `{scenario.name}` | {cells} | {self._told()} |"

    def _told(self) -> str:
        missing = [f"{count:,} events by {_A[reason]}" for reason, count in sorted(self.told.items())]
        gaps = [f"{self.gaps:,} gap event{'s' if self.gaps > 1 else ''}"] if self.gaps else []
        return ", ".join((*gaps, *missing, *sorted(self.codes))) or "nothing"


_A = {"gap event": "gap events", "suspended table": "suspensions", "removed from the stream": "holes",
      "abandoned history": "abandoned histories"}  # fmt: skip


def table(tallies: Iterable[Tally], method: str) -> str:
    """Markdown: how it was made, then a row for each scenario."""
    return "\n".join((method, "", HEAD, *(tally.row for tally in tallies))) + "\n"


def put_into(text: str, shown: str) -> str:
    """A document with the table between its marks; the table alone if it has none."""
    if BEGIN not in text:
        return shown
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{shown}{END}{rest.partition(END)[2]}"
