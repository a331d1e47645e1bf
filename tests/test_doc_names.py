"""Documents and benchmark spell what the code has: subjects as the contract writes them, functions by their names."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from actors.contract import subjects
from actors.contract.subjects import CDC_GAP, matches, parse
from tests.documents import PAGES, section
from tests.servers import ROOT

# -- subjects

DOCUMENTS = ("README.md", "compose/README.md", *PAGES)
BENCH = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "bench").rglob("*.py")))
SPELLED = re.compile(r"(?<![\w/-])(?:(?:cdc|init|snapshot)\.(?=[\w{$*>])|\$KV\.)[^\s`'\",;|)\]]+")
FILLED = {"operation": "insert", "snapshot_id": "snap-1-a", "chunk": "0"}
"""What stands in a subject for a part in braces; for any other part a table's token."""
BUCKETS = (subjects.SCHEMAS, subjects.BRIDGES, subjects.DICTIONARIES)
WRITTEN = (
    *subjects.cdc_subjects("users"), *subjects.init_subjects("users"), *subjects.arrays_of_table("users"),
    subjects.request("users"), *(subjects.bucket_key(bucket, "users") for bucket in BUCKETS),
)  # fmt: skip


def spelled_subjects(text: str) -> list[str]:
    text = re.sub(r"\{\{wildcard\(\d\)\}\}", "*", text)  # in a stream's transform
    found = [subject.rstrip(".:") for subject in SPELLED.findall(text)]
    return [re.sub(r"(?<=\.)\$?\{(\w+)\}", lambda part: FILLED.get(part[1], "users"), subject) for subject in found]


def is_known(subject: str) -> bool:
    """Whether a subject is one that the contract's functions write, or a pattern that takes one of them."""
    read = parse(subject)
    if read is not None and read.kind == "key":
        return read.bucket in BUCKETS
    return read is not None or any(matches(subject, written) for written in WRITTEN)


@pytest.mark.parametrize("path", [*DOCUMENTS, *BENCH])
def test_every_subject_is_spelt_as_the_contract_has_it(path: str) -> None:
    spelled = spelled_subjects((ROOT / path).read_text(encoding="utf-8"))
    assert not [subject for subject in spelled if not is_known(subject)]


def test_subjects_are_found_and_a_wrong_one_is_seen() -> None:
    text = "`cdc.{table}.{operation}`, f\"init.snap.{token}.>\", '_NAME.cdc.>', $KV.schemas.> and a snapshot. Then init.begin.users."
    found = spelled_subjects(text)
    assert found == ["cdc.users.insert", "init.snap.users.>", "cdc.>", "$KV.schemas.>", "init.begin.users"]
    assert [is_known(subject) for subject in found] == [True, True, True, True, False]
    assert not is_known("$KV.shapes.>")
    assert CDC_GAP in spelled_subjects((ROOT / "docs/consumers.md").read_text(encoding="utf-8"))


def test_the_examples_compare_with_kinds_that_subjects_have() -> None:
    kinds = re.findall(r'\bkind ={2,3} "(\w+)"', (ROOT / "docs/consumers.md").read_text(encoding="utf-8"))
    assert set(kinds) >= {subject("users").split(".")[1] for subject in (subjects.init_start, subjects.init_meta)}
    assert set(kinds) <= {subject.split(".")[1] for subject in subjects.init_subjects("users")}


# -- functions

WAYS = ("The way of one row change", "The way of one snapshot request", "The mirror: the way of one event into SQLite")
NOT_OF_CODE = {"last", subjects.SCHEMAS}
"""A field of events and a bucket."""


@cache
def defined_names() -> frozenset[str]:
    """What `actors` defines: modules, classes, functions, methods and attributes; with a dot what a module or a class has."""
    names: set[str] = set()
    for path in (ROOT / "actors").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        owners = [(path.stem, _definitions(tree))]
        owners += [
            (node.name, _definitions(node) | _attributes(node)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        ]
        names |= {path.name}
        for owner, owned in owners:
            names |= {owner, *owned, *(f"{owner}.{name}" for name in owned)}
    return frozenset(names)


def _definitions(node: ast.AST) -> set[str]:
    body = node.body if isinstance(node, (ast.Module, ast.ClassDef)) else ()
    return {inner.name for inner in body if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))}


def _attributes(node: ast.ClassDef) -> set[str]:
    """What a class's methods assign to `self`, and its annotated fields."""
    found = {inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)}
    stored = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store))
    return found | {inner.attr for inner in stored if isinstance(inner.value, ast.Name) and inner.value.id == "self"}


@pytest.mark.parametrize("title", WAYS)
def test_the_ways_name_functions_that_exist(title: str) -> None:
    text = section((ROOT / "docs/design.md").read_text(encoding="utf-8"), title)
    named = {word for word in re.findall(r"`([A-Za-z_][\w.]*)`", text) if not word.startswith("_walbridge_")}
    assert len(named) >= 10
    assert not named - defined_names() - NOT_OF_CODE
