"""The id of a message holds its position in the stream (contract, section 4)."""

from __future__ import annotations

from actors.contract.subjects import BRIDGE_TOKEN
from actors.positions import GAP_RANK, ROW_RANK, SCHEMA_RANK, Lsn, Position


def position_of(msg_id: str) -> Position:
    """The position in a message id: `{commit lsn, hex}-{seq}-{table token}-{operation}`.

    Raises ValueError when the id was not made by a bridge.
    """
    lsn, seq, rest = msg_id.split("-", 2)
    token, dash, operation = rest.rpartition("-")
    ranks = {"insert": ROW_RANK, "update": ROW_RANK, "delete": ROW_RANK, "truncate": ROW_RANK, "schema": SCHEMA_RANK}
    # a suspended table's gap stands in place of the row that did not fit; the bridge's own stands before its place
    ranks["gap"] = GAP_RANK if token == BRIDGE_TOKEN else ROW_RANK
    if not dash or not token or operation not in ranks or not seq.isdecimal():
        raise ValueError(f"{msg_id!r} is not a message id of a bridge")
    # the bridge's own gaps are numbered: two of them may stand at one place
    return Position(Lsn(int(lsn, 16)), 0 if ranks[operation] == GAP_RANK else int(seq), ranks[operation])


def message_id(position: Position, token: str, operation: str) -> str:
    """The id of a message: unique, and the same when the change is replayed."""
    return f"{position.lsn:x}-{position.seq}-{token}-{operation}"


def gap_id(position: Position, number: int) -> str:
    """The id of a gap event of the bridge's own; `number` tells it from others at the same place."""
    return f"{position.lsn:x}-{number}-{BRIDGE_TOKEN}-gap"
