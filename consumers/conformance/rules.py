"""The rules of docs/consumers.md and docs/mirror.md that histories try, by id."""

from __future__ import annotations

RULES = {
    "message.packed": "A message may hold a list of events.",
    "transaction.whole": "Readers of the copy see whole transactions: nothing of one before all of it has come.",
    "update.unchanged": "Columns in `unchanged` keep the copy's value.",
    "update.omitted": "Columns in `omitted` are unknown, which is null in a copy, until an event or a new copy has their value.",
    "snapshot.join": "A copy is the snapshot's rows and the events after `stream_seq` with `lsn >= snapshot_lsn`.",
    "snapshot.skip-lsn": "Events after `stream_seq` with `lsn < snapshot_lsn` are in the snapshot: skip them.",
    "snapshot.meta": "A snapshot without its meta does not count.",
}
