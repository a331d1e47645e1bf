"""The random campaign as a command: short, so that it does not rot. Its judge is tested in tests/unit/test_campaign_evidence.py."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.servers import CLEAN, ROOT


@pytest.mark.servers
@pytest.mark.own_servers("starts its own")
@pytest.mark.usefixtures("server_folder")
def test_a_short_campaign_runs_and_finds_nothing() -> None:
    command = [sys.executable, "-m", "tests.campaign", "--faults", "3", "--seed", "1",
               "--only", "kill_bridge,kill_nats,swap_names"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "seed 1: 3 faults" in done.stdout
