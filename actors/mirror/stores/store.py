"""What a mirror needs of a database: local transactions made of statements, and queries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.errors import ConfigError, Fatal, Transient
from actors.mirror.stores.dialect import Dialect, Params, Statement

CLAIM_WITHIN_S = 10.0
"""A mirror that was killed a moment ago may not have let go yet."""


class ReplicaUnavailable(Transient):
    """The replica's database cannot be reached, or is locked."""


class ReplicaRefused(Fatal):
    """The replica's database refuses what the mirror must do."""


class ApplyConflict(Exception):
    """A change did not fit to the rows of the replica: this table must be copied again."""

    def __init__(self, token: str, reason: str, *, is_duplicate: bool = False) -> None:
        super().__init__(f"{token}: {reason}")
        self.token, self.reason, self.is_duplicate = token, reason, is_duplicate


class Store(Protocol):
    """One connection to a replica, for one task at a time."""

    @property
    def dialect(self) -> Dialect:
        """How it is spoken to."""

    async def claim(self, source: BridgeRecord) -> None:
        """Be the one mirror of this replica until `close`, and make the mirror's own tables.

        Raises ConfigError when it is the source itself, ReplicaRefused when another mirror has it.
        """

    async def run(self, statements: Sequence[Statement], *, commit: bool) -> None:
        """Run statements in the open local transaction, or a new one; with `commit` it ends.

        Raises TableFault when a change does not fit (the transaction must be rolled back then), ReplicaUnavailable,
        ReplicaRefused.
        """

    async def rollback(self) -> None:
        """Forget the open transaction, if there is one."""

    async def query(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Rows of a query."""

    def rows(self, sql: str) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """Rows of a large query, a block at a time."""

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        """The columns' types here, as SQL."""

    async def exists(self, local: tuple[str, str]) -> bool:
        """Whether there is a table, view or the like of this name."""

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        """The statements that must come before a table of this name can be made."""

    async def close(self) -> None:
        """End the connection."""


def no_replica(where: str) -> ConfigError:
    """What `create=False` raises."""
    return ConfigError("WB501", f"{where} is no replica of a mirror", fix="walbridge mirror --to ... makes one")


def in_use() -> ReplicaRefused:
    """The replica is not as this mirror left it: another one is its owner, or has moved its position."""
    return ReplicaRefused(
        "WB505", "another mirror writes to this replica", means="each would apply what the other has applied already",
        fix="stop one of them, or give it a replica of its own",
    )  # fmt: skip
