"""What the command line says of a replica: its URL, and the tables in it."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit


def names_of(words: str) -> tuple[str, ...]:
    """Split a command line's list of tables at its commas."""
    return tuple(name.strip() for name in words.split(",") if name.strip())


def secrets_of(url: str) -> tuple[str, ...]:
    """The parts of a replica's URL that must never be shown."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return ()
    return tuple({password, unquote(password)}) if password and len(password) >= 4 else ()
