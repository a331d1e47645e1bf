"""Message ids, which contain the message's position in the stream (contract, section 4)."""

from __future__ import annotations

from collections.abc import Mapping

from actors.contract.subjects import BRIDGE_TOKEN
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position
from actors.wire.jetstream import MSG_ID_HEADER, OWN_MSG_ID_HEADER


def id_in(headers: Mapping[str, str]) -> str | None:
    """Return the id of a stored message; None when no bridge wrote the message."""
    found = headers.get(MSG_ID_HEADER)
    return headers.get(OWN_MSG_ID_HEADER) if found is None else found


def position_of(msg_id: str) -> Position:
    """Read the position in a message id: `{commit lsn, hex}-{seq}-{table token}-{operation}`.

    Raises ValueError when no bridge made the id.
    """
    lsn, seq, rest = msg_id.split("-", 2)
    token, dash, operation = rest.rpartition("-")
    ranks = {"insert": ROW_RANK, "update": ROW_RANK, "delete": ROW_RANK, "truncate": ROW_RANK, "schema": SCHEMA_RANK}
    # a suspended table's gap takes the place of the row that was too large; the bridge's own gap comes before its position
    ranks["gap"] = GAP_RANK if token == BRIDGE_TOKEN else ROW_RANK
    ranks["published"] = GAP_RANK  # it stands between transactions: before a change that its transaction does not have
    if not dash or not token or operation not in ranks or not seq.isdecimal():
        raise ValueError(f"{msg_id!r} is not a message id of a bridge")
    # the bridge's own gaps are numbered: two may have one position
    is_numbered = operation == "gap" and token == BRIDGE_TOKEN
    return Position(Lsn(int(lsn, 16)), 0 if is_numbered else int(seq), ranks[operation])


def message_id(position: Position, token: str, operation: str) -> str:
    """Make the id of a message: unique, and the same when the change is replayed."""
    return f"{position.lsn:x}-{position.seq}-{token}-{operation}"


def gap_id(position: Position, number: int) -> str:
    """Make the id of a gap event of the bridge itself; `number` distinguishes gaps at one position."""
    return f"{position.lsn:x}-{number}-{BRIDGE_TOKEN}-gap"
