"""Writes the files of histories, and the README's table.

`python -m consumers.conformance.make --by-hand`: those that are written step by step, always the same.
`python -m consumers.conformance.make --servers`: those that are recorded from a bridge on real servers, new each time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from actors.certify.history import History
from consumers.conformance import by_hand, from_servers, rounds_by_hand
from consumers.conformance.rules import RULES

HERE = Path(__file__).parent
FOLDER, README = HERE / "histories", HERE / "README.md"
HEADING = "## The rules\n"


def read_all() -> dict[str, History]:
    """The committed histories, by name."""
    return {path.stem: History.decode(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))}


def write(made: Iterable[History]) -> None:
    """Write histories, and the table of all that there are then."""
    FOLDER.mkdir(exist_ok=True)
    for history in made:
        (FOLDER / f"{history.name}.json").write_bytes(history.encode())
    text = README.read_text(encoding="utf-8")
    README.write_text(text.partition(HEADING)[0] + HEADING + "\n" + "\n".join(rules_table(read_all())) + "\n", encoding="utf-8")


def rules_table(committed: dict[str, History]) -> Iterator[str]:
    """The README's table of rules, each with the histories that try it."""
    yield "| id | rule | histories |"
    yield "|---|---|---|"
    for rule, words in RULES.items():
        names = [f"`{name}`" for name, history in committed.items() if rule in history.rules]
        yield f"| `{rule}` | {words} | {', '.join(names)} |"


if __name__ == "__main__":
    if sys.argv[1:] == ["--by-hand"]:
        write([*by_hand.histories(), *rounds_by_hand.histories()])
    elif sys.argv[1:] == ["--servers"]:
        write(from_servers.histories())
    else:
        sys.exit(__doc__)
