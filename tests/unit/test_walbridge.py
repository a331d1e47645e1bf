"""The package `walbridge`: the library under the project's name, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def in_the_way(folder: Path) -> None:
    """Another package of the name, as somebody's own project may have."""
    (folder / "actors").mkdir()
    (folder / "actors/__init__.py").touch()


@pytest.mark.parametrize("use", ["from walbridge import Event", "import walbridge; walbridge.__version__"])
def test_another_package_actors_in_the_way_of_the_library_is_named(use: str, tmp_path: Path) -> None:
    in_the_way(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", use], cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "walbridge needs its own package `actors`" in done.stderr
    assert str(tmp_path / "actors") in done.stderr


@pytest.mark.parametrize("where", ["PYTHONPATH", "this folder"])
def test_the_command_line_finds_its_own_package_whatever_is_in_the_way(where: str, tmp_path: Path) -> None:
    in_the_way(tmp_path)
    path = f"{tmp_path}:{ROOT}" if where == "PYTHONPATH" else str(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "walbridge", "help", "WB107"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("WB107")


def test_the_command_line_loads_no_library_and_an_unknown_name_is_none() -> None:
    code = "import sys, walbridge.__main__; assert 'actors.mirror' not in sys.modules; import walbridge; walbridge.Evnt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("AttributeError: module 'walbridge' has no attribute 'Evnt'")
    assert set(walbridge.__all__) <= set(dir(walbridge))
