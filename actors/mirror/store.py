"""What a mirror needs of a database: local transactions made of statements, and queries."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio

from actors.clients.bridge_record import BridgeRecord
from actors.errors import ConfigError, Fatal, Transient
from actors.mirror.dialect import Dialect, Params, Statement
from actors.mirror.records import Column

CLAIM_WITHIN_S = 10.0
"""A mirror that was killed a moment ago may not have let go yet."""


class ReplicaUnavailable(Transient):
    """The replica's database cannot be reached, or is locked."""


class ReplicaRefused(Fatal):
    """The replica's database refuses what the mirror must do."""


class TableFault(Exception):
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


async def open_store(url: str, *, create: bool = True) -> Store:
    """Open a replica by its URL. Raises ConfigError for another kind of URL. Without `create` it must be a replica already."""
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from actors.mirror.sqlite_store import SqliteStore  # noqa: PLC0415

        return await SqliteStore.open(sqlite_path(url), create=create)
    if scheme in ("postgresql", "postgres"):
        from actors.mirror.postgres_store import PostgresStore  # noqa: PLC0415

        return await PostgresStore.open(url, create=create)
    named = f"{scheme!r} is" if scheme.isalnum() else "that is"  # not what may be a connection string with a password
    raise ConfigError("WB500", f"--to: {named} no kind of replica; give sqlite:///file.db or postgresql://user@host/db")


async def check_replica(url: str) -> None:
    """Raise ConfigError for a replica that could never be opened. Makes nothing: what is asked of it may be wrong."""
    if url.partition(":")[0] == "sqlite" and not await trio.Path(path := sqlite_path(url)).exists():
        folder = await trio.Path(path).absolute()
        reason = _unmakeable(str(folder.parent))
        if reason:
            fix = "give a file in a folder that can be written"
            raise ConfigError("WB502", f"--to: cannot make {path}", said=f"{folder.parent}: {reason}", fix=fix)
        return
    with suppress(Transient):  # it may be there when it is needed
        store = await open_store(url)
        await store.close()


def _unmakeable(folder: str) -> str:
    """Why no file can be made in a folder; empty when one can."""
    if not os.path.isdir(folder):
        return "no such folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def sqlite_path(url: str) -> str:
    """The file of a `sqlite:///file.db` (relative) or `sqlite:////file.db` (absolute). Raises ConfigError."""
    parts = urlsplit(url)
    if parts.netloc or len(parts.path) < 2:
        raise ConfigError("WB500", f"--to: {url!r} names no file; give sqlite:///file.db, or sqlite:////folder/file.db")
    return url.partition("://")[2][1:]


def no_replica(where: str) -> ConfigError:
    """What `create=False` raises."""
    return ConfigError("WB501", f"{where} is no replica of a mirror", fix="walbridge mirror --to ... makes one")


def in_use() -> ReplicaRefused:
    """The replica is not as this mirror left it: another one is its owner, or has moved its position."""
    return ReplicaRefused(
        "WB505", "another mirror writes to this replica", means="each would apply what the other has applied already",
        fix="stop one of them, or give it a replica of its own",
    )  # fmt: skip
