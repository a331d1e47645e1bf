"""Gathers pieces of a table into chunks that fit into a message. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from actors.contract.snapshot_encoder import Message
from actors.values.row_blocks import Piece

ROWS_MAX = 10_000
"""Rows that one chunk may hold."""


class ChunkCutter:
    """Gathers pieces until a chunk is full. No I/O.

    A chunk as sent has at most `bytes_max` bytes. With compression a chunk gathers more: as much as the previous chunk's ratio
    suggests, and never more than `gather_bytes_max` before compression.
    """

    def __init__(
        self,
        encode: Callable[[int, Sequence[Piece]], Message],
        compress: Callable[[Message], Message],
        split: Callable[[Piece], list[Piece]],
        *,
        bytes_max: int,
        gather_bytes_max: int,
    ) -> None:
        self._encode, self._compress, self._split = encode, compress, split
        self._bytes_max, self._gather_max = bytes_max, gather_bytes_max
        self._target = bytes_max - _size(encode(0, ())) - _RESERVE_BYTES
        self._limit = self._target
        self._pieces: list[Piece] = []
        self._bytes = self._rows = 0
        self.chunks = self.rows = 0

    def add(self, piece: Piece) -> list[Message]:
        """Add one piece; return the chunks that are full now. Raises RowTooLarge."""
        size = len(piece.body) + 1 + _RAW_BYTES * len(piece.raw)
        if piece.rows > 1 and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            fits_alone = size <= self._target and self._bytes > self._target * 0.9 and piece.rows <= ROWS_MAX
            if not fits_alone:
                return [message for row in self._split(piece) for message in self.add(row)]
        made: list[Message] = []
        if self._pieces and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            made = self._cut()
        self._pieces.append(piece)
        self._bytes += size
        self._rows += piece.rows
        return made

    def finish(self) -> list[Message]:
        """Return the rest as chunks."""
        return self._cut() if self._pieces else []

    def _cut(self) -> list[Message]:
        pieces, self._pieces = self._pieces, []
        before = self._bytes
        self._bytes = self._rows = 0
        message = self._compress(self._encode(self.chunks, pieces))
        size = _size(message)
        if size > self._bytes_max:
            return self._halved(pieces)
        self.chunks += 1
        self.rows += sum(piece.rows for piece in pieces)
        # what the next chunk may gather if it compresses as well as this one
        self._target = max(self._limit, min(self._gather_max, int(before * self._bytes_max / size * 0.9)))
        return [message]

    def _halved(self, pieces: list[Piece]) -> list[Message]:
        """Cut a chunk that is too large into two parts, down to single rows."""
        self._target = self._limit
        if len(pieces) == 1:
            if pieces[0].rows == 1:
                raise RowTooLarge(len(pieces[0].body), self._bytes_max)
            pieces = self._split(pieces[0])
        middle = max(1, len(pieces) // 2)
        made: list[Message] = []
        for part in (pieces[:middle], pieces[middle:]):
            self._pieces = part
            self._bytes = sum(len(piece.body) for piece in part)
            self._rows = sum(piece.rows for piece in part)
            made += self._cut()
        return made


class RowTooLarge(ValueError):
    """A single row is too large for a message."""

    def __init__(self, size_bytes: int, bytes_max: int, row: str = "") -> None:
        said = f"a row of {size_bytes:,} bytes{{}} is too large for a message (limit {bytes_max:,} bytes)"
        super().__init__(said.replace("{}", f", {row}," if row else ""))
        self.without_row = said.replace("{}", "")
        """The same without the row's key."""


_RAW_BYTES = 80
"""For naming one raw value: a row number and a column name."""
_RESERVE_BYTES = 64
"""For numbers that grow: chunk, array head, digits in headers."""


def _size(message: Message) -> int:
    """Return the bytes of headers and body, which count against max_payload."""
    return len(message.body) + headers_size(message.headers)


def headers_size(headers: Mapping[str, str]) -> int:
    """Return the bytes of a header block on the wire."""
    return len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in headers.items())
