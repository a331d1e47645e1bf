"""The state that a replica stores about itself, in tables of its own: its checkpoint in the stream, and its tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from actors.contract.records import Column
from actors.contract.rules import is_other_version
from actors.contract.stream_view import UNKNOWN_MESSAGE, LastMessage, Place
from actors.mirror.stores.dialect import Dialect, Statement
from actors.mirror.stores.shapes import TableShape, decode_columns, encode_columns
from actors.mirror.stores.store import ReplicaRefused, Store
from actors.mirror.track import NEEDED_NOTHING, Cursor, Told
from actors.positions import Lsn, Position

WAITING, LIVE, STALE, REFUSED, UNPUBLISHED = "waiting", "live", "stale", "refused", "unpublished"
FORMAT = 1
"""Of what a replica stores about itself, here and in consumers/js: what earlier versions would misread gets the next number."""
STATES = (WAITING, LIVE, STALE, REFUSED, UNPUBLISHED)


@dataclass(frozen=True, slots=True)
class TableRecord:
    """The stored record of one table of the replica."""

    token: str
    local_schema: str
    local_name: str
    state: str
    """`waiting`: does not exist yet. `live`: follows the replica's checkpoint. `stale`: keeps its last rows while a new copy is
    made. `refused`: cannot be mirrored here until the next start, which tries again. `unpublished`: keeps its last rows
    until the bridge publishes the table again."""
    reason: str = ""
    """Why the table is not live."""
    source_schema: str = ""
    source_table: str = ""
    relation_id: int = 0
    columns: str = "[]"
    keyed: int = 1
    """0 after rows with equal primary keys were found: the replica's table has no key."""
    snapshot_id: str = ""
    snapshot_lsn: int = 0
    needed_seq: int = 0
    """The stream sequence that a new snapshot's `stream_seq` must have reached."""
    init_seq: int = 0
    """INIT sequence of the start of the last snapshot used; the next snapshot must be newer."""
    version: str = ""
    """How the table was published when the last snapshot used was taken; empty when unknown."""
    told_version: str = ""
    """How it is published as of `told_seq`, according to the stream or to a snapshot that joins the stream there."""
    told_seq: int = 0

    @property
    def local(self) -> tuple[str, str]:
        """Schema and name in the replica."""
        return self.local_schema, self.local_name

    @property
    def told_columns(self) -> tuple[Column, ...]:
        """The source's columns when the table was last live."""
        return decode_columns(self.columns)

    @property
    def was_live(self) -> bool:
        """Whether the replica has a table of this name that the mirror made."""
        return self.snapshot_id != ""

    def as_stale(self, reason: str, needed_seq: int, *, keyed: bool | None = None) -> TableRecord:
        """The record of a table that must be copied again, from a snapshot as new as `needed_seq` says (see `Stale`).

        A table that was never live stays waiting, and one that is refused or not published stays that.
        """
        if needed_seq == NEEDED_NOTHING:
            needed = replace(self, needed_seq=0, told_version="", told_seq=0)
        else:
            needed = replace(self, needed_seq=max(needed_seq, self.needed_seq))
        if self.state in (REFUSED, UNPUBLISHED):
            return needed
        changed = replace(needed, state=STALE if self.was_live else WAITING, reason=reason)
        if keyed is None or keyed == bool(self.keyed):
            return changed
        return replace(
            changed, keyed=int(keyed), columns="[]"
        )  # the existing table still has the key, so it cannot be refilled

    def as_taken_up(self) -> TableRecord:
        """The record of a table that was refused or not published, and is tried again."""
        return replace(self, state=STALE if self.was_live else WAITING, reason="")

    def as_refused(self, reason: str) -> TableRecord:
        """The record of a table that cannot be mirrored here."""
        return self if self.state == UNPUBLISHED else replace(self, state=REFUSED, reason=reason)

    def as_delayed(self, reason: str) -> TableRecord:
        """The record of a table whose copy must wait."""
        return self if self.state == UNPUBLISHED else replace(self, reason=reason)

    def as_unpublished(self, reason: str) -> TableRecord:
        """The record of a table that the bridge does not publish."""
        return replace(self, state=UNPUBLISHED, reason=reason)

    def as_told(self, told: Told) -> TableRecord:
        """The record after the stream has told how the table is published, unless it has told something newer.

        A live table must have been compared with what was told (see `Track`).
        """
        if told.seq <= self.told_seq:
            return self
        record = replace(self, told_version=told.version, told_seq=told.seq)
        if not told.version:
            return record.as_unpublished(told.reason)
        return record.as_taken_up() if self.state == UNPUBLISHED else record

    def takes(self, version: str, stream_seq: int) -> bool:
        """Whether a snapshot leads to a copy of the table as it is published now, as far as was told.

        It may have been taken before that was told, but not before it was so.
        """
        return stream_seq >= self.told_seq or not is_other_version(version, self.told_version)

    def as_live(self, shape: TableShape, snapshot_id: str, snapshot_lsn: int, init_seq: int, version: str = "") -> TableRecord:
        """The record of a table that is followed from here on, with a copy of a snapshot of this version."""
        return replace(
            self, state=LIVE, reason="", source_schema=shape.schema, source_table=shape.table, relation_id=shape.relation_id,
            columns=encode_columns(shape.columns), snapshot_id=snapshot_id, snapshot_lsn=snapshot_lsn, init_seq=init_seq,
            version=version,
        )  # fmt: skip

    def saved(self, dialect: Dialect) -> Statement:
        """The statement that stores the record."""
        return dialect.save("tables", "token", asdict(self))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where the live tables are complete, and in which stream."""

    stream: str
    created: str
    cursor: Cursor
    last_message: LastMessage = UNKNOWN_MESSAGE

    @property
    def place(self) -> Place:
        """The place that the stream must still fit."""
        return Place(self.cursor.stream_seq, self.created, self.last_message)

    def first(self, dialect: Dialect) -> Statement:
        """The statement that stores the first checkpoint."""
        return dialect.save("position", "id", self._values())

    def moved(self, dialect: Dialect, cursor: Cursor, last_message: LastMessage = UNKNOWN_MESSAGE) -> Statement:
        """The statement that moves the checkpoint to `cursor`, where `last_message` is.

        It fails unless the stored checkpoint is this one.
        """
        mark = dialect.parameter
        sql = (
            f"UPDATE {dialect.own('position')} SET stream_seq = {mark(1)}, lsn = {mark(2)}, seq = {mark(3)}, place = {mark(4)},"
            f" message_seq = {mark(5)}, message_id = {mark(6)}"
            f" WHERE id = 1 AND stream_seq = {mark(7)} AND lsn = {mark(8)} AND seq = {mark(9)}"
        )
        position, old = cursor.position, self.cursor
        return Statement(
            sql, [(cursor.stream_seq, *position, *last_message, old.stream_seq, old.position.lsn, old.position.seq)],
            counted=True,
        )  # fmt: skip

    def _values(self) -> dict[str, Any]:
        position = self.cursor.position
        return {
            "id": 1, "stream": self.stream, "created": self.created, "stream_seq": self.cursor.stream_seq, "lsn": position.lsn,
            "seq": position.seq, "place": position.rank, "message_seq": self.last_message.seq,
            "message_id": self.last_message.message_id,
        }  # fmt: skip


def forget_checkpoint(dialect: Dialect) -> Statement:
    """The statement that removes the checkpoint: the first table that goes live sets a new one."""
    return Statement(f"DELETE FROM {dialect.own('position')}", [()])


async def load_checkpoint(store: Store) -> Checkpoint | None:
    """Read the checkpoint; None when no table is live."""
    rows = await store.query(
        f"SELECT stream, created, stream_seq, lsn, seq, place, message_seq, message_id FROM {store.dialect.own('position')}"
    )
    if not rows:
        return None
    stream, created, stream_seq, lsn, seq, rank, message_seq, message_id = rows[0]
    cursor = Cursor(int(stream_seq), Position(Lsn(int(lsn)), int(seq), int(rank)))
    return Checkpoint(stream, created, cursor, LastMessage(int(message_seq), message_id))


async def load_tables(store: Store) -> dict[str, TableRecord]:
    """Read the records of the replica's tables, by token."""
    rows = await store.query(
        "SELECT token, local_schema, local_name, state, reason, source_schema, source_table, relation_id, columns, keyed,"
        " snapshot_id, snapshot_lsn, needed_seq, init_seq, version, told_version, told_seq"
        f" FROM {store.dialect.own('tables')} ORDER BY token"
    )
    found: dict[str, TableRecord] = {}
    for token, schema, name, state, reason, source_schema, source_table, relation_id, columns, *rest in rows:
        keyed, snapshot_id, snapshot_lsn, needed_seq, init_seq, version, told_version, told_seq = rest
        found[token] = TableRecord(
            token, schema, name, state, reason, source_schema, source_table, int(relation_id), columns, int(keyed),
            snapshot_id, int(snapshot_lsn), int(needed_seq), int(init_seq), version, told_version, int(told_seq),
        )  # fmt: skip
    return found


