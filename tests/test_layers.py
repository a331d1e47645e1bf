"""Imports point one way: main, bridge, actors, clients, wire, and the plain modules below all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import actors.mirror

PACKAGE = Path(__file__).parents[1] / "actors"
PLAIN = {"config", "nats_context", "errors", "lsn", "messages", "telemetry"}
RANKS = {
    "main": 6,
    "tools": 6,
    "bridge": 5,
    "pipeline": 4,
    "startup": 2,
    "clients": 1,
    "wire": 0,
    "log": 0,
    "metrics": 2,
    "mirror": 3,
    "web": 2,
}
ACTORS = {
    "replication_reader", "decoder", "batcher", "publisher", "acker", "schema_publisher", "wal_monitor", "snapshotter",
    "stream_monitor", "http_server", "heartbeat",
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def rank(name: str) -> int:
    if name in PLAIN:
        return -1
    return 3 if name in ACTORS else RANKS[name]


def imports(path: Path) -> set[str]:
    """What a module imports when it runs; what only the type checker reads does not count."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = name_of(path)
    if own == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "actors" or len(parts) < 2 or parts[1] in ("__version__", own):
            continue
        assert rank(parts[1]) <= rank(own), f"{path.name} imports {module}"
        assert not (own in ACTORS and parts[1] in ACTORS), f"actors do not import each other: {own}, {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_imports_asyncio_and_the_wire_has_no_io(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path)} | imports(path)
    assert not found & {"asyncio", "nats", "nats.aio"}
    if name_of(path) == "wire":
        assert not found & {"trio", "socket", "trio_util"}


def test_no_module_shadows_the_standard_library() -> None:
    assert not {p.stem for p in PACKAGE.glob("*.py")} & {"http", "logging", "json", "types", "utils"}


def test_no_module_of_the_library_has_the_name_of_something_that_it_gives() -> None:
    """Its import would put the module in the place of the function."""
    modules = {path.stem for path in (PACKAGE / "mirror").glob("*.py")}
    assert not modules & set(actors.mirror.__all__)
