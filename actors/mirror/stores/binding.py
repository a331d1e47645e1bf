"""Converts values of events for a replica. A value without a native form there becomes PostgreSQL's text."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import orjson

from actors.contract.records import Raw
from actors.mirror.stores.shapes import BUILTIN, DOCUMENTS, FLOATS, INTEGERS, base_words, element_words

Binder = Callable[[Any], Any]
"""Takes a value as an event has it, also None, and returns the value for the replica's driver."""

_NEEDS_QUOTES = re.compile(r'[{}"\\\s]|^$|^null$', re.IGNORECASE)


def document_text(value: Any) -> str:
    """A json value as text. Text that the source printed stays as it is."""
    return str(value) if type(value) is Raw else orjson.dumps(value).decode()


def array_literal(value: Any, words: str) -> str:
    """PostgreSQL's literal of a nested list; text stays as it is. `words` is the name of the elements' type."""
    if isinstance(value, str):
        return value
    is_document, is_binary = base_words(words) in DOCUMENTS, base_words(words) == "bytea"
    delimiter = ";" if words == "box" else ","

    def element(one: Any) -> str:
        if one is None:
            return "NULL"
        if isinstance(one, list) and not is_document:
            return "{" + delimiter.join(map(element, one)) + "}"
        text = document_text(one) if is_document else plain_text(_binary(one) if is_binary else one)
        if _NEEDS_QUOTES.search(text) or delimiter in text:
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return text

    return "{" + delimiter.join(map(element, value)) + "}"


def plain_text(value: Any) -> str:
    """A value as text that PostgreSQL reads; a map or list of an unknown type becomes json."""
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return document_text(value)


def _float(value: Any) -> Any:
    # SQLite turns NaN into NULL, so it is stored as text; JSON has NaN and infinities as text too
    number = float(value) if isinstance(value, str) else value
    return number if number == number else "NaN"  # noqa: PLR0124


def _binary(value: Any) -> Any:
    return base64.b64decode(value) if isinstance(value, str) else value


def _any(value: Any) -> Any:
    return document_text(value) if isinstance(value, (dict, list)) else value


def sqlite_type(words: str) -> str:
    """The column's type in SQLite; empty for unknown types, so that SQLite converts nothing."""
    base = base_words(words)
    if base in INTEGERS:
        return "INTEGER"
    if base in FLOATS:
        return "REAL"
    if base in ("boolean", "bytea"):
        return {"boolean": "BOOLEAN", "bytea": "BLOB"}[base]
    return "TEXT" if base in BUILTIN or element_words(base) is not None else ""


def sqlite_binder(words: str) -> Binder | None:
    """The conversion of a type's values for SQLite; None when they stay as they are."""
    base = base_words(words)
    element = element_words(base)
    convert: Binder
    if element is not None:
        convert = lambda value: array_literal(value, element)  # noqa: E731
    elif base in DOCUMENTS:
        convert = document_text
    elif base in FLOATS:
        convert = _float
    elif base == "bytea":
        convert = _binary
    elif base in BUILTIN:
        return None  # a column of type INTEGER turns text of digits, as JSON has it, into a number
    else:
        convert = _any
    return lambda value: None if value is None else convert(value)


def postgres_binder(words: str) -> Binder | None:
    """The conversion of a type's values to PostgreSQL's text; None when they are text or integers already."""
    base = base_words(words)
    element = element_words(base)
    if element is not None:
        convert: Binder = lambda value: array_literal(value, element)  # noqa: E731
    elif base in DOCUMENTS:
        convert = document_text
    elif base == "bytea":
        convert = lambda value: plain_text(_binary(value))  # noqa: E731
    elif base in BUILTIN and base not in FLOATS and base != "boolean":
        return None
    else:
        convert = plain_text
    return lambda value: None if value is None else convert(value)
