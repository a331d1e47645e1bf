"""COPY's text format for new rows of a replica in PostgreSQL. No I/O. https://www.postgresql.org/docs/18/sql-copy.html"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors.mirror.stores.dialect import Params
from actors.mirror.stores.row_statements import DEFAULT_VALUES

COPY_BYTES = 256 * 1024
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_of(insert: str) -> str | None:
    """The COPY statement that does the same as an INSERT of `RowStatements`.

    None for other statements, for an INSERT without columns, and for one that says what to do with a key that is there.
    """
    if not insert.startswith("INSERT INTO ") or insert.endswith(DEFAULT_VALUES) or not insert.endswith(")"):
        return None
    return f"COPY {insert.removeprefix('INSERT INTO ').rpartition(' VALUES (')[0]} FROM STDIN"


def copy_lines(rows: Sequence[Params]) -> Iterator[bytes]:
    """Encode rows in COPY's text format, in pieces of about COPY_BYTES."""
    lines: list[str] = []
    size = 0
    for row in rows:
        line = "\t".join([value if type(value) is str else "\\N" if value is None else str(value) for value in row])
        if "\\" in line or "\n" in line or "\r" in line or line.count("\t") >= len(row):
            line = "\t".join(["\\N" if value is None else str(value).translate(_ESCAPES) for value in row])
        lines.append(line)
        size += len(line)
        if size >= COPY_BYTES:
            yield _encoded(lines)
            lines, size = [], 0
    yield _encoded(lines)


def _encoded(lines: list[str]) -> bytes:
    return "\n".join([*lines, ""]).encode("utf-8", "surrogateescape")
