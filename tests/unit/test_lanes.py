"""How much a connection of a round holds, whatever the widths of the rows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from actors.contract.records import RowRange
from actors.snapshots.lanes import Clock, Cut, Lane
from actors.snapshots.row_key import RowKey
from actors.snapshots.table_reader import OpenTable
from actors.values.row_blocks import Piece, RowBlocks
from actors.wire.text_encoding import UTF8

ROOM, BLOCK_ROWS = 1_000_000, 8


class Cursor:
    """A connection on whose table each row is as wide as its number here says."""

    encoding = UTF8

    def __init__(self, widths: list[int]) -> None:
        self.widths, self.at = widths, 0
        self.is_left = False

    async def query(self, sql: str) -> list[Any]:
        return []

    async def abandon(self) -> None:
        self.is_left = True

    async def blocks(self, fetch: str, rows_max: int) -> AsyncGenerator[Any]:
        end = min(len(self.widths), self.at + int(fetch.split()[2]))
        while self.at < end:
            first, self.at = self.at, min(end, self.at + rows_max)
            yield SimpleNamespace(widths=self.widths[first : self.at])


def read(widths: list[int], *, late_after: int = 10**9) -> tuple[list[Cut], Cursor]:
    """Read a whole table; the round is over after so many cuts."""
    connection, cuts = Cursor(widths), list[Cut]()
    blocks = SimpleNamespace(piece=lambda result: Piece(b"x" * sum(result.widths), len(result.widths), []))
    table = SimpleNamespace(
        relation=SimpleNamespace(columns=[SimpleNamespace(name="id")]), columns='"id"', block_rows=BLOCK_ROWS,
        published=SimpleNamespace(own="t", row_filter=""),
    )  # fmt: skip
    key = RowKey(("id",), ("integer",), "pg_catalog", ("pg_catalog",), 0)

    async def main() -> None:
        lane = Lane(
            cast(Any, connection), cast(OpenTable, table), key, cast(RowBlocks, blocks), Clock.of(1000), lambda: ROOM,
            lambda: len(cuts) >= late_after, lambda: False,
        )  # fmt: skip
        async for cut in lane.read(RowRange()):
            cuts.append(cut)

    trio.run(main)
    return cuts, connection


@pytest.mark.parametrize("narrow", [1, 80, 81, 5000])
def test_wide_rows_after_narrow_ones_fill_a_chunk_and_no_more(narrow: int) -> None:
    widths = [100] * narrow + [300_000] * 200
    cuts, _ = read(widths)
    assert sum(cut.rows for cut in cuts) == len(widths)
    assert [cut.is_last for cut in cuts] == [False] * (len(cuts) - 1) + [True]
    assert max(cut.size_bytes for cut in cuts) <= ROOM + BLOCK_ROWS * 300_001


def test_a_round_that_is_over_leaves_the_rest_of_what_it_has_asked_for() -> None:
    widths = [100] * 80 + [300_000] * 200
    cuts, connection = read(widths, late_after=2)
    assert len(cuts) == 2
    assert connection.is_left
    assert not cuts[-1].is_last
