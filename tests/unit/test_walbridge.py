"""The package `walbridge`: the library under the project's name, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import actors
import actors.mirror
import walbridge
from tests.servers import ROOT


def test_it_gives_what_the_library_gives_and_the_version() -> None:
    assert set(walbridge.__all__) == {*actors.mirror.__all__, "__version__"}
    assert walbridge.__version__ == actors.__version__
    for name in actors.mirror.__all__:
        assert getattr(walbridge, name) is getattr(actors.mirror, name)


def test_python_m_walbridge_is_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "walbridge", "--version"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == walbridge.__version__


def test_another_package_actors_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors/__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import walbridge"], cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "walbridge needs its own package `actors`" in done.stderr
    assert str(tmp_path / "actors") in done.stderr
