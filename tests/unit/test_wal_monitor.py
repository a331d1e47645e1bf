"""What the page and the log say of WAL that a slot holds back."""

from __future__ import annotations

from typing import Any

import pytest

from actors.positions import Lsn
from actors.telemetry.telemetry import SlotHealth
from actors.wal_monitor import CRITICAL_BYTES, WARN_BYTES, held_problem


def holding(held_bytes: int, **more: Any) -> SlotHealth:
    return SlotHealth(restart_lsn=Lsn(16), current_lsn=Lsn(16 + held_bytes), **more)


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (holding(WARN_BYTES - 1), None),
        (holding(512 << 20), "slot s holds 512 MB of WAL (warning; without limit)"),
        (
            holding(703_000_000, wal_limited=True, safe_wal_bytes=10_007_991_696),
            "slot s holds 670 MB of WAL (warning; 9.3 GB more, and the slot is lost)",
        ),
        (
            holding(CRITICAL_BYTES, wal_limited=True, safe_wal_bytes=-5),
            "(critical; 0 B more, and the slot is lost)",
        ),
    ],
)
def test_what_a_slot_holds_is_said_in_sizes_that_people_read(health: SlotHealth, words: str | None) -> None:
    problem = held_problem("s", health)
    assert (problem is None) == (words is None)
    if problem is not None and words is not None:
        assert problem.code == "WB160"
        assert words in problem.what
        assert problem.fix.startswith("walbridge status ")
