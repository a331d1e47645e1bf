"""KV `bridges`: what a bridge must know after a restart and the stream's tail does not show (contract, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from actors.contract.subjects import BRIDGES
from actors.errors import ConfigError
from actors.messages import Gap
from actors.positions import GAP_RANK, NO_LSN, START, Lsn, Position

UNFINISHED = "unfinished"
"""Some tables may have no entry only because the bridge ended while it wrote the first ones."""


class Suspended(NamedTuple):
    """The range of a table's events that are left out: from `since` up to `until`, 0 until a snapshot resumes the table."""

    since: Position
    until: Lsn = Lsn(0)


class Held(NamedTuple):
    """A point that the stream had reached: with everything up to `last_seq` stored, `lsn` may be confirmed."""

    last_seq: int
    position: Position
    lsn: Lsn
    timeline: int


class NotedGap(NamedTuple):
    """A gap event of the bridge's own that no user has acknowledged yet."""

    seq: int
    """The event's sequence in the stream."""
    unix_s: float
    reason: str
    from_lsn: Lsn
    to_lsn: Lsn
    tables: tuple[str, ...]
    """Tokens; the first NOTED_TABLES_MAX."""
    table_count: int

    @classmethod
    def of(cls, gap: Gap, seq: int, unix_s: float) -> NotedGap:
        """Note a gap event that will be message `seq`."""
        tables = gap.tables
        return cls(seq, unix_s, gap.reason, gap.from_lsn, gap.to_lsn, tables[:NOTED_TABLES_MAX], len(tables))


NOTED_GAPS_MAX = 5
NOTED_TABLES_MAX = 200


