"""Opens the store that a replica's URL names."""

from __future__ import annotations

import os
from contextlib import suppress
from urllib.parse import urlsplit

import trio

from actors.errors import ConfigError, Transient
from actors.mirror.stores.store import Store


async def open_store(url: str, *, create: bool = True) -> Store:
    """Open a replica by its URL. Without `create` it must be a replica already. Raises ConfigError for other kinds of URLs."""
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from actors.mirror.stores.sqlite import SqliteStore  # noqa: PLC0415

        return await SqliteStore.open(sqlite_path(url), create=create)
    if scheme in ("postgresql", "postgres"):
        from actors.mirror.stores.postgres import PostgresStore  # noqa: PLC0415

        return await PostgresStore.open(url, create=create)
    named = (
        f"{scheme!r} is" if scheme.isalnum() else "that is"
    )  # never the whole text, which may be a connection string with a password
    raise ConfigError("WB500", f"--to: {named} no kind of replica; give sqlite:///file.db or postgresql://user@host/db")


async def check_replica(url: str) -> None:
    """Raise ConfigError for a replica that could never be opened. Creates nothing: other settings may be wrong still."""
    if url.partition(":")[0] == "sqlite" and not await trio.Path(path := sqlite_path(url)).exists():
        folder = await trio.Path(path).absolute()
        reason = _why_no_file(str(folder.parent))
        if reason:
            fix = "give a file in a folder that can be written"
            raise ConfigError("WB502", f"--to: cannot create {path}", said=f"{folder.parent}: {reason}", fix=fix)
        return
    with suppress(Transient):  # a session waits for it
        store = await open_store(url)
        await store.close()


def replica_name(url: str) -> str:
    """What people call a replica: its kind with the file's name, or with the database's host and name. Without secrets."""
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return f"sqlite {os.path.basename(rest)}"
    parts = urlsplit(url)
    return f"{scheme} {parts.netloc.rpartition('@')[2]}{parts.path}"


def _why_no_file(folder: str) -> str:
    """Why no file can be created in a folder; empty when it can."""
    if not os.path.isdir(folder):
        return "no such folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def sqlite_path(url: str) -> str:
    """The path in `sqlite:///file.db` (relative) or `sqlite:////file.db` (absolute). Raises ConfigError.

    Whatever else stands there is refused: half a URL is read by SQLite as another file, or as a database in memory.
    """
    path = url.removeprefix("sqlite:///")
    if path == url or not path.strip("/"):
        meant = url.partition(":")[2].lstrip("/")
        fix = f"give sqlite:///{meant}, or sqlite:////{meant} from the root" if meant else "give sqlite:///file.db"
        raise ConfigError("WB500", f"--to: {url!r} names no file; {fix}")
    if path.startswith(":"):
        raise ConfigError(
            "WB500", f"--to: {url!r} is no file, and a replica in memory ends with its mirror; give sqlite:///file.db"
        )
    return path
