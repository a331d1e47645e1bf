"""The connections of one round: each reads ranges in the order of the key, and stops in time where it can go on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

import trio
from psycopg import pq

from actors.clients.postgres.connection import PgConnection
from actors.contract.records import KeyText, RowRange
from actors.snapshots.chunks import ROWS_MAX
from actors.snapshots.row_key import RowKey, where
from actors.snapshots.setup import STEP_ASIDE_S
from actors.snapshots.table_reader import OpenTable
from actors.values.row_blocks import Piece, RowBlocks

_RAW_BYTES = 80
"""For naming one raw value: a row number and a column name."""


class KeyedPiece(NamedTuple):
    """Encoded rows and their keys, which are read from PostgreSQL's own result only where a chunk ends."""

    piece: Piece
    key_at: Callable[[int], KeyText]
    """By the row's number in the piece."""

    @property
    def size_bytes(self) -> int:
        return len(self.piece.body) + 1 + _RAW_BYTES * len(self.piece.raw)

    @property
    def last_key(self) -> KeyText:
        return self.key_at(self.piece.rows - 1)


class Cut(NamedTuple):
    """Rows for one chunk."""

    pieces: list[KeyedPiece]
    is_last: bool
    """Whether the range has no more rows."""

    @property
    def rows(self) -> int:
        return sum(keyed.piece.rows for keyed in self.pieces)

    @property
    def size_bytes(self) -> int:
        return sum(keyed.size_bytes for keyed in self.pieces)

    def halves(self, split: Callable[[Piece], list[Piece]]) -> tuple[Cut, Cut] | None:
        """Cut in two, down to single rows; None if there is but one row."""
        pieces = self.pieces
        if len(pieces) == 1:
            ((piece, key_at),) = pieces
            rows = split(piece) if piece.rows > 1 else []
            pieces = [KeyedPiece(one, _only(key_at, row)) for row, one in enumerate(rows)]
        if len(pieces) < 2:
            return None
        middle = len(pieces) // 2
        return Cut(pieces[:middle], False), Cut(pieces[middle:], self.is_last)


def keys_in(result: pq.abc.PGresult, places: Sequence[int], connection: PgConnection) -> Callable[[int], KeyText]:
    """Return what reads the key of a row of a result; `places` are the key's columns in it."""
    decode = connection.encoding.decode

    def key_at(row: int) -> KeyText:
        return tuple(decode(result.get_value(row, place) or b"") for place in places)

    return key_at


def _only(key_at: Callable[[int], KeyText], row: int) -> Callable[[int], KeyText]:
    return lambda _: key_at(row)


class Clock(NamedTuple):
    """When a round is to end, by trio's clock."""

    soft: float
    """After this nothing more is begun."""
    hard: float
    """What still runs then is cut off."""

    @classmethod
    def of(cls, round_s: float) -> Clock:
        """A round that begins now."""
        now = trio.current_time()
        return cls(now + 0.75 * round_s, now + round_s)


@dataclass(slots=True)
class Lane:
    """One connection, in whose open transaction the table is read. For one task."""

    connection: PgConnection
    table: OpenTable
    key: RowKey
    blocks: RowBlocks
    clock: Clock
    room: Callable[[], int]
    """Returns how many bytes of rows a chunk may gather."""
    is_late: Callable[[], bool]
    """Returns whether the round must end for another reason, such as the rate."""
    events_underway: Callable[[], bool]
    is_cut_off: bool = False
    """The connection is closed: a query took too long. What it had brought counts."""
    _row_bytes: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be read in this round."""
        return self.is_cut_off or self.is_late() or trio.current_time() >= self.clock.soft

    async def read(self, span: RowRange) -> AsyncGenerator[Cut]:
        """Yield the rows of a range in the key's order, a chunk's worth at a time, until it ends or the round does.

        Holds what a chunk has room for and one block, however much wider rows become. Raises PostgresError and
        SourceUnavailable.
        """
        names = [column.name for column in self.table.relation.columns]
        places = [names.index(name) for name in self.key.columns]
        condition = where(self.table.published.row_filter, self.key.condition(span))
        await self.connection.query(
            f"DECLARE walbridge_rows NO SCROLL CURSOR FOR SELECT {self.table.columns} FROM {self.table.published.own}"
            f"{condition} ORDER BY {self.key.listed}"
        )
        while True:
            wanted, found, size_bytes, room = self._rows_wanted(), 0, 0, self.room()
            pieces: list[KeyedPiece] = []
            fetch = f"FETCH FORWARD {wanted} FROM walbridge_rows"
            async with aclosing(self.connection.blocks(fetch, self.table.block_rows)) as results:
                while (result := await self._next(results)) is not None:
                    if pieces and size_bytes >= room:  # rows are wider than those before: do not wait for all of them
                        yield self._cut(pieces, is_last=False)
                        pieces, size_bytes = [], 0
                        if self.is_over:
                            await self._leave()
                            return
                    keyed = KeyedPiece(self.blocks.piece(result), keys_in(result, places, self.connection))
                    found += keyed.piece.rows
                    size_bytes += keyed.size_bytes
                    pieces.append(keyed)
            is_last = not self.is_cut_off and found < wanted
            if pieces or is_last:
                yield self._cut(pieces, is_last=is_last)
            if is_last:
                await self.connection.query("CLOSE walbridge_rows")
                return
            if self.is_over:
                return

    async def _next(self, results: AsyncIterator[pq.abc.PGresult]) -> pq.abc.PGresult | None:
        """The next block of a query; None at its end, or when the round is over."""
        with trio.move_on_at(self.clock.hard):
            if self.events_underway():
                await trio.sleep(STEP_ASIDE_S)
            return await anext(results, None)
        await self._leave()
        return None

    async def _leave(self) -> None:
        """Stop what the server still does."""
        self.is_cut_off = True
        await self.connection.abandon()

    def _cut(self, pieces: list[KeyedPiece], *, is_last: bool) -> Cut:
        cut = Cut(pieces, is_last)
        if cut.rows:
            self._row_bytes = max(1.0, cut.size_bytes / cut.rows)
        return cut

    def _rows_wanted(self) -> int:
        """How many rows make a chunk, by those that came before."""
        if not self._row_bytes:
            return 10 * self.table.block_rows
        return max(1, min(ROWS_MAX, int(0.97 * self.room() / self._row_bytes)))
