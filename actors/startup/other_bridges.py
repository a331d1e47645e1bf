"""The other bridges of the account, as KV `bridges` lists them: which tables they publish, and from which database."""

from __future__ import annotations

from collections.abc import Mapping

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, where_it_exists
from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.slots import slot_state
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGE_RECORDS, BRIDGES
from actors.errors import ConfigError
from actors.telemetry.quantities import listed
from actors.telemetry.telemetry import Problem


async def read_other_bridges(js: JetStream, stream: str) -> dict[str, BridgeRecord]:
    """The records of all bridges but that of `stream`, by stream.

    Left out is an entry that no bridge can have written, and one whose stream somebody has removed: its bridge answers nothing.
    """
    found: dict[str, BridgeRecord] = {}
    for other in sorted(await js.keys_of(BRIDGES, BRIDGE_RECORDS)):
        entry = None if other == stream or not await may_have_stream(js, other) else await js.kv_get(BRIDGES, other)
        try:
            if entry is not None:
                found[other] = BridgeRecord.decode(entry.data, other)
        except ConfigError:
            continue
    return found


async def may_have_stream(js: JetStream, stream: str) -> bool:
    """Whether the stream exists, or the user may not know."""
    try:
        return await js.stream_info(stream) is not None
    except SinkRefused:
        return True


def same_tables_elsewhere(own: BridgeRecord, others: Mapping[str, BridgeRecord]) -> list[Problem]:
    """A problem for each bridge that publishes tables of the same names from another database."""
    problems: list[Problem] = []
    for stream, other in others.items():
        common = sorted(set(own.tables) & set(other.tables))
        if not common or _one_database(own, other):
            continue
        where = f"database {other.database}" if other.system_id == own.system_id else "another PostgreSQL"
        problems.append(
            Problem(
                "WB243",
                f"the bridge of stream {stream} publishes {listed(common)} from {where}",
                means="their snapshots stand on the same subjects: consumers that do not look at `stream` mix them up",
                fix="see that every consumer compares `stream` and asks by name (snapshot.request.TABLE@STREAM); "
                "or give each database a NATS account of its own",
            )
        )
    return problems


async def check_slot_feeds_no_other(connection: PgConnection, js: JetStream, slot: str, stream: str) -> None:
    """Raise ConfigError if the bridge would begin `stream` with a slot that feeds another stream.

    The readers of the other one would get nothing more, and not know why. Nothing is changed.
    """
    if await where_it_exists(js.kv_get(BRIDGES, stream)) is not None:
        return  # the stream's own owner is looked at in any case
    others = await where_it_exists(read_other_bridges(js, stream)) or {}
    feeding = {other: record for other, record in others.items() if record.slot == slot}
    if not feeding or await slot_state(connection, slot) is None:
        return
    ((system_id,),) = await connection.query("SELECT system_identifier FROM pg_control_system()")
    for other, record in feeding.items():
        if record.system_id == system_id:
            raise ConfigError(
                "WB250", f"slot {slot} feeds stream {other}, and stream {stream} is new",
                means=f"what the slot has not sent yet would go to {stream}, and the readers of {other} would get nothing more",
                fix=f"walbridge run --stream {other}   # goes on there; or --slot NAME for a slot of its own; "
                f"or, to give up that stream: nats stream rm {other}",
            )  # fmt: skip


def _one_database(one: BridgeRecord, other: BridgeRecord) -> bool:
    """Whether two bridges read the same database. A record that does not name its database may be of any in its cluster."""
    return one.system_id == other.system_id and (one.database == other.database or not (one.database and other.database))
