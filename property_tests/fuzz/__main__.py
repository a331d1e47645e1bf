"""Fuzz with atheris, guided by the coverage of `actors`: `python -m property_tests.fuzz --seconds 600`, or some tests by name.

Needs `pip install atheris`. An input that fails is kept in hypothesis's own database, so that pytest tries it first.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MODULES = ("test_bodies", "test_nats_replies", "test_postgres_text", "test_settings")
CORPUS = Path(".hypothesis") / "fuzz"


def tests() -> dict[str, Callable[..., object]]:
    """The properties of this package, by name."""
    modules = [importlib.import_module(f"property_tests.fuzz.{module}") for module in MODULES]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("test_") and inspect.isfunction(value) and hasattr(value, "hypothesis")
    }


def fuzz(name: str, seconds: int) -> None:
    """Run one test until the time is over or it fails. Ends the process: libFuzzer never returns."""
    import atheris  # noqa: PLC0415  # nothing else here needs it

    with atheris.instrument_imports(include=["actors"]):
        test = tests()[name]
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *options], test.hypothesis.fuzz_one_input)  # type: ignore[attr-defined]
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m property_tests.fuzz", description=__doc__)
    parser.add_argument("tests", nargs="*", help="names, or parts of names; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each test")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.one, given.seconds)
    failed: list[str] = []
    for name in tests():
        if given.tests and not any(part in name for part in given.tests):
            continue
        command = [sys.executable, "-m", "property_tests.fuzz", "--one", name, "--seconds", str(given.seconds)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = [line.split()[-1] for line in ended.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: {runs[-1] if runs else '?'} runs, {'nothing found' if ended.returncode == 0 else 'FAILED'}", flush=True)
        if ended.returncode:
            failed.append(name)
            print(ended.stdout[-8000:], ended.stderr[-8000:], sep="\n")
    if failed:
        print(f"{len(failed)} failed; pytest property_tests/fuzz -k '{' or '.join(failed)}' tries what was found first")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