@dataclass(frozen=True, slots=True)
class BridgeRecord:
    """One version of a stream's entry, stored before its LSN is confirmed to PostgreSQL."""

    slot: str
    publication: str
    system_id: str
    timeline: int
    switch_points: tuple[tuple[int, Lsn], ...] = ()
    """(timeline, LSN where it ended), oldest first, from the server's timeline history."""
    position: Position = START
    """Position of the last message stored when the record was written."""
    last_seq: int = 0
    """The stream's sequence of that message."""
    confirmed_lsn: Lsn = NO_LSN
    """About to be confirmed to PostgreSQL: everything below is stored."""
    schemas: Mapping[str, int] = field(default_factory=dict)
    """Table token -> schema_id that readers know at `position`."""
    tables: tuple[str, ...] = ()
    """Tokens of the publication's tables: this bridge answers requests for their snapshots."""
    suspended: Mapping[str, Suspended] = field(default_factory=dict)
    """Table token -> the range of events left out."""
    pending_gap: Gap | None = None
    """A decided gap event, the next message after `last_seq`; None once it is stored."""
    database: str = ""
    """PostgreSQL's database; empty in records of bridges that did not write it yet."""
    published: str = ""
    """Hash of the entries that say how the tables are published; empty when there are none yet, UNFINISHED while the first
    are being written."""
    held: tuple[Held, ...] = ()
    """With --confirm-hold, oldest first: the point confirmed last, and those that wait. After a power cut of NATS they prove
    what the stream holds, although this version of the record may be newer than its end."""
    commit_us: int = 0
    """When the transaction at `position` was committed, in microseconds since 1970; 0 if the last message is of none."""
    gaps: tuple[NotedGap, ...] = ()
    """The newest gap events that no user has acknowledged."""
    paused_at: float = 0.0
    """Since when an operator keeps the slot unread, in unix seconds; 0 while the stream's bridge is to stream."""
    large: Mapping[str, int] = field(default_factory=dict)
    """Table token -> about how many rows a large table has: a power of two, so that it rarely changes."""

    def noting(self, gap: Gap | None, seq: int, unix_s: float) -> tuple[NotedGap, ...]:
        """Return `gaps` with a gap event that will be message `seq`. It takes the place of those whose range it contains: they
        were announced and not stored."""
        if gap is None:
            return self.gaps
        kept = [noted for noted in self.gaps if not gap.from_lsn <= noted.from_lsn <= noted.to_lsn <= gap.to_lsn]
        return (*kept, NotedGap.of(gap, seq, unix_s))[-NOTED_GAPS_MAX:]

    def of_held(self) -> list[BridgeRecord]:
        """Return the record as it would have been at each held point."""
        return [
            replace(
                self, last_seq=point.last_seq, position=point.position, confirmed_lsn=point.lsn, timeline=point.timeline,
                pending_gap=None, held=(), commit_us=0,
            )
            for point in self.held
        ]  # fmt: skip

    def encode(self) -> bytes:
        """Return the entry's bytes: JSON, whatever the encoding of the events."""
        return orjson.dumps(
            {
                "slot": self.slot,
                "publication": self.publication,
                "tables": self.tables,
                "large": dict(self.large),
                "system_id": self.system_id,
                "database": self.database,
                "timeline": self.timeline,
                "switch_points": self.switch_points,
                "last_seq": self.last_seq,
                "lsn": self.position.lsn,
                "seq": self.position.seq,
                "rank": self.position.rank,
                "commit_us": self.commit_us,
                "confirmed_lsn": self.confirmed_lsn,
                "schemas": dict(self.schemas),
                "suspended": {token: [s.since.lsn, s.since.seq, s.until] for token, s in self.suspended.items()},
                "published": self.published,
                "paused_at": self.paused_at,
                "held": [[h.last_seq, *h.position, h.lsn, h.timeline] for h in self.held],
                "gaps": [list(gap) for gap in self.gaps],
                "pending_gap": None if self.pending_gap is None else _encode_gap(self.pending_gap),
            }
        )

    @classmethod
    def decode(cls, data: bytes, stream: str) -> BridgeRecord:
        """Read an entry. Raises ConfigError if no bridge wrote it."""
        try:
            raw = orjson.loads(data)
            confirmed = Lsn(int(raw["confirmed_lsn"]))
            if "pending_gap" not in raw and int(raw["rank"]) == GAP_RANK:
                # versions before the key put a gap's end there, an LSN of the timeline that was left
                confirmed = min(confirmed, Lsn(int(raw["lsn"])))
            return cls(
                slot=str(raw["slot"]),
                publication=str(raw["publication"]),
                system_id=str(raw["system_id"]),
                timeline=int(raw["timeline"]),
                switch_points=tuple((int(tli), Lsn(int(lsn))) for tli, lsn in raw["switch_points"]),
                position=Position(Lsn(int(raw["lsn"])), int(raw["seq"]), int(raw["rank"])),
                last_seq=int(raw["last_seq"]),
                confirmed_lsn=confirmed,
                schemas={str(k): int(v) for k, v in raw["schemas"].items()},
                tables=tuple(map(str, raw["tables"])),
                large={str(token): int(rows) for token, rows in raw.get("large", {}).items()},
                suspended={
                    str(k): Suspended(Position(Lsn(int(v[0])), int(v[1])), Lsn(int(v[2]))) for k, v in raw["suspended"].items()
                },
                pending_gap=_decode_gap(raw.get("pending_gap")),
                database=str(raw.get("database", "")),
                published=str(raw.get("published", "")),
                held=tuple(map(_decode_held, raw.get("held", ()))),
                commit_us=int(raw.get("commit_us", 0)),
                paused_at=_decode_time(raw.get("paused_at", 0.0)),
                gaps=tuple(map(_decode_noted, raw.get("gaps", ()))),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise ConfigError(
                "WB240",
                f"key {stream} of KV bucket {BRIDGES} is not a bridge's record",
                said=repr(exc),
                means="the bridge cannot know where to continue without it",
                fix=f"nats kv get {BRIDGES} {stream}   # inspect it; then: nats kv del {BRIDGES} {stream}",
            ) from exc


def _decode_time(raw: Any) -> float:
    unix_s = float(raw)
    if not 0 <= unix_s < 1e11:
        raise ValueError(f"{unix_s} is no time")
    return unix_s


def _decode_held(raw: list[Any]) -> Held:
    last_seq, lsn, seq, rank, confirmed, timeline = map(int, raw)
    return Held(last_seq, Position(Lsn(lsn), seq, rank), Lsn(confirmed), timeline)


def _decode_noted(raw: list[Any]) -> NotedGap:
    seq, unix_s, reason, from_lsn, to_lsn, tables, count = raw
    return NotedGap(
        int(seq), float(unix_s), str(reason), Lsn(int(from_lsn)), Lsn(int(to_lsn)), tuple(map(str, tables)), int(count)
    )


def _encode_gap(gap: Gap) -> dict[str, object]:
    position = [gap.position.lsn, gap.position.seq, gap.position.rank]
    return {
        "position": position, "slot": gap.slot, "reason": gap.reason, "from_lsn": gap.from_lsn, "to_lsn": gap.to_lsn,
        "tables": gap.tables, "number": gap.number,
    }  # fmt: skip


def _decode_gap(raw: Mapping[str, Any] | None) -> Gap | None:
    if raw is None:
        return None
    lsn, seq, rank = map(int, raw["position"])
    tables = tuple(map(str, raw["tables"]))
    return Gap(
        Position(Lsn(lsn), seq, rank), str(raw["slot"]), str(raw["reason"]), Lsn(int(raw["from_lsn"])), Lsn(int(raw["to_lsn"])),
        tables, number=int(raw["number"]),
    )  # fmt: skip
