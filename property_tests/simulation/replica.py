"""Compares a mirror's replica with its source."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from property_tests.simulation.postgres.tables import TEXT, Database


class Seen(NamedTuple):
    """What a replica says of itself."""

    lsn: int
    """Of the last transaction applied; 0 without a checkpoint."""
    seq: int
    """The stream's sequence up to which everything is applied."""
    states: Mapping[str, tuple[str, str]]
    """Token -> state and local name."""


def look(path: Path) -> Seen | None:
    """Read what a replica says of itself; None while there is none."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        try:
            position = connection.execute("SELECT lsn, stream_seq FROM _walbridge_position").fetchall()
            tables = connection.execute("SELECT token, state, local_name FROM _walbridge_tables").fetchall()
        except sqlite3.OperationalError:
            return None
    lsn, seq = position[0] if position else (0, 0)
    return Seen(int(lsn), int(seq), {token: (state, name) for token, state, name in tables})


def differences(path: Path, seen: Seen, source: Database) -> list[str]:
    """What differs between the replica's live tables and the source as it is published."""
    found: list[str] = []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        for table, _ in source.published():
            state, name = seen.states.get(table.name, ("missing", ""))
            if state != "live":
                continue
            columns = source.sent_columns(table)
            texts = {column.name for column in columns if column.type_oid == TEXT}
            cursor = connection.execute(f'SELECT * FROM "{name}"')
            names = [one[0] for one in cursor.description]
            there = {row[names.index("id")]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
            wanted = {
                int(key): {column: _value(value, is_text=column in texts) for column, value in row.items()}
                for key, row in source.published_rows(table).items()
            }
            if there != wanted:
                keys = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
                found.append(
                    f"replica differs in {table.name}: keys {keys[:4]}, e.g. {there.get(keys[0])} instead of {wanted.get(keys[0])}"
                )
    return found


def _value(value: bytes | None, *, is_text: bool) -> Any:
    return None if value is None else value.decode() if is_text else int(value)
