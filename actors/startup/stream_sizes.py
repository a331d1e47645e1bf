"""How large the streams and buckets are made: as large as there is room for, up to the defaults.

A stream reserves its `max_bytes` when it is made. JetStream refuses a reservation that exceeds what the account or the server's
`max_file_store` has left, and a client can ask for neither in general, so that sizes are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio
from nats.js.api import StreamConfig

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import BRIDGES, DICTIONARIES, REQUESTS, SCHEMAS, bucket_stream
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import human_bytes
from actors.wire.jetstream import ErrCode

log = get_logger("startup")

MIB, GIB = 1 << 20, 1 << 30
SHARES = (1.0, *(part / 2**power for power in range(1, 11) for part in (1.5, 1.0)))
"""Of the defaults: 1, 3/4, 1/2, 3/8, 1/4 and so on."""
_SPARE = 1.1
"""Times what the streams reserve must be there: when everything is reserved, JetStream makes no stream at all any more."""
SMALLEST_BYTES = 16 * MIB
"""Of a stream of changes or snapshots. A smaller one would lose its messages before anybody could read them."""
_SMALLEST_BUCKET_BYTES = 2 * MIB
BYTES_WHERE_REQUIRED: Mapping[str, int] = {
    bucket_stream(BRIDGES): 64 * MIB,
    bucket_stream(SCHEMAS): 256 * MIB,
    bucket_stream(DICTIONARIES): 64 * MIB,
    REQUESTS: 16 * MIB,
}
"""Limits of what is made without a limit, for accounts that demand one."""
HEARD_WITHIN_S = 2.0
"""The servers of a cluster hear of each other's free room a moment after a stream was made smaller."""
NO_ROOM = frozenset(
    {
        ErrCode.ACCOUNT_RESOURCES_EXCEEDED,
        ErrCode.NO_SUITABLE_PEERS,
        ErrCode.INSUFFICIENT_RESOURCES,
        ErrCode.STORAGE_RESOURCES_EXCEEDED,
        ErrCode.STREAM_MAX_BYTES_EXCEEDED,
    }
)
"""A smaller stream may fit."""


