"""Decides whether a server is a major upgrade of the one that the stream was written from. No I/O.

pg_upgrade gives the cluster a new system identifier and timeline 1, but LSNs and object ids go on. From PostgreSQL 17 on it
creates logical slots again, at the end of its own work, and refuses to begin while a slot has changes that were not confirmed:
a slot that came through has sent everything, and nothing was written between its old and its new position.

https://www.postgresql.org/docs/18/logical-replication-upgrade.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from actors.contract.bridge_record import BridgeRecord
from actors.errors import Fatal
from actors.positions import NO_LSN, Position, format_lsn
from actors.startup.checkpoint import RIGHT_SERVER, Source, StreamTail


def why_no_upgrade(
    source: Source, tail: StreamTail, record: BridgeRecord, position: Position | None, table_oids: Mapping[str, int]
) -> str:
    """Return what contradicts an upgrade; empty when slot, record and stream agree with one.

    `table_oids` are the published tables' by token.
    """
    if source.confirmed_lsn is None or source.lost:
        return f"slot {source.slot} did not come through: pg_upgrade keeps slots from PostgreSQL 17 on"
    if record.database and source.database != record.database:
        return f"the database is {source.database}, the stream was written from {record.database}"
    stored = max(record.confirmed_lsn, position.lsn if position is not None else NO_LSN)
    if source.confirmed_lsn <= stored:
        at = format_lsn(source.confirmed_lsn)
        return f"slot {source.slot} is at {at}, {format_lsn(stored)} is stored: an upgraded slot is beyond all that was before"
    if source.read_before:
        return f"slot {source.slot} has been read on this server, by another program"
    oid = table_oids.get(tail.token)
    if oid is not None and tail.relation_oid not in (None, oid):
        return f"table {tail.token} has the object id {oid}, in the stream {tail.relation_oid}: an upgrade keeps them"
    return ""


def no_upgrade(source: Source, record: BridgeRecord, contradiction: str) -> Fatal:
    """Return the error for an upgrade that slot, record or stream contradicts."""
    return Fatal(
        "WB150",
        f"another database cluster: system id {source.system_id}, the stream was written from {record.system_id}",
        said=contradiction,
        means="--accept-upgrade is for pg_upgrade alone: everything else loses changes, which consumers must learn",
        fix=RIGHT_SERVER,
    )


def after_upgrade(source: Source, record: BridgeRecord) -> BridgeRecord:
    """Return the record as the old server's last bridge would have written it of the new server."""
    assert source.confirmed_lsn is not None, "an upgraded server has the slot"
    return replace(
        record, system_id=source.system_id, timeline=source.timeline, switch_points=source.switch_points,
        confirmed_lsn=source.confirmed_lsn, held=(), commit_us=0,
    )  # fmt: skip
