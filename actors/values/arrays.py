"""Parses PostgreSQL's array literals: https://www.postgresql.org/docs/18/arrays.html#ARRAYS-IO"""

from __future__ import annotations

import re
from collections.abc import Callable

DEPTH_MAX = 6  # MAXDIM
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TOKENS: dict[str, re.Pattern[str]] = {}


def _tokens(delimiter: str) -> re.Pattern[str]:
    if delimiter not in _TOKENS:
        d = re.escape(delimiter)
        _TOKENS[delimiter] = re.compile(rf'"((?:[^"\\]|\\.)*)"|([{{}}])|({d})|((?:[^"{{}}\\{d}]|\\.)+)', re.DOTALL)
    return _TOKENS[delimiter]


def parse_array(literal: str, delimiter: str, convert: Callable[[str], object], depth_max: int = DEPTH_MAX) -> list[object]:
    """Return nested lists for an array literal such as `{{1,NULL},{2,"a b"}}`; `convert` is applied to each element.

    Raises ValueError for a malformed literal, for one of more than `depth_max` dimensions, and for one with explicit bounds
    (`[0:1]={1,2}`), which lists cannot keep.
    """
    tokens = _tokens(delimiter)
    stack: list[list[object]] = []
    done: list[object] | None = None
    offset, value_allowed = 0, True
    while offset < len(literal):
        match = tokens.match(literal, offset)
        if match is None or done is not None:
            raise ValueError(f"array literal: unexpected {literal[offset : offset + 20]!r}")
        offset = match.end()
        quoted, brace, separator, plain = match.groups()
        if brace == "{":
            if not value_allowed or len(stack) >= depth_max:
                raise ValueError("array literal: misplaced {")
            stack.append([])
        elif brace == "}":
            if not stack or (value_allowed and stack[-1]):
                raise ValueError("array literal: misplaced }")
            inner = stack.pop()
            if stack:
                stack[-1].append(inner)
            else:
                done = inner
            value_allowed = False
        elif separator:
            if value_allowed or not stack:
                raise ValueError("array literal: misplaced delimiter")
            value_allowed = True
        else:
            if not value_allowed or not stack:
                raise ValueError("array literal: misplaced element")
            if quoted is not None:
                stack[-1].append(convert(_ESCAPE.sub(r"\1", quoted)))
            else:
                stack[-1].append(None if plain.upper() == "NULL" else convert(_ESCAPE.sub(r"\1", plain)))
            value_allowed = False
    if done is None:
        raise ValueError("array literal: not closed")
    return done
