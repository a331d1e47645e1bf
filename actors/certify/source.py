"""A small source with a bridge: tables in memory, and the messages that a bridge stores about them. No I/O.

It is written from docs/consumers.md and not with the bridge's own encoder, so that one does not repeat the other's errors.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
import orjson

from actors.certify.history import LIVE, SAFE_INTEGER, Step, json_value
from actors.contract import subjects
from actors.contract.compression import Compressor

Row = dict[str, Any]
LSN_STEP = 0x100
COMMIT_US = 1_795_244_733_000_000
OIDS = {
    "boolean": 16, "bytea": 17, "bigint": 20, "integer": 23, "text": 25, "double precision": 701, "jsonb": 3802,
    "numeric": 1700, "timestamp with time zone": 1184,
}  # fmt: skip


class Column(NamedTuple):
    """A column of a table."""

    name: str
    type: str
    pk: bool = False


@dataclass(slots=True)
class Table:
    """A published table."""

    name: str
    columns: tuple[Column, ...]
    relation_id: int
    identity: str = "default"
    """`default`, `full` or `nothing`, as REPLICA IDENTITY."""
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    version: str = ""
    told: tuple[Column, ...] = ()
    """The columns that readers know."""
    told_id: int = 0
    """The OID that readers know."""
    lost: bool = False
    """Whether changes of it were lost, so that events do not lead to its rows any more."""

    @property
    def pk(self) -> list[str]:
        """The primary key's columns; none for a table without a key."""
        return [column.name for column in self.columns if column.pk]

    @property
    def key(self) -> list[str]:
        """The columns of the replica identity."""
        if self.identity == "nothing":
            return []
        return [column.name for column in self.columns] if self.identity == "full" else self.pk

    def key_of(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Under which key `rows` has a row; tables without a key number their rows."""
        return tuple(row[name] for name in self.pk)


class Change(NamedTuple):
    """An event that waits for its transaction's end."""

    subject: str
    body: dict[str, Any]
    token: str


class Transaction:
    """One transaction of the source."""

    def __init__(self, source: Source, lsn: int, xid: int) -> None:
        self._source, self.lsn, self._xid = source, lsn, xid
        self.changes: list[Change] = []
        self._seq = 0

    def insert(self, name: str, /, *, unchanged: Sequence[str] = (), omitted: Sequence[str] = (), **row: Any) -> None:
        """INSERT a row; columns that are not given are null. `unchanged`: an UPDATE moved it into the row filter."""
        table = self._source.tables[name]
        complete = {column.name: row.get(column.name) for column in table.columns}
        key = table.key_of(complete) or (f"row {self.lsn:x}-{self._seq}",)
        assert key not in table.rows, f"{name} has {key} already"
        table.rows[key] = complete
        self._event(table, "INSERT", complete, unchanged=unchanged, omitted=omitted)

    def update(
        self, name: str, key: Any, /, *, unchanged: Sequence[str] = (), omitted: Sequence[str] = (), **values: Any
    ) -> None:
        """UPDATE the row with a key. `unchanged` and `omitted`: columns that the event leaves out, and why."""
        table = self._source.tables[name]
        found = key if isinstance(key, tuple) else (key,)
        before = table.rows.pop(found)
        row = {**before, **values}
        new = table.key_of(row) or found  # without a key: the same one
        assert new not in table.rows, f"{name} has {new} already"
        table.rows[new] = row
        old: Row | None = None
        if table.identity == "full":
            old = before
        elif table.pk and new != found:
            old = {column: before[column] for column in table.pk}
        self._event(table, "UPDATE", row, old=old, unchanged=unchanged, omitted=omitted)

    def swap_keys(self, name: str, one: int, other: int, by: int, unchanged: Sequence[str] = ()) -> None:
        """Exchange the keys of two rows, over a third key; columns `unchanged` are large, and not sent."""
        (pk,) = self._source.tables[name].pk
        for before, after in ((one, by), (other, one), (by, other)):
            values: dict[str, Any] = {pk: after}
            self.update(name, before, unchanged=unchanged, **values)

    def shift_keys(self, name: str) -> None:
        """UPDATE SET id = id + 1 of all rows, which a deferrable key allows: two rows have one key for a moment."""
        table = self._source.tables[name]
        (pk,) = table.pk
        before = list(table.rows.values())
        table.rows = {(row[pk] + 1,): {**row, pk: row[pk] + 1} for row in before}
        for row in before:
            self._event(table, "UPDATE", table.rows[row[pk] + 1,], old=row)

    def delete(self, name: str, key: Any) -> None:
        """DELETE the row with a key."""
        table = self._source.tables[name]
        row = table.rows.pop(key if isinstance(key, tuple) else (key,))
        named = table.key
        self._event(table, "DELETE", {column: (value if column in named else None) for column, value in row.items()})

    def truncate(self, name: str) -> None:
        """TRUNCATE a table."""
        table = self._source.tables[name]
        table.rows.clear()
        self._event(table, "TRUNCATE", {})

    def _event(
        self, table: Table, operation: str, data: Row, *, old: Row | None = None, unchanged: Sequence[str] = (),
        omitted: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if (table.told, table.told_id) != (table.columns, table.relation_id):
            self.changes.append(self._source.schema_event(table, self.lsn, self._seq))
        sent = {name: value for name, value in data.items() if name not in unchanged and name not in omitted}
        subject = subjects.cdc_event(table.name, operation.lower())
        body: dict[str, Any] = {
            "subject": subject, "table": table.name, "schema": "public", "operation": operation,
            "relation_id": table.relation_id, "key": table.key, "lsn": self.lsn, "xid": self._xid,
            "commit_ts": COMMIT_US + self.lsn, "msg_id": f"{self.lsn:x}-{self._seq}-{table.name}-{operation.lower()}",
            "seq": self._seq, "data": sent,
        }  # fmt: skip
        if operation == "TRUNCATE":
            body |= {"cascade": False, "restart_identity": False}
        if old is not None:
            body["old"] = dict(old)
        if unchanged:
            body["unchanged"] = list(unchanged)
        if omitted:
            body["omitted"] = list(omitted)
        self._seq += 1
        if not table.lost:
            self.changes.append(Change(subject, body, table.name))


class Source:
    """The database, its bridge, and the streams that the bridge writes."""

    def __init__(
        self, *, is_json: bool = False, pack: int = 1, dictionaries: Mapping[str, bytes] | None = None, stream: str = "CDC"
    ) -> None:
        """With `dictionaries`, by table, bodies are compressed; an empty one means without a dictionary."""
        self.stream, self._json, self._pack = stream, is_json, pack
        self.tables: dict[str, Table] = {}
        self.lsn, self._xid = 0x1000000, 700
        self._next_oid = 16385
        self._versions = self._snapshots = self._gaps = 0
        self.large: dict[str, int] = {}
        """Rows of tables that are to be copied in rounds."""
        self.last_seq: dict[str, int] = {}
        """By stream."""
        self._dictionaries = dict(dictionaries or {})
        self._compressors = {token: Compressor(token, content or None, stream) for token, content in self._dictionaries.items()}

    def compress_no_more(self) -> None:
        """From here on bodies are plain."""
        self._compressors = {}

    # -- the catalog

    def create(self, name: str, *columns: Column, identity: str = "default") -> Table:
        """CREATE TABLE, or another table under the name. Readers have not been told of it yet unless it is new."""
        known = self.tables.get(name)
        table = Table(name, columns, self._next_oid, identity, version=self._version())
        self._next_oid += 7
        table.told, table.told_id = (columns, table.relation_id) if known is None else (known.told, known.told_id)
        self.tables[name] = table
        return table

    def alter(self, name: str, columns: Iterable[Column], fill: Callable[[Row], Row] = lambda row: row) -> None:
        """ALTER TABLE; `fill` makes the new row of an old one. The event comes before the next row."""
        table = self.tables[name]
        table.columns = tuple(columns)
        names = [column.name for column in table.columns]
        table.rows = {key: {n: fill(row).get(n) for n in names} for key, row in table.rows.items()}

    def _version(self) -> str:
        self._versions += 1
        return f"{zlib.crc32(b'%d' % self._versions):08x}"

    # -- what the bridge stores

    def begin(self, first_seq: int = 1) -> list[Step]:
        """The streams, the dictionaries and the bridge's record, as when the bridge has started."""
        steps = [self.make_stream(self.stream, first_seq), self.make_stream(subjects.INIT)]
        for token, content in self._dictionaries.items():
            if content:
                key = self._compressors[token].dictionary_id
                assert key is not None
                steps.append(kv_step(subjects.DICTIONARIES, key, content))
        return [*steps, self.record()]

    def make_stream(self, name: str, first_seq: int = 1) -> Step:
        """Create a stream, or create it again."""
        self.last_seq[name] = first_seq - 1
        return {"step": "stream", "stream": name, "first_seq": first_seq}

    def record(self) -> Step:
        """The bridge's entry in KV `bridges`: it says that everything below an LSN is stored."""
        value = {
            "slot": "cdc_slot", "publication": "cdc_pub", "tables": sorted(self.tables), "system_id": "7300000000000000001",
            "database": "app", "timeline": 1, "switch_points": [], "last_seq": self.last_seq[self.stream], "lsn": self.lsn,
            "seq": 0, "rank": 2, "commit_us": 0, "confirmed_lsn": self.lsn + LSN_STEP, "schemas": {}, "suspended": {},
            "published": "", "held": [], "pending_gap": None,
        }  # fmt: skip
        if self.large:
            value["large"] = self.large
        return kv_step(subjects.BRIDGES, self.stream, orjson.dumps(value))

    @contextmanager
    def transaction(self, into: Callable[[Step], None]) -> Generator[Transaction]:
        """Run a transaction; the messages of its events go `into` when it commits."""
        self.lsn += LSN_STEP
        self._xid += 1
        transaction = Transaction(self, self.lsn, self._xid)
        yield transaction
        for step in self._messages(transaction.changes):
            into(step)

    def _messages(self, changes: Sequence[Change]) -> list[Step]:
        if changes:
            changes[-1].body["last"] = True
        steps: list[Step] = []
        first = 0
        while first < len(changes):
            stop = first + 1
            one = changes[first]
            while stop < len(changes) and stop - first < self._pack and changes[stop].subject == one.subject:
                stop += 1
            bodies = [change.body for change in changes[first:stop]]
            msg_id = str(bodies[-1]["msg_id"])
            packed = bodies if len(bodies) > 1 else bodies[0]
            steps.append(self.message(self.stream, one.subject, {"Nats-Msg-Id": msg_id}, packed, one.token))
            first = stop
        return steps

    def message(self, stream: str, subject: str, headers: Mapping[str, str], body: Any, token: str = "") -> Step:
        """Store a message; the body is encoded, and compressed where the table's bodies are."""
        shown = _json_form(body)
        encoded = orjson.dumps(shown) if self._json else msgpack.packb(body)  # type: ignore[no-untyped-call]
        fields = dict(headers)
        compressor = self._compressors.get(token)
        if compressor is not None:
            encoded = compressor.compress(encoded)
            fields |= compressor.headers
        return self.raw_message(stream, subject, fields, encoded, shown)

    def raw_message(self, stream: str, subject: str, headers: Mapping[str, str], body: bytes, shows: Any = None) -> Step:
        """Store a message with any body."""
        self.last_seq[stream] += 1
        step: Step = {
            "step": "message", "stream": stream, "seq": self.last_seq[stream], "subject": subject, "headers": dict(headers),
            "body": base64.b64encode(body).decode(),
        }  # fmt: skip
        return step if shows is None else step | {"shows": shows}

    def without(self, steps: Sequence[Step], lost: slice) -> list[Step]:
        """Messages of one stream, made last, of which some never come; the others take their sequences."""
        kept = list(steps)
        del kept[lost]
        stream, first = str(steps[0]["stream"]), int(steps[0]["seq"])
        self.last_seq[stream] = first + len(kept) - 1
        return [{**step, "seq": seq} for seq, step in enumerate(kept, first)]

    def schema_event(self, table: Table, lsn: int, seq: int) -> Change:
        """A SCHEMA event before the row at a place; readers know the shape afterwards."""
        table.told, table.told_id = table.columns, table.relation_id
        msg_id = f"{lsn:x}-{seq}-{table.name}-schema"
        columns = [
            {"name": c.name, "position": i, "data_type": c.type, "type_oid": OIDS[c.type], "is_nullable": not c.pk,
             "column_default": None, "pk": c.pk}
            for i, c in enumerate(table.columns, 1)
        ]  # fmt: skip
        body = {
            "table": table.name, "schema": f"public.{table.name}", "timestamp": 1_795_244_733,
            "schema_id": zlib.crc32(repr((table.relation_id, table.columns)).encode()), "relation_id": table.relation_id,
            "columns": columns, "operation": "SCHEMA", "msg_id": msg_id, "lsn": lsn, "seq": seq,
        }  # fmt: skip
        return Change(subjects.cdc_schema(table.name), body, table.name)

    def gap(self, *tables: str, reason: str = "the slot was lost", lsn: int | None = None) -> Step:
        """Changes were lost permanently, of these tables. `lsn`: where the source goes on, if it is another history."""
        self._gaps += 1
        self.lsn = self.lsn if lsn is None else lsn
        msg_id = f"{self.lsn:x}-{self._gaps}-{subjects.BRIDGE_TOKEN}-gap"
        body = {
            "operation": "GAP", "msg_id": msg_id, "slot": "cdc_slot", "reason": reason, "from_lsn": self.lsn - LSN_STEP,
            "to_lsn": self.lsn, "tables": list(tables),
        }  # fmt: skip
        return self.message(self.stream, subjects.CDC_GAP, {"Nats-Msg-Id": msg_id}, body)

    def suspend(self, name: str) -> Step:
        """A row of the table was too large: none of its events are stored until its next snapshot."""
        self.lsn += LSN_STEP
        msg_id = f"{self.lsn:x}-0-{name}-gap"
        body = {
            "operation": "GAP", "msg_id": msg_id, "slot": "cdc_slot", "reason": "a key does not fit into a message",
            "from_lsn": self.lsn, "to_lsn": self.lsn, "tables": [name], "last": True,
        }  # fmt: skip
        self.tables[name].lost = True
        return self.message(self.stream, subjects.CDC_GAP, {"Nats-Msg-Id": msg_id}, body)

    def publish(self, name: str, change: str, *, version: str | None = None, reason: str = "another row filter") -> Step:
        """A publication event: `added`, `changed` or `removed`."""
        self.lsn += LSN_STEP
        table = self.tables[name]
        if version is None:
            version = "" if change == "removed" else self._version()
        if change == "removed":
            del self.tables[name]
        else:
            table.version = version
        msg_id = f"{self.lsn:x}-0-{subjects.BRIDGE_TOKEN}-published"
        body = {
            "operation": "PUBLISHED", "msg_id": msg_id, "lsn": self.lsn, "seq": 0, "table": name, "change": change,
            "version": version, "reason": reason, "last": True,
        }  # fmt: skip
        return self.message(self.stream, subjects.CDC_PUBLISHED, {"Nats-Msg-Id": msg_id}, body)

    def snapshot(self, name: str) -> Snapshot:
        """Begin a snapshot of a table: events after this point belong to it as the rules say."""
        self._snapshots += 1
        return Snapshot(self, name, f"snap-{1_795_244_700 + self._snapshots}-{self._snapshots:04x}")

    def copy(self, name: str, chunk_rows: int = 100) -> list[Step]:
        """A complete snapshot at one moment."""
        snapshot = self.snapshot(name)
        return [snapshot.start(), *snapshot.chunks(chunk_rows), snapshot.meta()]

    # -- what a copy must hold

    def live(self, name: str) -> dict[str, Any]:
        """A table of an `expect` step: equal to the source."""
        table = self.tables[name]
        return shown_table(LIVE, table.columns, table.rows.values())


def shown_table(state: str, columns: Sequence[Column], rows: Iterable[Row]) -> dict[str, Any]:
    """A table of an `expect` step."""
    return {
        "state": state,
        "columns": [[column.name, column.type] for column in columns],
        "rows": [[json_value(row[column.name]) for column in columns] for row in rows],
    }


class Snapshot:
    """A snapshot that is being taken. It joins the stream where it was begun, and reads the rows when its start is stored."""

    def __init__(self, source: Source, name: str, snapshot_id: str) -> None:
        self._source, self._name, self.id = source, name, snapshot_id
        self.stream_seq = source.last_seq[source.stream]
        self.stream = source.stream
        self.lsn = 0
        self._rows: list[Row] = []
        self._chunks = 0

    def start(self) -> Step:
        """Read the rows and announce the snapshot."""
        source, table = self._source, self._source.tables[self._name]
        self.lsn = source.lsn + LSN_STEP // 2
        self._rows = [dict(row) for row in table.rows.values()]
        table.lost = False
        body = self._head() | {
            "schema": "public", "status": "starting", "format": "json" if source._json else "msgpack", "schema_id": 1,
            "relation_id": table.relation_id, "version": table.version,
            "columns": [{"name": column.name, "type": column.type, "pk": column.pk} for column in table.columns],
        }  # fmt: skip
        return source.message(subjects.INIT, subjects.init_start(self._name), {}, body)

    def chunks(self, chunk_rows: int = 100) -> list[Step]:
        """The rows."""
        steps = []
        for first in range(0, len(self._rows), chunk_rows):
            rows = self._rows[first : first + chunk_rows]
            raw = [
                [i, name] for i, row in enumerate(rows) for name, value in row.items()
                if self._source._json and type(value) is int and abs(value) > SAFE_INTEGER
            ]  # fmt: skip
            body = {
                "table": self._name, "operation": "snapshot", "snapshot_id": self.id, "chunk": self._chunks,
                "lsn": _lsn(self.lsn), "snapshot_lsn": self.lsn, "data": rows,
            }  # fmt: skip
            if raw:
                body["raw"] = raw
            headers = {"Snapshot-Id": self.id, "Chunk": str(self._chunks)}
            subject = subjects.init_chunk(self._name, self.id, self._chunks)
            steps.append(self._source.message(subjects.INIT, subject, headers, body, self._name))
            self._chunks += 1
        return steps

    def meta(self) -> Step:
        """The end of the complete snapshot."""
        body = self._head() | {"batch_count": self._chunks, "row_count": len(self._rows)}
        return self._source.message(subjects.INIT, subjects.init_meta(self._name), {}, body)

    def error(self, error_type: str, message: str) -> Step:
        """The end of a snapshot that failed."""
        body = {
            "stream": self.stream, "snapshot_id": self.id, "table": self._name, "error_type": error_type,
            "error_message": message, "timestamp": 1_795_244_733,
        }  # fmt: skip
        return self._source.message(subjects.INIT, subjects.init_error(self._name), {}, body)

    def _head(self) -> dict[str, Any]:
        return {
            "stream": self.stream, "snapshot_id": self.id, "table": self._name, "lsn": _lsn(self.lsn),
            "snapshot_lsn": self.lsn, "stream_seq": self.stream_seq, "timestamp": 1_795_244_733,
            "compression_enabled": self._name in self._source._compressors,
        }  # fmt: skip


def kv_step(bucket: str, key: str, value: bytes) -> Step:
    """Write a key of a bucket."""
    return {"step": "kv", "bucket": bucket, "key": key, "value": base64.b64encode(value).decode()}


def _lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _json_form(body: Any) -> Any:
    """A body as JSON has it, with `raw` for integers that a float does not hold."""
    if isinstance(body, list):
        return [_json_form(one) for one in body]
    form: dict[str, Any] = {}
    for name, value in body.items():
        if name in ("data", "old") and isinstance(value, dict):
            form[name] = {column: json_value(one) for column, one in value.items()}
            raw = [column for column, one in value.items() if type(one) is int and abs(one) > SAFE_INTEGER]
            if raw:
                form["raw" if name == "data" else "old_raw"] = raw
        elif name == "data":
            form[name] = [{column: json_value(one) for column, one in row.items()} for row in value]
        else:
            form[name] = value
    return form
