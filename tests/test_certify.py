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
from tests.servers import ROOT

pytestmark = pytest.mark.servers

CONSUMER = str(Path(__file__).parent / "planted" / "consumer.py")
SLOW = ("forget", "restart")
"""nats-py notices these only after missed heartbeats."""
FAULTS = {
    "unchanged": SLOW, "snapshot-lsn": SLOW, "old": SLOW, "swap": SLOW, "gaps": SLOW, "shapes": SLOW, "published": SLOW,
    "other-bridge": SLOW, "foreign": SLOW, "truncate": SLOW, "packed": SLOW,
    "redelivery": tuple(ACTS.keys() - {"transaction", "cut"}),
    "history": tuple(ACTS.keys() - {"transaction", "run out", "delete"}),
    "place-before-rows": tuple(ACTS.keys() - {"transaction", "kill"}),
}  # fmt: skip
"""Faults of planted/consumer.py, and acts that cannot show them, or only slowly."""


def certify(*command: str, rounds: int, without: tuple[str, ...] = SLOW, seed: int = 3, shrinks: bool = False) -> Result:
    setting = Setting((sys.executable, *command), ("users",), seed, False, without, 30)
    return trio.run(lambda: run_certify(setting, rounds, shrinks=shrinks, tell=print))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    result = certify(
        CONSUMER, "users", fault, rounds=200, without=(*FAULTS[fault], *(() if fault == "redelivery" else ("cut",)))
    )
    assert not result.is_exact
    assert "Traceback" not in result.printed, result.printed


def test_a_right_consumer_is_exact() -> None:
    result = certify(CONSUMER, "users", rounds=30, seed=1)
    assert result.is_exact, (result.verdict.wrong, result.printed)
    assert result.snapshots > 2


def test_the_documents_consumer_is_exact(tmp_path: Path) -> None:
    """The one in Python, with the lines that docs/certify.md adds to it."""
    consumers, page = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("consumers.md", "certify.md"))
    program, lines = (
        re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0] for text in (section(consumers, "A live copy in Python"), page)
    )
    subscribe, store = re.findall(r"`(await client\.subscribe[^`]*|held\[[^`]*)`", page)
    shown = "print(json.dumps(list(rows.values()), default=str), flush=True)"
    connect = re.search(r"\n( *)client = await nats\.connect.*\n", program)
    assert shown in program
    assert connect
    program = program.replace(connect[0], f"{connect[0]}{connect[1]}{subscribe}\n").replace(shown, store)
    path = tmp_path / "consumer.py"
    path.write_text(program.replace("\n\n\nasync def", f"\n\n{lines}\n\nasync def", 1), encoding="utf-8")
    result = certify(str(path), "users", rounds=12, seed=1, without=(*SLOW, "cut"))
    assert result.is_exact, (result.verdict.wrong, result.printed)


def test_the_command_prints_the_smallest_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "history.json"
    arguments = ["--rounds", "40", "--seed", "3", "--without", "forget,restart,cut", "--output", str(output)]
    assert main(["certify", *arguments, "--", sys.executable, CONSUMER, "users", "published"]) == 1
    printed = capsys.readouterr().out
    acts = printed.partition("The smallest history that breaks it:\n")[2].partition("\n\n")[0].splitlines()
    assert acts == [f"  {ACTS['publish'][1]}"]
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