async def load_tokens(store: Store) -> tuple[str, ...]:
    """Read the tokens of the replica's tables, also of a replica that no mirror of this version has claimed yet."""
    return tuple(str(row[0]) for row in await store.query(f"SELECT token FROM {store.dialect.own('tables')} ORDER BY token"))


def forget_table(dialect: Dialect, token: str) -> list[Statement]:
    """The statements that remove what is stored about a table. They leave its rows alone."""
    mark = dialect.parameter(1)
    own = ("tables", "verified", "rounds")
    return [Statement(f"DELETE FROM {dialect.own(name)} WHERE token = {mark}", [(token,)]) for name in own]


def saved_choice(dialect: Dialect, *, everything: bool) -> Statement:
    """The statement that stores whether the mirror keeps all tables that the bridge publishes, or chosen ones."""
    sql = f"UPDATE {dialect.own('owner')} SET everything = {dialect.parameter(1)} WHERE id = 1"
    return Statement(sql, [(int(everything),)])


async def check_format(store: Store) -> None:
    """Raise ReplicaRefused if a later version has stored here what this one would misread."""
    rows = await store.query(f"SELECT format FROM {store.dialect.own('owner')}")
    found = int(str(rows[0][0])) if rows else FORMAT
    if found > FORMAT:
        raise ReplicaRefused(
            "WB516", "the replica was made by a later version of Walbridge",
            said=f"format {found}; this version knows {FORMAT}", means="nothing was changed",
            fix="upgrade Walbridge here, or give --to a new replica, which is copied",
        )  # fmt: skip


async def keeps_everything(store: Store) -> bool:
    """Read whether the last mirror of this replica keeps all tables that the bridge publishes."""
    rows = await store.query(f"SELECT everything FROM {store.dialect.own('owner')}")
    return bool(rows) and bool(int(rows[0][0]))


async def load_verdicts(store: Store) -> dict[str, tuple[int, int]]:
    """Read what `walbridge verify` stored per table: when it was last equal (unix seconds), and how many keys differ."""
    rows = await store.query(f"SELECT token, equal_at, mismatched FROM {store.dialect.own('verified')}")
    return {str(token): (int(str(equal_at)), int(str(mismatched))) for token, equal_at, mismatched in rows}


def saved_verdict(dialect: Dialect, token: str, at_unix_s: int, mismatched: int) -> Statement:
    """The statement that stores the verdict on a table. The time at which it was last equal stays unless it is equal now."""
    values = {"token": token, "checked_at": at_unix_s, "mismatched": mismatched}
    return dialect.save("verified", "token", values if mismatched else values | {"equal_at": at_unix_s})
