"""Blocks of a snapshot read as single values do: the quick ways are held against the rule of each type."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import pq

from actors.values.formats import Encoding, SnapshotFormat
from actors.values.row_blocks import RowBlocks
from actors.values.text_values import converter_for
from tests.servers import Database

TEXTS: dict[int, st.SearchStrategy[str]] = {
    16: st.sampled_from(["t", "f"]),
    17: st.binary(max_size=8).map(lambda b: "\\x" + b.hex()),
    20: st.integers(-(2**63), 2**63 - 1).map(str),
    23: st.integers(-(2**31), 2**31 - 1).map(str),
    25: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    701: st.one_of(st.floats().map(repr).map(lambda r: {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(r, r))),
    1114: st.one_of(
        st.datetimes().map(lambda d: d.isoformat(" ")), st.sampled_from(["infinity", "-infinity", "0044-03-15 01:02:03 BC"])
    ),
    1184: st.one_of(
        st.datetimes().map(lambda d: d.isoformat(" ") + "+00"), st.sampled_from(["infinity", "0044-03-15 01:02:03+00 BC"])
    ),
    3802: st.sampled_from(['{"a": 1}', "null", "[1.5, 2]", "12345678901234567890123", '"x"']),
}


def result_of(connection: pq.PGconn, width: int, rows: Sequence[Sequence[str | None]]) -> Any:
    """A result of libpq's with these texts."""
    values = iter(range(1, width * len(rows) + 1))
    lists = ", ".join(f"({', '.join(f'${next(values)}::text' for _ in range(width))})" for _ in rows)
    sql = f"VALUES {lists}"
    result = connection.exec_params(sql.encode(), [None if t is None else t.encode() for row in rows for t in row])
    assert result.status == pq.ExecStatus.TUPLES_OK, result.error_message
    return result


cases = st.lists(st.sampled_from(sorted(TEXTS)), min_size=1, max_size=5).flatmap(
    lambda oids: st.tuples(
        st.just(oids), st.lists(st.tuples(*(st.none() | TEXTS[oid] for oid in oids)), min_size=1, max_size=20)
    )
)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
@pytest.mark.parametrize("fmt", ["map", "array"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases, strange=st.booleans())
def test_a_block_reads_as_its_values_do_one_by_one(
    encoding: Encoding,
    fmt: SnapshotFormat,
    database: Database,
    case: tuple[list[int], list[tuple[str | None, ...]]],
    strange: bool,
) -> None:
    oids, rows = case
    converters = [converter_for(oid, {}, encoding, "literal") for oid in oids]
    names = [f'c"{i}\\' if strange else f"c {i}" for i in range(len(oids))]
    blocks = RowBlocks(list(zip(names, converters, strict=True)), encoding, fmt)
    connection = pq.PGconn.connect(database.dsn.encode())
    with closing(_Closing(connection)):
        piece = blocks.piece(result_of(connection, len(oids), rows))
    expected: list[list[Any]] = []
    raw: list[tuple[int, int]] = []
    for at, row in enumerate(rows):
        values: list[Any] = []
        for column, (converter, text) in enumerate(zip(converters, row, strict=True)):
            value, kept_as_text = (None, False) if text is None else converter.convert(text.encode())
            values.append(value)
            raw += [(at, column)] if kept_as_text else []
        expected.append(values)
    found = blocks._decoded(piece)
    split = [row for one in blocks.split(piece) for row in blocks._decoded(one)]
    assert repr(split) == repr(found)
    assert repr([[row[name] for name in names] for row in found] if fmt == "map" else found) == repr(expected)
    assert piece.raw == raw


class _Closing:
    def __init__(self, connection: pq.PGconn) -> None:
        self.close = connection.finish
