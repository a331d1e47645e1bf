"""`walbridge certify`: consumers with planted faults are found, right ones are exact, also the documents' own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.certify.acts import ACTS, plan
from actors.certify.history import History
from actors.certify.port import MalformedAnswer, read_answer
from actors.certify.run import Result
from actors.certify.run import certify as run_certify
from actors.certify.shrinking import shrink
from actors.certify.trial import Setting
from actors.main import main
from tests.documents import section
from tests.examples import examples
from tests.node_replicas import CLIENT, node_with_sqlite
from tests.servers import ROOT

pytestmark = pytest.mark.servers

CONSUMER = str(Path(__file__).parent / "planted" / "consumer.py")
MIRROR = str(Path(__file__).parent / "certified_process.py")
SLOW = ("restart",)
"""It takes a second each time."""
FAULTS = {
    "unchanged": (), "snapshot-lsn": (), "old": (), "swap": (), "truncate": (), "packed": (), "gaps": ("gap",), "shapes": ("shape",),
    "published": ("publish",), "foreign": ("foreign",), "other-bridge": ("gap",), "redelivery": ("cut",),
    "history": ("run out", "delete"), "place-before-rows": ("kill",),
}  # fmt: skip
"""Faults of planted/consumer.py, and the acts beside transactions that show them. Among all acts they are found too, but later."""


def certify(*command: str, rounds: int, without: tuple[str, ...] = SLOW, seed: int = 3, shrinks: bool = False) -> Result:
    setting = Setting((sys.executable, *command), ("users",), seed, False, without, 30)
    return trio.run(lambda: run_certify(setting, rounds, shrinks=shrinks, tell=print))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    result = certify(CONSUMER, "users", fault, rounds=200, without=tuple(ACTS.keys() - {"transaction", *FAULTS[fault]}))
    assert not result.is_exact
    assert "Traceback" not in result.printed, result.printed


def test_a_right_consumer_is_exact() -> None:
    result = certify(CONSUMER, "users", rounds=20, seed=1)
    assert result.is_exact, (result.verdict.wrong, result.printed)
    assert result.snapshots > 2


def test_the_mirror_is_exact() -> None:
    """With two tables, so that one transaction's changes of both must be joined."""
    setting = Setting((sys.executable, MIRROR), ("users", "orders"), 2, False, ("restart", "forget", "cut"), 60)
    result = trio.run(lambda: run_certify(setting, 8, shrinks=False, tell=print))
    assert result.is_exact, (result.verdict.wrong, result.printed)


def test_the_javascript_client_is_exact() -> None:
    keeper = (node_with_sqlite(), "--no-warnings", str(CLIENT / "test" / "replica_process.js"), "node-sqlite")
    setting = Setting((sys.executable, MIRROR, *keeper), ("users", "orders"), 3, False, (*SLOW, "forget"), 60)
    result = trio.run(lambda: run_certify(setting, 8, shrinks=False, tell=print))
    assert result.is_exact, (result.verdict.wrong, result.printed)


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_documents_consumer_is_exact(language: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With the lines that docs/certify.md adds to it."""
    folder: Path = tmp_path if language == "python" else request.getfixturevalue("node_folder")
    consumers, page = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("consumers.md", "certify.md"))
    title = "A live copy in Python" if language == "python" else "A live copy in JavaScript"
    program, lines = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0] for text in (section(consumers, title), page))
    if language == "python":
        subscribe, store = re.findall(r"`(await client\.subscribe[^`]*|held\[[^`]*)`", page)
        program = program.replace("\n\n\nasync def", f"\n\n{lines}\n\nasync def", 1)
        shown, connects = (
            "print(json.dumps(list(rows.values()), default=str), flush=True)",
            r"\n( *)client = await nats\.connect.*\n",
        )
    else:
        subscribe, store = lines, re.findall(r"`(held\.tables = [^`]*;)`", page)[0]
        shown, connects = "console.log(JSON.stringify([...rows.values()]));", r"\n( *)const nats = await connect.*\n"
    found = re.search(connects, program)
    assert shown in program
    assert found
    path = folder / f"certified.{language[:2]}"
    path.write_text(program.replace(found[0], f"{found[0]}{found[1]}{subscribe}\n").replace(shown, store), encoding="utf-8")
    program_of = sys.executable if language == "python" else "node"
    setting = Setting((program_of, str(path), "users"), ("users",), 1, False, (*SLOW, "cut", "forget", "foreign"), 60)
    result = trio.run(lambda: run_certify(setting, 8, shrinks=False, tell=print))
    assert result.is_exact, (result.verdict.wrong, result.printed)


def test_the_command_prints_the_smallest_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "history.json"
    arguments = ["--rounds", "40", "--seed", "3", "--without", "restart", "--output", str(output)]
    assert main(["certify", *arguments, "--", sys.executable, CONSUMER, "users", "published"]) == 1
    printed = capsys.readouterr().out
    acts = printed.partition("The smallest history that breaks it:\n")[2].partition("\n\n")[0].splitlines()
    assert acts in ([f"  {ACTS['publish'][1]}"], [f"  {ACTS['other table'][1]}"])  # the bridge tells of either
    assert "Then: users has" in printed
    history = History.decode(output.read_bytes())
    assert [step["subject"] for step in history.steps if step["step"] == "message"][-1] == "cdc._bridge.published"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "no consumer"), (("--", "./no-such-consumer"), "no-such-consumer"), (("--tables", "carts", "--", "true"), "carts"),
     (("--without", "rain", "--", "true"), "rain")],
)  # fmt: skip
def test_what_cannot_be_tried_is_refused(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_consumer_that_ends_is_not_exact() -> None:
    result = certify("-c", "import sys; sys.exit('cannot begin')", rounds=5)
    assert "exit code 1" in result.verdict.wrong
    assert "cannot begin" in result.printed


def test_a_consumer_that_never_answers_is_told_what_it_must_do(capsys: pytest.CaptureFixture[str]) -> None:
    ends = ("-c", "import sys; sys.exit('no such host')")
    for program, words in ((ends, ("exit code 1", "no such host")), (("-c", "while True: pass"), ("it has not answered",))):
        assert main(["certify", "--patience", "3", "--", sys.executable, *program]) == 2
        out, err = capsys.readouterr()
        for said in ("WB528", sys.executable, "walbridge.certify: docs/certify.md", *words):
            assert said in err, err
        assert "smallest history" not in out


def test_the_same_seed_makes_the_same_acts() -> None:
    assert plan(5, 50) == plan(5, 50) != plan(6, 50)
    assert {act.kind for act in plan(5, 500)} == set(ACTS)
    assert {act.kind for act in plan(5, 500, ("gap",))} == ACTS.keys() - {"gap"}


@settings(max_examples=examples(50))
@given(st.binary())
def test_any_answer_is_read_or_refused(payload: bytes) -> None:
    try:
        read_answer(payload)
    except MalformedAnswer:
        pass


@settings(max_examples=examples(30))
@given(st.lists(st.integers(0, 9), max_size=40), st.sets(st.integers(0, 9), min_size=1, max_size=3))
def test_the_smallest_list_has_nothing_to_spare(items: list[int], culprits: set[int]) -> None:
    items += culprits

    async def breaks(candidate: object) -> bool:
        return culprits <= set(candidate)  # type: ignore[call-overload]

    async def main() -> list[int]:
        return await shrink(items, breaks, 1000)

    assert sorted(trio.run(main)) == sorted(culprits)
