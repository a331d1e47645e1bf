"""How large the streams and buckets are made: as large as there is room for, up to the defaults.

A stream reserves its `max_bytes` when it is made. JetStream refuses a reservation that exceeds what the account or the server's
`max_file_store` has left, and a client can ask for neither in general, so that sizes are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nats.js.api import StreamConfig

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.subjects import BRIDGES, DICTIONARIES, REQUESTS, SCHEMAS, bucket_stream
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import human_bytes
from actors.wire.jetstream import ErrCode

log = get_logger("startup")

MIB = 1 << 20
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


def sizes(most: int, smallest: int) -> Iterator[int]:
    """Yield sizes to try, largest first: whole MiB, down to `smallest`, at least one."""
    previous = 0
    for share in SHARES:
        size = max(int(most * share) // MIB * MIB, min(most, smallest))
        if size != previous:
            yield size
        previous = size


def default_bytes(wanted: StreamConfig, *, required: bool) -> int:
    """Return what a stream reserves where there is room; 0 for nothing."""
    return wanted.max_bytes or (BYTES_WHERE_REQUIRED[str(wanted.name)] if required else 0)


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
        self._share = 1.0
        self.required = False
        """The account demands a limit for each stream."""

    async def plan(self, missing: Sequence[StreamConfig]) -> None:
        """Ask how much the account has left. Without permission to ask, `fit` and the attempts themselves must do."""
        try:
            account = await self._js.account()
        except SinkRefused:
            return
        self.required = bool((account.get("limits") or {}).get("max_bytes_required"))
        room = room_of(account, self._replicas)
        if room is not None:
            total = sum(default_bytes(wanted, required=self.required) for wanted in missing)
            self._share = next((share for share in SHARES if total * share * _SPARE <= room), SHARES[-1])

    async def fit(self, missing: Sequence[StreamConfig], existing: Mapping[str, Any]) -> None:
        """Find the share with which all that is missing fits into the server, without making anything.

        `existing` is the configuration of a stream: JetStream refuses to make it again with another size, but first says
        whether there were room. A cluster does not say so: then the attempts must do.
        """
        total = sum(default_bytes(wanted, required=self.required) for wanted in missing)
        for share in [share for share in SHARES if share <= self._share] if total else ():
            self._share = share
            try:
                await self._js.create_stream({**existing, "max_bytes": int(total * share * _SPARE)})
            except SinkRefused:
                return
            except JetStreamError as exc:
                if exc.err_code in NO_ROOM - {ErrCode.STREAM_MAX_BYTES_EXCEEDED}:
                    continue
            return

    async def create(self, wanted: StreamConfig) -> dict[str, Any]:
        """Create a stream as large as there is room for, and log a size below the default. Raises JetStreamError."""
        default = default_bytes(wanted, required=self.required)
        if not default:
            try:
                return await self._js.create_stream(wanted.as_dict())
            except JetStreamError as exc:
                if exc.err_code != ErrCode.MAX_BYTES_REQUIRED:
                    raise
            self.required, default = True, default_bytes(wanted, required=True)
        smallest = SMALLEST_BYTES if wanted.max_bytes else _SMALLEST_BUCKET_BYTES
        refusal: JetStreamError | None = None
        for size in sizes(max(int(default * self._share), min(default, smallest)), smallest):
            try:
                made = await self._js.create_stream(replace(wanted, max_bytes=size).as_dict())
            except JetStreamError as exc:
                if exc.err_code not in NO_ROOM:
                    raise
                refusal = exc
                continue
            if size < default:
                log.warning(
                    f"stream {wanted.name} is made with {human_bytes(size)} instead of {human_bytes(default)}: JetStream has "
                    "room for no more", fix=f"make room, then: nats stream edit {wanted.name} --max-bytes={as_flag(default)}",
                )  # fmt: skip
            return made
        assert refusal is not None, "at least one size is tried"
        raise refusal

    def likely(self, wanted: StreamConfig) -> int:
        """Return the size for the command that creates a stream; 0 for none."""
        default = default_bytes(wanted, required=self.required)
        smallest = SMALLEST_BYTES if wanted.max_bytes else _SMALLEST_BUCKET_BYTES
        return next(sizes(int(default * self._share), smallest)) if default else 0


def as_flag(size: int) -> str:
    """Write a size as the nats command line takes it."""
    return f"{size >> 30}GB" if size % (1 << 30) == 0 else f"{size >> 20}MB"
