"""What a replica knows of itself, in tables of its own: its place in the stream, and its tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from actors.contract.records import Column
from actors.mirror.stores.dialect import Dialect, Statement
from actors.mirror.stores.shapes import TableShape, decode_columns, encode_columns
from actors.mirror.stores.store import Store
from actors.mirror.track import NEEDED_NOTHING, Cursor
from actors.positions import Lsn, Position

if TYPE_CHECKING:
    from actors.mirror.replica import Replica

WAITING, LIVE, STALE, REFUSED = "waiting", "live", "stale", "refused"


@dataclass(frozen=True, slots=True)
class TableRecord:
    """One table of the replica."""

    token: str
    local_schema: str
    local_name: str
    state: str
    """`waiting`: not there yet. `live`: at the replica's position. `stale`: as it was when it was left, a new copy is made.
    `refused`: cannot be mirrored here; tried again at the next start."""
    reason: str = ""
    """Why it is not live."""
    source_schema: str = ""
    source_table: str = ""
    relation_id: int = 0
    columns: str = "[]"
    keyed: int = 1
    """0: its primary key was found not to be one, row for row; there is none here."""
    snapshot_id: str = ""
    snapshot_lsn: int = 0
    needed_seq: int = 0
    """A new snapshot's `stream_seq` must have reached this."""
    init_seq: int = 0
    """Of the start of the snapshot that was used last; another one must be newer."""

    @property
    def local(self) -> tuple[str, str]:
        """Schema and name here."""
        return self.local_schema, self.local_name

    @property
    def told_columns(self) -> tuple[Column, ...]:
        """Its columns when it was live last, as the source told them."""
        return decode_columns(self.columns)

    @property
    def was_live(self) -> bool:
        """What is there under this name is a copy that the mirror has made."""
        return self.snapshot_id != ""

    def as_stale(self, reason: str, needed_seq: int, *, keyed: bool | None = None) -> TableRecord:
        """It must be copied again, from a snapshot as new as `needed_seq` says (see `Stale`).

        A table that was never there goes on waiting, one that is refused stays so.
        """
        needed = 0 if needed_seq == NEEDED_NOTHING else max(needed_seq, self.needed_seq)
        if self.state == REFUSED:
            return replace(self, needed_seq=needed)
        changed = replace(self, state=STALE if self.was_live else WAITING, reason=reason, needed_seq=needed)
        if keyed is None or keyed == bool(self.keyed):
            return changed
        return replace(changed, keyed=int(keyed), columns="[]")  # what is there has the key still: not to be filled again

    def as_taken_up(self) -> TableRecord:
        """It was refused, and is tried again."""
        return replace(self, state=STALE if self.was_live else WAITING, reason="")

    def as_live(self, shape: TableShape, snapshot_id: str, snapshot_lsn: int, init_seq: int) -> TableRecord:
        """It is followed from here on."""
        return replace(
            self, state=LIVE, reason="", source_schema=shape.schema, source_table=shape.table, relation_id=shape.relation_id,
            columns=encode_columns(shape.columns), snapshot_id=snapshot_id, snapshot_lsn=snapshot_lsn, init_seq=init_seq,
        )  # fmt: skip

    def saved(self, dialect: Dialect) -> Statement:
        """Write it."""
        return dialect.save("tables", "token", asdict(self))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The replica's place, and the stream that it is in."""

    stream: str
    created: str
    cursor: Cursor

    def first(self, dialect: Dialect) -> Statement:
        """Write it where there was none."""
        return dialect.save("position", "id", self._values())

    def moved(self, dialect: Dialect, cursor: Cursor) -> Statement:
        """Write another cursor. Refused unless this place is the one that is there."""
        mark = dialect.parameter
        sql = (
            f"UPDATE {dialect.own('position')} SET stream_seq = {mark(1)}, lsn = {mark(2)}, seq = {mark(3)}, place = {mark(4)}"
            f" WHERE id = 1 AND stream_seq = {mark(5)} AND lsn = {mark(6)} AND seq = {mark(7)}"
        )
        position, old = cursor.position, self.cursor
        return Statement(
            sql, [(cursor.stream_seq, *position, old.stream_seq, old.position.lsn, old.position.seq)], counted=True
        )

    def _values(self) -> dict[str, Any]:
        position = self.cursor.position
        return {
            "id": 1, "stream": self.stream, "created": self.created, "stream_seq": self.cursor.stream_seq, "lsn": position.lsn,
            "seq": position.seq, "place": position.rank,
        }  # fmt: skip


def forget_place(dialect: Dialect) -> Statement:
    """No table is live: the next one decides where to begin."""
    return Statement(f"DELETE FROM {dialect.own('position')}", [()])


async def load_place(store: Store) -> Checkpoint | None:
    """Where the replica is; None when no table is live."""
    rows = await store.query(f"SELECT stream, created, stream_seq, lsn, seq, place FROM {store.dialect.own('position')}")
    if not rows:
        return None
    stream, created, stream_seq, lsn, seq, place = rows[0]
    return Checkpoint(stream, created, Cursor(int(stream_seq), Position(Lsn(int(lsn)), int(seq), int(place))))


async def load_tables(store: Store) -> dict[str, TableRecord]:
    """The replica's tables by token."""
    rows = await store.query(
        "SELECT token, local_schema, local_name, state, reason, source_schema, source_table, relation_id, columns, keyed,"
        f" snapshot_id, snapshot_lsn, needed_seq, init_seq FROM {store.dialect.own('tables')} ORDER BY token"
    )
    found: dict[str, TableRecord] = {}
    for token, schema, name, state, reason, source_schema, source_table, relation_id, columns, *rest in rows:
        keyed, snapshot_id, snapshot_lsn, needed_seq, init_seq = rest
        found[token] = TableRecord(
            token, schema, name, state, reason, source_schema, source_table, int(relation_id), columns, int(keyed),
            snapshot_id, int(snapshot_lsn), int(needed_seq), int(init_seq),
        )  # fmt: skip
    return found


async def load_verified(replica: Replica) -> dict[str, tuple[int, int]]:
    """What `walbridge verify` has left of each table: when it was equal last (unix seconds), and how many keys differ."""
    rows = await replica.query(f"SELECT token, equal_at, mismatched FROM {replica.dialect.own('verified')}")
    return {str(token): (int(str(equal_at)), int(str(mismatched))) for token, equal_at, mismatched in rows}


def verified(dialect: Dialect, token: str, at_unix_s: int, mismatched: int) -> Statement:
    """Leave what was found of a table; when it was equal last stays, unless it is now."""
    values = {"token": token, "checked_at": at_unix_s, "mismatched": mismatched}
    return dialect.save("verified", "token", values if mismatched else values | {"equal_at": at_unix_s})
