"""What passes by itself is listed by its code, as the modules raise it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from actors.errors import TRANSIENT_CODES

PACKAGE = Path(__file__).parents[2] / "actors"
READERS = (PACKAGE / "mirror", PACKAGE / "clients" / "nats" / "ordered_consumer.py")
"""What reads a bridge's streams: its faults are not the bridge's."""
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def transient_classes() -> dict[str, ast.ClassDef | None]:
    """Names of `Transient` and of all classes below it."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef | None] = {"Transient": None}
    while more := [c for c in classes if c.name not in found and {ast.unparse(base) for base in c.bases} & found.keys()]:
        found.update({c.name: c for c in more})
    return found


def codes_raised_in(path: Path) -> Iterator[str]:
    """Codes of the transient errors that a module makes."""
    names = transient_classes()
    # such a class gives its code itself; the others are given theirs
    own = {name for name, node in names.items() if node and any(getattr(n, "name", "") == "__init__" for n in node.body)}
    calls: list[ast.Call] = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and node.name in own:
            inner = (call for call in ast.walk(node) if isinstance(call, ast.Call))
            calls += [call for call in inner if ast.unparse(call.func) == "super().__init__"]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.IfExp):
            made = {name.id for name in ast.walk(node.func) if isinstance(name, ast.Name)}
            if made & (names.keys() - own):
                calls.append(node)
    for call in calls:
        code = call.args[0]
        assert isinstance(code, ast.Constant), f"{path}:{call.lineno}: a code is written where it is raised"
        yield code.value


def test_every_transient_code_of_the_bridge_is_listed_and_no_other() -> None:
    raised = {
        code for path in TREES if not any(path.is_relative_to(room) for room in READERS) for code in codes_raised_in(path)
    }
    assert raised == set(TRANSIENT_CODES)
    assert list(TRANSIENT_CODES) == sorted(raised)


def test_readers_have_transient_codes_of_their_own() -> None:
    """Else the walk over the source sees nothing."""
    raised = {code for path in TREES if any(path.is_relative_to(room) for room in READERS) for code in codes_raised_in(path)}
    assert {"WB214", "WB215", "WB216", "WB503"} <= raised - set(TRANSIENT_CODES)
