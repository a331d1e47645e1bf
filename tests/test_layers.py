"""Imports point one way, from `main` down to `errors`: the layers of docs/design.md, and no circles anywhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import actors.mirror

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "actors"
ACTORS = (
    "replication_reader", "decoder", "batcher", "publisher", "acker", "status_reporter", "snapshotter", "schema_publisher",
    "wal_monitor", "stream_monitor", "publication_monitor", "heartbeat", "otlp_exporter", "statsd_sender", "http_server",
)  # fmt: skip
LAYERS = (
    ("errors", "channels", "positions"),
    ("wire",),
    ("messages",),
    ("values",),
    ("contract", "settings"),
    ("telemetry",),
    ("process", "pause", "pace"),
    ("clients", "web"),
    ("startup",),
    ("snapshots", "suspensions", "feedback", "publication_model", "batches", "confirm_hold"),
    (*ACTORS, "mirror", "embedded", "sample", "dictionaries"),
    ("session",),
    ("pipeline", "verification", "demo", "doctor", "tail", "certify"),
    ("bridge",),
    ("commands",),
    ("main",),
)
"""From the lowest to the highest: a module imports from its own layer's folder and from lower layers, never sideways or up."""
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))
WITHOUT_IO = ("wire", "values", "contract", "messages", "positions", "errors")


class Facts(NamedTuple):
    """What the tests ask of a module; the parsed module itself is large."""

    imports: frozenset[str]
    """When it runs."""
    imports_for_types: frozenset[str]
    """Also those that only the type checker reads."""
    strings: tuple[tuple[int, str], ...]
    """By line."""


@cache
def facts(path: Path) -> Facts:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    left_out = {
        inner
        for node in nodes
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    running: set[str] = set()
    for_types: set[str] = set()
    for node in nodes:
        found: set[str] = set()
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        for_types |= found
        if node not in left_out:
            running |= found
    strings = [(n.lineno, n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return Facts(frozenset(running), frozenset(for_types), tuple(strings))


def imports(path: Path, *, for_types: bool = False) -> frozenset[str]:
    """The modules that a module imports when it runs; with `for_types` also those that only the type checker reads."""
    return facts(path).imports_for_types if for_types else facts(path).imports


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(("actors", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms == set(RANKS)


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_documents_state_these_layers(document: str) -> None:
    (block,) = re.findall(r"^```\n(errors, .*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    stated = [layer.split(", ") for layer in " ".join(block.split()).split(" → ")]
    assert stated == [list(dict.fromkeys("actors" if room in ACTORS else room for room in layer)) for layer in LAYERS]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_imports_point_down(path: Path) -> None:
    own = room_of(path)
    if own == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "actors" or len(parts) < 2 or parts[1] in ("__version__", own):
            continue
        assert RANKS[parts[1]] < RANKS[own], f"{ids(path)} imports {module}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Nor by way of what only the type checker reads: two modules that name each other's types are one concept."""
    names = {dotted(path): path for path in MODULES}
    below = {name: {module for module in imports(path, for_types=True) if module in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for module in sorted(below[name] - {name}):
                # a module is loaded after its package, which may hand out what is in it
                if not name.startswith(f"{module}."):
                    visit(module, (*way, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_nobody_imports_asyncio_and_the_rules_have_no_io(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path)} | imports(path)
    assert "asyncio" not in found
    of_nats_py = {module for module in found if module.startswith("nats.")}
    assert not of_nats_py or room_of(path) in ("clients", "startup")
    assert all(module.startswith("nats.js.api") for module in of_nats_py), "its records alone are free of I/O"
    if room_of(path) in WITHOUT_IO:
        assert not found & {"trio", "socket", "trio_util"}


SPELLED = re.compile(r"(^|\.)(cdc|init|snapshot)\.|^KV_|^\$KV\.")
"""The beginning of a subject, also behind a stream's prefix, or of a bucket's stream."""


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "contract"], ids=ids)
def test_no_module_outside_of_the_contract_spells_a_subject(path: Path) -> None:
    words = [(line, word) for line, word in facts(path).strings if " " not in word]
    assert not [(line, word) for line, word in words if SPELLED.search(word)]


TESTS = sorted(path for folder in ("tests", "property_tests") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_from_another_test_module(path: Path) -> None:
    """What tests share is in modules of helpers, which hold no tests."""
    assert not [m for m in imports(path) if re.match(r"(property_)?tests\.(.*\.)?test_", m)]


@pytest.mark.parametrize("path", sorted((ROOT / "bench").rglob("*.py")), ids=lambda path: path.name)
def test_the_benchmark_imports_no_tests_and_nothing_of_the_extras_for_them(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path)}
    assert not found & {"tests", "property_tests", "pytest", "hypothesis", "cryptography", "yaml", "playwright"}


def test_no_module_shadows_the_standard_library() -> None:
    assert not {p.stem for p in PACKAGE.glob("*.py")} & {"http", "logging", "json", "types", "utils"}


def test_no_module_of_the_library_has_the_name_of_something_that_it_gives() -> None:
    """Its import would put the module in the place of the function."""
    modules = {path.stem for path in (PACKAGE / "mirror").glob("*.py")}
    assert not modules & set(actors.mirror.__all__)