def size_of(default: int, share: float) -> int:
    """Return a share of a default size: whole MiB, and not below what is of any use."""
    return max(int(default * share) // MIB * MIB, min(default, SMALLEST_BYTES if default >= GIB else _SMALLEST_BUCKET_BYTES))


def room_of(account: Mapping[str, Any], replicas: int) -> int | None:
    """Return how many bytes streams with so many replicas may still reserve by the limits of an account; None without a limit.

    `account` is a reply to $JS.API.INFO. An account may have limits for each number of replicas, which then count a stream
    once; a single limit counts each replica.
    """
    tier = (account.get("tiers") or {}).get(f"R{replicas}")
    usage, copies = (account, replicas) if tier is None else (tier, 1)
    limit = int(usage["limits"]["max_storage"])
    if limit < 0:
        return None
    taken = max(int(usage.get("reserved_storage") or 0), int(usage.get("storage") or 0))
    return max(0, limit - taken) // copies


class Sizes:
    """Chooses sizes for the streams that one start makes, so that the first does not take the room of the others."""

    def __init__(self, js: JetStream, replicas: int) -> None:
        self._js, self._replicas = js, replicas
        self.fits = True
        """Whether `plan` and `fit` have found room for all that is missing, as far as they can tell."""
        self._share = 1.0
        self._required = False
        self._made: dict[str, tuple[StreamConfig, int, int]] = {}  # name -> configuration, default size, size
        self._may_shrink = True

    async def plan(self, missing: Sequence[StreamConfig]) -> None:
        """Ask how much the account has left. Without permission to ask, `fit` and the attempts themselves must do."""
        try:
            account = await self._js.account()
        except SinkRefused:
            return
        self._required = bool((account.get("limits") or {}).get("max_bytes_required"))
        room = room_of(account, self._replicas)
        if room is not None:
            total = sum(self._default(wanted) for wanted in missing)
            self.fits = total * SHARES[-1] * _SPARE <= room
            self._share = next((share for share in SHARES if total * share * _SPARE <= room), SHARES[-1])

    async def fit(self, missing: Sequence[StreamConfig], existing: Mapping[str, Any]) -> None:
        """Find the share with which all that is missing fits into the server, without making anything.

        `existing` is the configuration of a stream: JetStream refuses to make it again with another size, but first says
        whether there were room. A cluster does not say so: then `create` finds the share.
        """
        total = sum(self._default(wanted) for wanted in missing)
        for share in [share for share in SHARES if share <= self._share] if total else ():
            self._share = share
            try:
                await self._js.create_stream({**existing, "max_bytes": int(total * share * _SPARE)})
            except SinkRefused:
                return
            except JetStreamError as exc:
                if exc.err_code in NO_ROOM - {ErrCode.STREAM_MAX_BYTES_EXCEEDED}:
                    self.fits = share != SHARES[-1]
                    continue
            return

    async def create(self, wanted: StreamConfig) -> dict[str, Any]:
        """Create a stream as large as there is room for. Raises JetStreamError, and SinkRefused without permission.

        If there is none beside what this start has made before, those streams, still empty, are made smaller too.
        """
        default = self._default(wanted)
        if not default:
            try:
                return await self._js.create_stream(wanted.as_dict())
            except JetStreamError as exc:
                if exc.err_code != ErrCode.MAX_BYTES_REQUIRED:
                    raise
            self._required, default = True, self._default(wanted, required=True)
        refusal: JetStreamError | None = None
        for share in [share for share in SHARES if share <= self._share]:
            shrunk = refusal is not None and await self._shrink(share, refusal)
            again_until = trio.current_time() + (HEARD_WITHIN_S if shrunk else 0)
            size = size_of(default, share)
            while True:
                try:
                    made = await self._js.create_stream(replace(wanted, max_bytes=size).as_dict())
                except JetStreamError as exc:
                    if exc.err_code not in NO_ROOM:
                        raise
                    refusal = exc
                else:
                    self._made[str(wanted.name)] = wanted, default, size
                    return made
                if trio.current_time() >= again_until:
                    break
                await trio.sleep(HEARD_WITHIN_S / 10)
        assert refusal is not None, "at least one size is tried"
        raise refusal

    async def _shrink(self, share: float, refusal: JetStreamError) -> bool:
        """Make the streams of this start smaller, if the user may edit them and that can help; return whether any is."""
        if refusal.err_code == ErrCode.STREAM_MAX_BYTES_EXCEEDED:
            return False
        shrunk = False
        for name, (wanted, default, size) in self._made.items():
            smaller = size_of(default, share)
            if smaller >= size or not self._may_shrink:
                continue
            try:
                await self._js.update_stream(replace(wanted, max_bytes=smaller).as_dict())
            except (JetStreamError, SinkRefused):
                self._may_shrink = False
            else:
                self._made[name] = wanted, default, smaller
                shrunk = True
        return shrunk

    def report(self) -> None:
        """Log which streams were made smaller than the default."""
        for name, (_, default, size) in self._made.items():
            if size < default:
                log.warning(
                    f"stream {name} is made with {human_bytes(size)} instead of {human_bytes(default)}: JetStream has no room "
                    "for more", fix=f"make room, then: nats stream edit {name} --max-bytes={as_flag(default)}",
                )  # fmt: skip

    def commands_to_shrink(self) -> list[str]:
        """Return the commands that make the streams of this start smaller, for a user who may edit them."""
        return [
            f"nats stream edit {name} --max-bytes={as_flag(size // 2)}"
            for name, (_, _, size) in self._made.items()
            if size >= GIB
        ]

    def likely(self, wanted: StreamConfig) -> int:
        """Return the size for the command that creates a stream; 0 for none."""
        default = self._default(wanted)
        return size_of(default, self._share) if default else 0

    def _default(self, wanted: StreamConfig, *, required: bool = False) -> int:
        """Return what a stream reserves where there is room; 0 for nothing."""
        return wanted.max_bytes or (BYTES_WHERE_REQUIRED[str(wanted.name)] if required or self._required else 0)


def as_flag(size: int) -> str:
    """Write a size as the nats command line takes it."""
    return f"{size >> 30}GB" if size % (1 << 30) == 0 else f"{size >> 20}MB"
