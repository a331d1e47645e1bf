"""Takes one large CopyData message from libpq with as few copies as libpq allows.

libpq holds a message in its input buffer and hands it over as a copy of its own; psycopg copies that copy into bytes. For a
message of hundreds of megabytes the third copy counts, so this module calls the same libpq directly and shows its copy.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Any, NamedTuple

from psycopg import pq

from actors.clients.postgres.libpq import libpq


class _LibPq(NamedTuple):
    get_copy_data: Any
    free: Any


@cache
def _functions() -> _LibPq | None:
    library = libpq()
    if library is None:
        return None
    take, free = library.PQgetCopyData, library.PQfreemem
    take.argtypes, take.restype = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int], ctypes.c_int
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return _LibPq(take, free)


def get_copy_data(connection: pq.abc.PGconn) -> tuple[int, bytes | memoryview]:
    """Do what `connection.get_copy_data(1)` does, without its copy. The memory lives as long as the view or a part of it.

    For messages that may be large: a small one takes longer this way. Raises psycopg.Error.
    """
    functions, address = _functions(), getattr(connection, "pgconn_ptr", None)
    if functions is None or address is None:
        return connection.get_copy_data(1)
    pointer = ctypes.c_void_p()
    size = functions.get_copy_data(address, ctypes.byref(pointer), 1)
    if size == -2:
        return connection.get_copy_data(1)  # says the same, as psycopg's error
    if pointer.value is None:
        return size, b""
    memory = (ctypes.c_char * size).from_address(pointer.value)
    weakref.finalize(memory, functions.free, pointer.value)
    return size, memoryview(memory).cast("B")
