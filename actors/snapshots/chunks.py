"""Pieces of a table gathered into chunks of the size that a message may have. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from actors.contract.snapshot_encoder import Message
from actors.values.row_blocks import Piece

ROWS_MAX = 10_000
"""Rows of a chunk at most."""


class ChunkCutter:
    """Gathers pieces until a chunk is full. No I/O.

    `size` tells the bytes that a chunk of these pieces would have as sent; `bytes_max` is what it may have. With compression a
    chunk holds more: as much as the last one shows to fit, and never more than `gather_bytes_max` before it is compressed.
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
        """Take one piece; returns the chunks that are full now. Raises RowTooLarge."""
        size = len(piece.body) + 1 + _RAW_BYTES * len(piece.raw)
        if piece.rows > 1 and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            fits_alone = size <= self._target and self._bytes > self._target * 0.9 and piece.rows <= ROWS_MAX
            if not fits_alone:
                return [message for one in self._split(piece) for message in self.add(one)]
        made: list[Message] = []
        if self._pieces and (self._rows + piece.rows > ROWS_MAX or self._bytes + size > self._target):
            made = self._cut()
        self._pieces.append(piece)
        self._bytes += size
        self._rows += piece.rows
        return made

    def finish(self) -> list[Message]:
        """The rest."""
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
        # what the next one may gather, if it is compressed as well as this one was
        self._target = max(self._limit, min(self._gather_max, int(before * self._bytes_max / size * 0.9)))
        return [message]

    def _halved(self, pieces: list[Piece]) -> list[Message]:
        """Too large after all: in two parts, down to a single row."""
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
    """One row alone does not fit into a message."""

    def __init__(self, size_bytes: int, bytes_max: int) -> None:
        super().__init__(f"a row of {size_bytes:,} bytes is larger than a message may be ({bytes_max:,} bytes)")


_RAW_BYTES = 80
"""What naming one raw value takes: a row number and a column's name."""
_RESERVE_BYTES = 64
"""For numbers that grow: chunk, array head, digits in headers."""


def _size(message: Message) -> int:
    """Headers and body: what counts against max_payload."""
    return len(message.body) + headers_size(message.headers)


def headers_size(headers: Mapping[str, str]) -> int:
    """Bytes of a header block on the wire."""
    return len("NATS/1.0\r\n\r\n") + sum(len(name) + len(value) + 4 for name, value in headers.items())
