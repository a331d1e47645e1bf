"""The tables that a mirror keeps: chosen on a command line, and registered in the replica under a name of their own."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from actors.contract.table_token import find_token, split_token, table_name
from actors.errors import ConfigError
from actors.mirror.replica import Replica
from actors.mirror.state import LIVE, WAITING, TableRecord, load_tokens
from actors.mirror.stores.open import open_store
from actors.mirror.track import NEEDED_NOTHING
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import listed

log = get_logger("mirror")


class KeptTables:
    """The tables that a mirror keeps: the chosen ones, or else all that the replica has, to which published ones are added."""

    def __init__(self, replica: Replica, chosen: tuple[str, ...]) -> None:
        """`chosen` is empty for all."""
        self._replica, self._chosen = replica, chosen
        self.everything = not chosen

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tables' tokens, published or not."""
        return self._chosen or tuple(self._replica.tables)

    def covers(self, published: Collection[str]) -> bool:
        """Whether all these tables are kept."""
        return self.everything or set(self._chosen) >= set(published)


def choose_tables(
    wanted: Sequence[str], published: Collection[str], flag: str = "--tables", known: Collection[str] = ()
) -> tuple[str, ...]:
    """The tokens of tables given by token, `table` or `schema.table`; `published` are the tokens of the bridge's tables.

    Raises ConfigError, which names `flag`, for a table that the bridge does not publish and that is not among the tokens
    `known` either: those of tables that were published once.
    """
    found: list[str] = []
    for name in wanted:
        token = find_token(name, published) or find_token(name, known)
        if token is None:
            raise ConfigError(
                "WB507", f"{flag}: {name!r} is no table that the bridge publishes", fix=_choice_of(name, published)
            )
        found.append(token)
    return tuple(dict.fromkeys(found))


def _choice_of(name: str, published: Collection[str]) -> str:
    """What to give instead of a name that no table has."""
    names = sorted(map(table_name, published))
    if not names:
        return "publish a table first"
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}? There is {listed(names)}" if close else f"give some of {listed(names)}"


async def tokens_in(url: str) -> tuple[str, ...]:
    """The tokens of the tables that the replica at `url` has; none when there is no replica yet."""
    try:
        store = await open_store(url, create=False)
    except ConfigError:
        return ()
    try:
        return await load_tokens(store)
    finally:
        await store.close()


async def register_tables(replica: Replica, tokens: Collection[str]) -> None:
    """Add the records of tables that the replica does not have."""
    taken = {(record.local_schema, record.local_name.lower()) for record in replica.tables.values()}
    for token in tokens:
        if token not in replica.tables:
            local = replica.dialect.local_name(*split_token(token))
            name, number = local[1], 1
            while (local[0], name.lower()) in taken and replica.dialect.scheme == "sqlite":
                number += 1
                name = f"{local[1]}_{number}"
            taken.add((local[0], name.lower()))
            await replica.save(TableRecord(token, local[0], name, WAITING))


async def leave_others(replica: Replica, kept: KeptTables) -> None:
    """Stop following tables that are no longer kept: their events are passed, so they cannot be followed later."""
    for token, record in list(replica.tables.items()):
        if token not in kept.tokens and record.state == LIVE:
            await replica.save(record.as_stale("it was not mirrored for a while", NEEDED_NOTHING))
            replica.shapes.pop(token)
            log.info("a table is no longer mirrored and stays as it is", table=token)
