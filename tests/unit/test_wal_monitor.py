"""What the page and the log say of WAL that a slot holds back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.positions import Lsn
from actors.telemetry.telemetry import SlotHealth
from actors.wal_monitor import CRITICAL_BYTES, STANDS_S, WARN_BYTES, WalRate, held_problem


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


GB = 1 << 30


@given(
    st.floats(1e3, 1e8), st.floats(1.0, 30.0), st.floats(0.9, 30.0), st.floats(0, 30.0), st.integers(20, 400),
    st.floats(0.0, 0.9),
)  # fmt: skip
def test_wal_that_is_given_back_every_few_seconds_is_no_loss_to_come(
    bytes_per_s: float, period_s: float, look_s: float, phase_s: float, looks: int, read_late: float
) -> None:
    """The neighbour of an idle database writes; restart_lsn follows every period, and stays behind by a part of it."""
    rate, budget = WalRate(), 10 * GB
    for i in range(looks):
        now_s = i * look_s
        restart_s = ((now_s + phase_s) // period_s - read_late) * period_s
        held = bytes_per_s * (now_s + phase_s - restart_s)
        left_s = rate.seconds_to_loss(now_s, int(budget - held), Lsn(int(max(0.0, restart_s) * bytes_per_s) + 1))
        most_held = bytes_per_s * period_s * (1 + read_late)
        assert left_s > 3600 or most_held > budget / 30, f"{left_s} s left after {now_s} s, with {held} bytes held"


@given(st.floats(1e3, 1e8), st.floats(0.9, 30.0), st.integers(0, 600), st.floats(61.0, 3000.0))
def test_a_slot_that_is_held_is_lost_when_it_is_said(bytes_per_s: float, look_s: float, idle_looks: int, held_s: float) -> None:
    rate, budget, now_s = WalRate(), 100 * GB, 0.0
    for i in range(idle_looks):
        rate.seconds_to_loss(now_s, budget, Lsn(16 + i))
        now_s += look_s
    began_s, left_s, safe = now_s, 0.0, float(budget)
    while now_s - began_s < held_s + look_s and safe > 0:
        safe = budget - bytes_per_s * (now_s - began_s)
        left_s = rate.seconds_to_loss(now_s, int(safe), Lsn(8))
        if now_s - began_s >= STANDS_S:
            assert left_s == pytest.approx(int(safe) / bytes_per_s, rel=0.01)
        now_s += look_s


def test_a_slot_that_follows_too_slowly_runs_out_of_room() -> None:
    rate, budget = WalRate(), 10 * GB
    left_s = [rate.seconds_to_loss(i * 5.0, int(budget - i * 5.0 * 1e6), Lsn(16 + i)) for i in range(120)]
    assert left_s[50] == math.inf
    assert left_s[-1] == pytest.approx((budget - 119 * 5e6) / 1e6, rel=0.05)
