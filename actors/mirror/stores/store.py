"""The protocol between a mirror and a replica's database: local transactions of statements, and queries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple, Protocol

from actors.contract.bridge_record import BridgeRecord
from actors.contract.records import Column
from actors.errors import ConfigError, Fatal, Transient
from actors.mirror.stores.dialect import Dialect, Params, Statement

CLAIM_WITHIN_S = 10.0
"""How long to wait for a mirror that was just killed to release the replica."""


class ReplicaUnavailable(Transient):
    """The replica's database cannot be reached, or is locked."""


class ReplicaRefused(Fatal):
    """The replica's database refuses something that the mirror must do."""


class ApplyConflict(Exception):
    """A change conflicts with the replica's rows: the table must be copied again."""

    def __init__(self, token: str, reason: str, *, is_duplicate: bool = False) -> None:
        super().__init__(f"{token}: {reason}")
        self.token, self.reason, self.is_duplicate = token, reason, is_duplicate


class WriteAhead(NamedTuple):
    """A replica's write-ahead log, as far as the mirror is responsible for it."""

    size_bytes: int
    held_bytes: int
    """What cannot be removed from the log because a reader's open transaction needs it."""


NO_LOG = WriteAhead(0, 0)
"""PostgreSQL takes care of its own."""


class Store(Protocol):
    """One connection to a replica, for one task at a time."""

    @property
    def dialect(self) -> Dialect:
        """The database's SQL."""

    async def claim(self, source: BridgeRecord) -> None:
        """Become the only mirror of this replica until `close`, and create the mirror's own tables.

        Raises ConfigError when the replica is the source itself, ReplicaRefused when another mirror has claimed it.
        """

    async def run(self, statements: Sequence[Statement], *, commit: bool) -> None:
        """Run statements in the open local transaction, or in a new one; with `commit`, commit it afterwards.

        Raises ApplyConflict when a change conflicts with the rows, ReplicaUnavailable, ReplicaRefused; after each of them the
        transaction must be rolled back.
        """

    async def rollback(self) -> None:
        """Roll back the open transaction, if there is one."""

    async def query(self, sql: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Read the rows of a query."""

    def rows(self, sql: str) -> AsyncGenerator[list[tuple[Any, ...]]]:
        """Read the rows of a large query, one block at a time."""

    async def local_types(self, columns: Sequence[Column]) -> tuple[str, ...]:
        """The columns' types in the replica, as SQL."""

    async def exists(self, local: tuple[str, str]) -> bool:
        """Whether a table, view or the like has this name."""

    async def columns(self, local: tuple[str, str]) -> set[str]:
        """The names of a table's columns; none when there is no such table."""

    async def make_schema(self, local: tuple[str, str]) -> list[str]:
        """The statements that must run before a table of this name can be created."""

    async def write_ahead(self) -> WriteAhead:
        """The state of the write-ahead log. Only between transactions."""

    async def close(self) -> None:
        """Close the connection and release the claim."""


def no_replica(where: str) -> ConfigError:
    """The error for a database that is no replica, when none may be created."""
    return ConfigError("WB501", f"{where} is no replica of a mirror", fix="walbridge mirror   # with the same --to: makes one")


def in_use() -> ReplicaRefused:
    """The error for a replica that another mirror owns, or whose checkpoint another mirror has moved."""
    return ReplicaRefused(
        "WB505", "another mirror writes to this replica", means="each would apply again what the other has applied",
        fix="stop one of them, or give it a replica of its own",
    )  # fmt: skip
