"""What contributors are given works: CI, the form for bugs, the hooks, the tasks, the constraints, the benchmark's history."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from bench.__main__ import main
from bench.bridge import DrainRun
from bench.history import record
from bench.recvlogical import ReaderRun
from bench.run import DrainResults, Plan, Results
from tests.schemas import departure_from
from tests.servers import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = ".github/workflows/ci.yml"


@pytest.mark.parametrize(
    ("path", "schema", "word"),
    [(WORKFLOW, "vendor.github-workflows", "runs-on"), (WORKFLOW, "custom.github-workflows-require-timeout", "timeout-minutes"),
     (".github/ISSUE_TEMPLATE/bug.yml", "vendor.github-issue-forms", "validations")],
)  # fmt: skip
def test_the_public_hosts_files_keep_to_their_schemas(path: str, schema: str, word: str, tmp_path: Path) -> None:
    assert departure_from(schema, ROOT / path) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((ROOT / path).read_text().replace(word, f"{word}x"))
    assert "wrong.yml" in departure_from(schema, wrong)


def test_ci_runs_the_script_on_every_python_that_is_supported() -> None:
    job = yaml.safe_load((ROOT / WORKFLOW).read_text())["jobs"]["run"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    tried = job["strategy"]["matrix"]["python"]
    assert tried == [f"3.{minor}" for minor in range(11, 11 + len(tried))]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert tried[0] in supported
    assert "3.10" not in supported
    named = {line.split(" :: ")[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert named <= set(tried)


def test_ci_builds_the_packages_after_the_check_and_with_the_address() -> None:
    packages = yaml.safe_load((ROOT / WORKFLOW).read_text())["jobs"]["packages"]
    assert packages["needs"] == "run"
    (build,) = [step for step in packages["steps"] if "hatchling build" in step.get("run", "")]
    assert build["env"] == {"WALBRIDGE_REPOSITORY_URL": "${{ github.server_url }}/${{ github.repository }}"}


def test_every_action_is_pinned_to_a_commit_and_says_which_release_that_is() -> None:
    uses = [line.strip() for line in (ROOT / WORKFLOW).read_text().splitlines() if "uses:" in line]
    assert uses
    for line in uses:
        assert re.fullmatch(r"- uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_the_hooks_are_ruff_and_mypy_of_the_environment() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff", "mypy"]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split()[:3] == ["python", "-m", hook["id"]]


def test_the_constraints_are_exact_and_cover_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)  # type: ignore[union-attr]
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    assert len(versions) == len(lines)
    wanted = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"]:
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_full_check_is_the_readmes_command_without_the_installation() -> None:
    (command,) = re.findall(r"^pip install -e '\.\[dev\]' && (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert f"\n```sh\n{command}\n```\n" in CONTRIBUTING
    nox = (ROOT / "noxfile.py").read_text()
    for part in command.split(" && "):
        assert f"session.run({', '.join(json.dumps(word) for word in part.split())}" in nox


def test_nox_has_the_tasks_that_are_named() -> None:
    pytest.importorskip("nox", reason="no nox: pip install nox")
    listed = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tasks = re.findall(r"^[*-] (\w+) -> ", listed, re.MULTILINE)
    assert tasks == ["quick", "check", "all", "postgres", "bench"]
    named = re.findall(r"`nox -s (\w+)", CONTRIBUTING)
    assert set(named) == set(tasks)


def test_a_benchmark_is_recorded_only_when_asked_for_and_by_ratios(tmp_path: Path) -> None:
    assert main.__kwdefaults__["record"] is False
    plan = Plan(1000, 0, 0, 0, 0, 0, 2, frozenset({"bulk"}))
    drains = DrainResults(1000, 10)
    for reader, fast in ((100.0, 80.0), (200.0, 120.0)):
        drains.reader.append(ReaderRun(reader, 1.0))
        drains.bridge["fast"].append(DrainRun(fast, 1.0, 6.0, 40.0, 70.0))
        drains.bridge["plain"].append(DrainRun(reader / 2, 1.0, 9.0, 40.0, 70.0))
    results = Results(plan, {"machine": "2 cores"}, drains=[drains], others_cores=[0.1, 0.3])
    file = tmp_path / "history.jsonl"
    record(results, file)
    record(results, file)
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["ratios"] == second["ratios"] == {"10 a transaction, fast": 0.7, "10 a transaction, plain": 0.5}
    assert first["machine"] == "2 cores"
    assert first["others_cores_max"] == 0.3
    assert first["cpu_us"] == {"10 a transaction, fast": 6.0, "10 a transaction, plain": 9.0}
    if shutil.which("git"):
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert first["commit"].removesuffix("-dirty") == head.stdout.strip()
