"""A record store without a server, for the unit tests of what writes into the bridge's record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import trio

from actors.contract.bridge_record import BridgeRecord, Suspended
from actors.suspensions import Suspensions
from actors.telemetry.telemetry import Telemetry


class FakeStore:
    """Holds the record in memory and remembers every version that was written."""

    def __init__(self, suspended: dict[str, Suspended] | None = None) -> None:
        self.record = BridgeRecord("slot", "pub", "1", 1, suspended=suspended or {})
        self.written: list[BridgeRecord] = []

    async def update(self, **changes: Any) -> None:
        record = replace(self.record, **changes)
        await trio.lowlevel.checkpoint()  # a request is on its way
        self.record = record
        self.written.append(record)


def suspensions_of(suspended: dict[str, Suspended] | None = None) -> Suspensions:
    """The suspensions that a record with these would give."""
    return Suspensions(FakeStore(suspended), Telemetry())  # type: ignore[arg-type]
