"""Message ids, which contain the message's position in the stream (contract, section 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from actors.contract.subjects import BRIDGE_TOKEN
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position
from actors.wire.jetstream import MSG_ID_HEADER, OWN_MSG_ID_HEADER

_RANKS = {
    **dict.fromkeys(("insert", "update", "delete", "truncate"), ROW_RANK),
    "schema": SCHEMA_RANK,
    # a suspended table's gap takes the place of the row that was too large; the bridge's own gap comes before its position
    "gap": ROW_RANK,
    "published": GAP_RANK,  # it stands between transactions: before a change that its transaction does not have
}
_ID = re.compile(rf"([0-9a-f]{{1,16}})-([0-9]{{1,20}})-(.+)-({'|'.join(_RANKS)})")
"""An LSN has 64 bits. int() alone would also read signs, prefixes, underscores and the digits of other scripts."""


def id_in(headers: Mapping[str, str]) -> str | None:
    """Return the id of a stored message; None when no bridge wrote the message."""
    found = headers.get(MSG_ID_HEADER)
    return headers.get(OWN_MSG_ID_HEADER) if found is None else found


def position_of(msg_id: str) -> Position:
    """Read the position in a message id: `{commit lsn, hex}-{seq}-{table token}-{operation}`.

    Raises ValueError when no bridge made the id.
    """
    found = _ID.fullmatch(msg_id)
    if found is None:
        raise ValueError(f"{msg_id!r} is not a message id of a bridge")
    lsn, seq, token, operation = found.groups()
    # the bridge's own gaps are numbered: two may have one position
    is_numbered = operation == "gap" and token == BRIDGE_TOKEN
    return Position(Lsn(int(lsn, 16)), 0 if is_numbered else int(seq), GAP_RANK if is_numbered else _RANKS[operation])


def has_id_of(headers: bytes, lsn: int, seq: int) -> bool:
    """Return whether a raw header block has the id of an event at this place. Cheap enough for each message."""
    return b"-Msg-Id: %x-%d-" % (lsn, seq) in headers


def message_id(position: Position, token: str, operation: str) -> str:
    """Make the id of a message: unique, and the same when the change is replayed."""
    return f"{position.lsn:x}-{position.seq}-{token}-{operation}"


def gap_id(position: Position, number: int) -> str:
    """Make the id of a gap event of the bridge itself; `number` distinguishes gaps at one position."""
    return f"{position.lsn:x}-{number}-{BRIDGE_TOKEN}-gap"
