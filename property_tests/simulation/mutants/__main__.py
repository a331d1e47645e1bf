"""`python -m property_tests.simulation.mutants [NAME ...] [--seeds 1000]`: which seed finds each, and after how many."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from property_tests.simulation.mutants import patches

ROOT = Path(__file__).parents[3]
COPIED = ("actors", "walbridge", "property_tests", "tests")


def main() -> int:
    """Run all or some; 0 when each was found."""
    parser = argparse.ArgumentParser(prog="python -m property_tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="names, or parts of names; all by default")
    parser.add_argument("--seeds", type=int, default=1000, help="so many at most for each")
    given = parser.parse_args()
    survived: list[str] = []
    for patch in patches():
        if given.names and not any(name in patch.stem for name in given.names):
            continue
        seed, fault = _find(patch, given.seeds)
        print(f"{patch.stem}: {f'seed {seed}: {fault}' if seed else f'SURVIVES {given.seeds} seeds'}", flush=True)
        if not seed:
            survived.append(patch.stem)
    return 1 if survived else 0


def _find(patch: Path, seeds: int) -> tuple[int, str]:
    """The first seed that finds a mutant, and what it says; 0 if none does."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(
            ["git", "apply", str(patch)], cwd=folder, check=True, env={**os.environ, "GIT_CEILING_DIRECTORIES": folder}
        )
        command = [sys.executable, "-m", "property_tests.simulation", *_only(patch), "--seeds", str(seeds)]
        ended = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": folder}
        )
    found = re.search(r"^seed (\d+):.*?WRONG (.*?)$", ended.stdout, re.MULTILINE | re.DOTALL)
    if ended.returncode and found is None:
        raise RuntimeError(f"{patch.stem}: the simulation ended without a verdict: {ended.stderr[-2000:]}")
    if found is None:
        return 0, ""
    without = [*command[:-1], "1", "--first", found[1]]
    if subprocess.run(without, cwd=ROOT, capture_output=True, check=False).returncode:
        raise RuntimeError(f"seed {found[1]} fails without {patch.stem} too")
    return int(found[1]), found[2][:160]


def _only(patch: Path) -> list[str]:
    """The acts to choose from, if the patch names some."""
    found = re.search(r"^acts: (.+)$", patch.read_text(encoding="utf-8"), re.MULTILINE)
    return ["--only", found[1]] if found is not None else []


if __name__ == "__main__":
    sys.exit(main())
