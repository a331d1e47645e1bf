"""Positions: of a byte in PostgreSQL's WAL, and of a message in the order of the stream.

A WAL position is an int in the program, and "0/16B3748" for users and in the replication protocol.
"""

from typing import NamedTuple, NewType

Lsn = NewType("Lsn", int)
"""A position in PostgreSQL's WAL, in bytes."""

NO_LSN = Lsn(0)


def parse_lsn(text: str) -> Lsn:
    """Read "16/B374D848". Raises ValueError when it is not two hexadecimal numbers of at most 32 bits."""
    high, slash, low = text.partition("/")
    if not slash or not 0 < len(high) <= 8 or not 0 < len(low) <= 8:
        raise ValueError(f"{text!r} is not an LSN such as 0/16B3748")
    return Lsn(int(high, 16) << 32 | int(low, 16))


def format_lsn(lsn: int) -> str:
    """Write an LSN as PostgreSQL does: "0/16B3748"."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


GAP_RANK, SCHEMA_RANK, ROW_RANK = -1, 0, 1


class Position(NamedTuple):
    """The place of a message in the stream's order: commit LSN, change within the transaction, rank at that change.

    A gap comes before everything else at its LSN and seq, a schema event before the row that needs it.
    """

    lsn: Lsn
    seq: int
    rank: int = ROW_RANK


START = Position(Lsn(0), -1, GAP_RANK)
"""The position before all others: nothing is skipped."""
