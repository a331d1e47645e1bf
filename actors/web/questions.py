"""Questions about what the stream holds, which the page and `GET /messages` ask, and who answers them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from actors.contract.table_token import TOKEN_MAX, as_token, find_token

LIMIT, LIMIT_MAX = 50, 200
"""Messages of an answer, unless asked otherwise, and at most."""
KEYS_MAX = 16
WORD_MAX = 1000


class Question(NamedTuple):
    """Which messages of the stream are asked for."""

    token: str = ""
    """Of the table whose changes are wanted; empty for all."""
    keys: tuple[str, ...] = ()
    """Values of a row's key, as `walbridge tail --key` takes them; none for all rows."""
    place: str = ""
    """Where to begin, as `walbridge tail --from` takes it, going on to newer messages; empty for the newest, going back."""
    before: int | None = None
    """Going back: only messages before this sequence."""
    limit: int = LIMIT


class Lookup(Protocol):
    """Answers questions about the stream. Both methods raise SinkUnavailable while NATS is away."""

    async def messages(self, question: Question) -> dict[str, Any]:
        """Find messages. Raises ValueError with what to do for a place that is none."""

    async def schema(self, token: str) -> dict[str, Any] | None:
        """Return a table's schema as KV `schemas` has it; None if it has none."""


def token_of(table: str, tables: Collection[str]) -> str:
    """Return the token of a table by its name or token; `tables` are those that are published. Raises ValueError."""
    token = find_token(table, tables) or as_token(table)
    if len(token) > TOKEN_MAX:
        raise ValueError("no table of PostgreSQL has so long a name")
    return token


def read_question(table: str, keys: Sequence[str], place: str, before: str, limit: str, tables: Collection[str]) -> Question:
    """Read the parameters of a request; `tables` are the tokens of those that are published. Raises ValueError."""
    token = token_of(table, tables) if table else ""
    if len(keys) > KEYS_MAX or any(len(word) > WORD_MAX for word in (*keys, place)):
        raise ValueError(f"give at most {KEYS_MAX} keys, and a key or place of at most {WORD_MAX:,} characters")
    if before and place:
        raise ValueError("give from or before, not both")
    return Question(
        token, tuple(filter(None, keys)), place, _number("before", before, 1 << 62) if before else None,
        min(_number("limit", limit, 1 << 62), LIMIT_MAX) if limit else LIMIT,
    )  # fmt: skip


def _number(name: str, text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 0 < int(text) <= most:
        raise ValueError(f"{name}: {text[:40]!r} is no positive number")
    return int(text)
