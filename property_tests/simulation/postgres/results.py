"""Rows as libpq's own results, which the snapshot's converters read in C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from psycopg import pq
from psycopg.pq.misc import PGresAttDesc

from actors.clients.postgres.libpq import libpq


@cache
def _set_value() -> Any:
    library = libpq()
    assert library is not None, "psycopg's libpq can be reached"
    function = library.PQsetvalue
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    return function


@cache
def _nobody() -> pq.abc.PGconn:
    """A connection that never was, which libpq needs to make a result."""
    return pq.PGconn.connect_start(b"host=/nonexistent")


def made_result(columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[bytes | None]]) -> pq.abc.PGresult:
    """A result; columns are names and type OIDs."""
    result: Any = _nobody().make_empty_result(pq.ExecStatus.TUPLES_OK)
    result.set_attributes([PGresAttDesc(name.encode(), 0, 0, 0, oid, -1, -1) for name, oid in columns])
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            _set_value()(result.pgresult_ptr, i, j, value, -1 if value is None else len(value))
    return result  # type: ignore[no-any-return]
