"""Sizes of streams: what an account says, and what is tried."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from nats.js.api import StreamConfig
from trio.testing import MockClock

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStreamError
from actors.startup.stream_sizes import MIB, SHARES, Sizes, as_flag, room_of, size_of
from actors.wire.jetstream import ErrCode

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


@given(st.integers(1, 20 * 1024).map(lambda count: count * MIB))
def test_sizes_fall_with_the_share_down_to_what_is_of_use(default: int) -> None:
    tried = [size_of(default, share) for share in SHARES]
    assert tried[0] == default
    assert all(smaller <= larger <= 2 * smaller + 2 * MIB for larger, smaller in pairwise(tried))
    assert tried[-1] >= min(default, 2 * MIB)
    assert all(size % MIB == 0 for size in tried)


class Server:
    """What JetStream reserves: `room` bytes are there, and a cluster does not say whether an existing stream would fit again."""

    def __init__(self, room: int, *, cluster: bool, editable: bool, account: bool) -> None:
        self.room, self.cluster, self.editable, self.told = room, cluster, editable, account
        self.reserved: dict[str, int] = {}

    async def account(self) -> dict[str, Any]:
        return limits(self.room if self.told else -1, reserved=sum(self.reserved.values()))

    async def create_stream(self, config: Mapping[str, Any]) -> dict[str, Any]:
        name, size = str(config["name"]), max(0, int(config.get("max_bytes", -1)))
        if name in self.reserved and self.cluster:
            raise JetStreamError("", 400, ErrCode.STREAM_NAME_IN_USE, "in use")
        if sum(self.reserved.values()) + size > self.room:
            raise JetStreamError("", 500, ErrCode.STORAGE_RESOURCES_EXCEEDED, "no room")
        if name in self.reserved:
            raise JetStreamError("", 400, ErrCode.STREAM_NAME_IN_USE, "in use")
        self.reserved[name] = size
        return {"config": config}

    async def update_stream(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if not self.editable:
            raise SinkRefused("WB204", "may not edit")
        self.reserved[str(config["name"])] = int(config["max_bytes"])
        return {"config": config}


@given(
    st.integers(64 * MIB, 40 * GIB), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([1.0, 10.0, 8.0, 18.0, 5.0]),
)  # fmt: skip
def test_every_stream_finds_room_and_none_takes_that_of_another(
    room: int, cluster: bool, editable: bool, account: bool, round_gib: float
) -> None:
    for there in (room, int(round_gib * GIB)):
        server = Server(there, cluster=cluster, editable=editable, account=account)
        wanted = [StreamConfig(name="CDC", max_bytes=10 * GIB), StreamConfig(name="INIT", max_bytes=8 * GIB)]

        async def start(server: Server = server, wanted: list[StreamConfig] = wanted) -> None:
            js: Any = server
            await server.create_stream({"name": "KV_bridges"})
            choice = Sizes(js, 1)
            await choice.plan(wanted)
            for i, one in enumerate(wanted):
                await choice.fit(wanted[i:], {"name": "KV_bridges"})
                await choice.create(one)

        try:
            trio.run(start, clock=MockClock(autojump_threshold=0))
        except JetStreamError:
            assert cluster, "a server alone says what fits"
            assert (editable, account) == (False, False)
            continue
        cdc, init = server.reserved["CDC"], server.reserved["INIT"]
        assert cdc + init <= there
        if there >= 20 * GIB:
            assert (cdc, init) == (10 * GIB, 8 * GIB)
        if editable or account or not cluster:
            assert init >= cdc // 2, "in proportion"
            assert 3 * (cdc + init) >= min(there, 18 * GIB), "not much smaller than there is room for"


@pytest.mark.parametrize(("size", "flag"), [(10 * GIB, "10GB"), (5 * GIB // 4, "1280MB"), (16 * MIB, "16MB")])
def test_a_size_as_the_command_line_takes_it(size: int, flag: str) -> None:
    assert as_flag(size) == flag
