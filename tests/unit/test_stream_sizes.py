"""Sizes of streams: what an account says, and what is tried."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.startup.stream_sizes import MIB, as_flag, room_of, sizes

GIB = 1 << 30


def limits(most: int, reserved: int = 0, used: int = 0) -> dict[str, Any]:
    return {"storage": used, "reserved_storage": reserved, "limits": {"max_storage": most}}


@pytest.mark.parametrize(
    ("account", "replicas", "room"),
    [
        (limits(-1), 1, None),
        (limits(6 * GIB), 1, 6 * GIB),
        (limits(6 * GIB), 3, 2 * GIB),  # a single limit counts each replica
        (limits(6 * GIB, reserved=2 * GIB), 1, 4 * GIB),
        (limits(6 * GIB, used=5 * GIB), 1, GIB),  # streams without a limit reserve nothing
        (limits(6 * GIB, reserved=7 * GIB), 1, 0),
        # tiers: as in the reply to an account whose JWT has limits for each number of replicas
        ({**limits(0), "tiers": {"R1": limits(6 * GIB), "R3": limits(9 * GIB, reserved=GIB)}}, 3, 8 * GIB),
        ({**limits(-1), "tiers": {"R1": limits(-1)}}, 1, None),
    ],
)
def test_the_room_in_an_account(account: dict[str, Any], replicas: int, room: int | None) -> None:
    assert room_of(account, replicas) == room


@given(st.integers(MIB, 20 * GIB), st.integers(1, 64).map(lambda count: count * MIB))
def test_sizes_fall_from_the_most_to_the_smallest(most: int, smallest: int) -> None:
    tried = list(sizes(most, smallest))
    assert tried == sorted(set(tried), reverse=True)
    assert tried[0] <= most
    assert tried[-1] >= min(most, smallest)
    assert all(smaller * 2 + MIB >= larger for larger, smaller in pairwise(tried))


@pytest.mark.parametrize(("size", "flag"), [(10 * GIB, "10GB"), (5 * GIB // 4, "1280MB"), (16 * MIB, "16MB")])
def test_a_size_as_the_command_line_takes_it(size: int, flag: str) -> None:
    assert as_flag(size) == flag
