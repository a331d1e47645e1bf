"""Table tokens: one NATS token per table, the same in subjects, KV keys, message ids and file names (contract, section 3)."""

import re
from collections.abc import Collection

TOKEN_MAX = 600
"""No table's token is longer: PostgreSQL's names have at most 63 bytes, and each byte becomes at most three."""
_ILLEGAL = re.compile(rb"[^A-Za-z0-9_-]")
_ESCAPED = re.compile(r"=([0-9A-F]{2})")
_IN_SQL = re.compile(r'(?:"((?:[^"]|"")+)"|([^".]+))(?:\.(?:"((?:[^"]|"")+)"|([^".]+)))?')


def _escape(name: str) -> str:
    # surrogateescape: a name that is not UTF-8 (SQL_ASCII databases) gets a token too
    raw = name.encode("utf-8", "surrogateescape")
    return _ILLEGAL.sub(lambda m: b"=%02X" % m.group()[0], raw).decode("ascii")


def table_token(schema: str, table: str) -> str:
    """Return the token of a table: `users` for public.users, `sales/Order=20Lines` for sales."Order Lines".

    Injective, and legal in a subject and as a KV key. Tokens that begin with `_` belong to the bridge itself.
    """
    token = _escape(table) if schema == "public" else f"{_escape(schema)}/{_escape(table)}"
    return "=5F" + token[1:] if token.startswith("_") else token


def split_token(token: str) -> tuple[str, str]:
    """Return the (schema, table) of a token. Raises ValueError for text that `table_token` never returns."""
    schema, slash, table = token.rpartition("/")

    def unescape(part: str) -> str:
        raw = re.sub(_ESCAPED, lambda m: chr(int(m.group(1), 16)), part).encode("latin-1")
        return raw.decode("utf-8", "surrogateescape")

    names = (unescape(schema) if slash else "public", unescape(table))
    if table_token(*names) != token:
        raise ValueError(f"{token!r} is not a table's token")
    return names


def as_token(text: str) -> str:
    """Return a token as it is, and for other text the token of the public table of that name: `sales.orders` is a name."""
    try:
        split_token(text)
    except ValueError:
        return table_token("public", text)
    return text


def find_token(name: str, tokens: Collection[str]) -> str | None:
    """Return which of these tokens a table's name means; None if none.

    A token, `table` of schema public, `schema.table`, or either as SQL quotes it: `sales."Order Lines"`. A table of schema
    public whose own name has a dot comes before one of another schema.
    """
    in_sql = _IN_SQL.fullmatch(name)
    if in_sql is not None and '"' in name:
        parts = [
            (quoted or "").replace('""', '"') or plain
            for quoted, plain in zip(in_sql.group(1, 3), in_sql.group(2, 4), strict=True)
        ]
        token = table_token(*parts) if parts[1] else table_token("public", parts[0])
        if token in tokens:
            return token
    splits = [(name[:i], name[i + 1 :]) for i, letter in enumerate(name) if letter == "."]
    candidates = [name, table_token("public", name), *(table_token(*split) for split in splits)]
    return next((one for one in candidates if one in tokens), None)


def table_name(token: str) -> str:
    """Return a token as people write the table: `users`, `sales.Order Lines`. Text that is no token is returned as it is."""
    try:
        schema, table = split_token(token)
    except ValueError:
        return token
    return table if schema == "public" else f"{schema}.{table}"
