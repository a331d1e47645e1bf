"""The tables that a mirror keeps: chosen on a command line, and registered in the replica under a name of their own."""

from __future__ import annotations

from actors.contract.bridge_record import BridgeRecord
from actors.contract.table_token import split_token, table_token
from actors.errors import ConfigError
from actors.mirror.replica import Replica
from actors.mirror.state import LIVE, WAITING, TableRecord
from actors.mirror.track import NEEDED_NOTHING
from actors.telemetry.log import get_logger

log = get_logger("mirror")


def choose_tables(wanted: tuple[str, ...], record: BridgeRecord, flag: str = "--tables") -> tuple[str, ...]:
    """The tokens of tables given by token, `table` or `schema.table`; all tables when none is given.

    Raises ConfigError, which names `flag`, for a table that the bridge does not publish.
    """
    found: list[str] = []
    for name in wanted:
        schema, dot, table = name.partition(".")
        candidates = [name, table_token("public", name), *([table_token(schema, table)] if dot else [])]
        token = next((candidate for candidate in candidates if candidate in record.tables), None)
        if token is None:
            raise ConfigError(
                "WB507", f"{flag}: {name!r} is no table that the bridge publishes",
                fix=f"give some of {', '.join(sorted(record.tables))}",
            )  # fmt: skip
        found.append(token)
    return tuple(dict.fromkeys(found or record.tables))


async def register_tables(replica: Replica, wanted: tuple[str, ...]) -> None:
    """Add records of new tables, and stop following tables that are no longer wanted.

    A table that was not followed for a while cannot be followed later: its events in between are passed.
    """
    taken = {(record.local_schema, record.local_name.lower()) for record in replica.tables.values()}
    for token in wanted:
        if token not in replica.tables:
            local = replica.dialect.local_name(*split_token(token))
            name, number = local[1], 1
            while (local[0], name.lower()) in taken and replica.dialect.scheme == "sqlite":
                number += 1
                name = f"{local[1]}_{number}"
            taken.add((local[0], name.lower()))
            await replica.save(TableRecord(token, local[0], name, WAITING))
    for token, record in list(replica.tables.items()):
        if token not in wanted and record.state == LIVE:
            await replica.save(record.as_stale("it was not mirrored for a while", NEEDED_NOTHING))
            replica.shapes.pop(token)
            log.info("a table is no longer mirrored and stays as it is", table=token)
