"""What the stream must hold: a slot of the oracle's own, read at the end through SQL and the plain decoder.

The bridge's path (replication connection, compiled decoder, positions, JetStream) has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from psycopg import sql

from actors.contract.table_token import table_token
from actors.values.text_values import converter_for
from actors.wire import pgoutput
from actors.wire.pgoutput import Relation, TupleValue
from tests.servers import Database, StoredEvent


class Expected(NamedTuple):
    """One event as it must be stored."""

    lsn: int
    seq: int
    operation: str
    token: str
    data: dict[str, Any]


class WalOracle:
    """Records every change of a publication from now on, in a second slot."""

    def __init__(
        self, database: Database, publication: str = "cdc_pub", slot: str = "oracle", *, failover: bool = False
    ) -> None:
        """Make the slot; with `failover` standbys keep it as well, from PostgreSQL 17 on."""
        self._database, self._publication, self._slot = database, publication, slot
        options = ", failover => true" if failover else ""
        database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput'{options})")

    def expected(self) -> list[Expected]:
        """All changes committed since, in commit order."""
        return list(changes_in(self._read()))

    def taken(self) -> list[Expected]:
        """Changes committed since, as `expected`, and let PostgreSQL remove their WAL.

        May repeat transactions that came before: the slot moves only so far, and back if the server is killed.
        """
        ((until,),) = self._database.execute("SELECT pg_current_wal_flush_lsn()")
        changes = list(changes_in(self._read(until)))
        self._database.execute("SELECT pg_replication_slot_advance(%s, %s)", [self._slot, until])
        return changes

    def pass_over(self) -> None:
        """Leave out what was committed since."""
        self._database.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", [self._slot])

    def _read(self, until: str | None = None) -> Iterator[bytes]:
        # the functions print values by the session's settings; the bridge pins the same
        self._database.execute("SET timezone = 'UTC'; SET datestyle = 'ISO'; SET bytea_output = 'hex'")
        query = sql.SQL(
            "SELECT data FROM pg_logical_slot_peek_binary_changes({}, {}, NULL, 'proto_version', '1', 'publication_names', {})"
        ).format(sql.Literal(self._slot), sql.Literal(until), sql.Literal('"' + self._publication.replace('"', '""') + '"'))
        for (data,) in self._database.execute(query.as_string(None)):
            yield bytes(data)


def changes_in(messages: Iterable[bytes]) -> Iterator[Expected]:
    """The events that these pgoutput messages must become."""
    relations: dict[int, Relation] = {}
    lsn = seq = 0
    for message in messages:
        match pgoutput.decode(message):
            case pgoutput.Begin() as begin:
                lsn, seq = begin.final_lsn, 0
            case Relation() as relation:
                relations[relation.oid] = relation
            case pgoutput.Insert(oid, new):
                yield _event(lsn, seq, "INSERT", relations[oid], new)
                seq += 1
            case pgoutput.Update(oid, kind, old, new):
                if kind == "O":  # the whole old row has the values that the new row lacks because they did not change
                    new = tuple(b if a.kind == "u" else a for a, b in zip(new, old or (), strict=True))
                yield _event(lsn, seq, "UPDATE", relations[oid], new)
                seq += 1
            case pgoutput.Delete(oid, _, old):
                yield _event(lsn, seq, "DELETE", relations[oid], old)
                seq += 1
            case pgoutput.Truncate() as truncate:
                for oid in truncate.relation_oids:
                    yield _event(lsn, seq, "TRUNCATE", relations[oid], ())
                    seq += 1


def _event(lsn: int, seq: int, operation: str, relation: Relation, values: Sequence[TupleValue]) -> Expected:
    data = {
        column.name: None
        if value.kind == "n"
        else converter_for(column.type_oid, {}, "msgpack", "literal").convert(value.data)[0]
        for column, value in zip(relation.columns, values, strict=bool(values))
        if value.kind != "u"
    }
    return Expected(lsn, seq, operation, table_token(relation.schema, relation.name), data)


def assert_exact(events: Sequence[StoredEvent], expected: Sequence[Expected]) -> None:
    """The stream holds exactly the expected changes, each once, in order, with the right ids; schema events aside."""
    rows = [event for event in events if event.body["operation"] != "SCHEMA"]
    gaps = [event.body for event in rows if event.body["operation"] == "GAP"]
    assert not gaps, f"gap events: {gaps}"
    published = [event.body for event in rows if event.body["operation"] == "PUBLISHED"]
    assert not published, f"publication events: {published}"
    stored = [place(event.body) for event in rows]
    wanted = [(e.lsn, e.seq, e.operation, e.token) for e in expected]
    if stored != wanted:
        raise AssertionError(difference(stored, wanted))
    for event, change in zip(rows, expected, strict=True):
        assert event.body["data"] == change.data
        assert event.body["msg_id"] == f"{change.lsn:x}-{change.seq}-{change.token}-{change.operation.lower()}"
    ids = {event.seq: event.headers["Nats-Msg-Id"] for event in events}
    assert len(set(ids.values())) == len(ids), "a message id came twice"
    lasts = [event.body["lsn"] for event in rows if event.body.get("last")]
    assert lasts == sorted(set(lasts)), "one last event a transaction"
    assert set(lasts) == {e.lsn for e in expected}, "every transaction has a last event"


def place(body: Mapping[str, Any]) -> tuple[int, int, str, str]:
    """Where an event stands and of what it is."""
    return body["lsn"], body["seq"], body["operation"], table_token(body["schema"], body["table"])


def difference(stored: Sequence[Any], wanted: Sequence[Any]) -> str:
    """Where two sequences part, for a person to read."""
    at = next((i for i, (a, b) in enumerate(zip(stored, wanted, strict=False)) if a != b), min(len(stored), len(wanted)))
    doubled = len(stored) - len(set(stored))
    missing, extra = set(wanted) - set(stored), set(stored) - set(wanted)
    return (
        f"{len(stored)} stored, {len(wanted)} expected, {doubled} doubled, {len(missing)} missing, {len(extra)} too many; "
        f"first difference at {at}: stored {stored[at : at + 3]}, expected {wanted[at : at + 3]}"
    )
