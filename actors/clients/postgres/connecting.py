"""Makes a connection as psycopg does, and asks libpq to name the SQLSTATE when the server refuses it.

The server's words are in the language of its `lc_messages`; libpq leaves out the code unless its errors are verbose.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Generator

import psycopg
from psycopg import pq
from psycopg.waiting import Ready, Wait

from actors.clients.postgres.libpq import libpq

_DEFAULT, _VERBOSE = 1, 2
"""PQERRORS_DEFAULT, PQERRORS_VERBOSE."""
_SQLSTATE = re.compile(r":\s+(?=[A-Z]*\d)([0-9A-Z]{5}):\s")  # with a digit, unlike FATAL


def connecting(conninfo: str) -> Generator[tuple[int, Wait], Ready, pq.abc.PGconn]:
    """Connect; yield the socket and what to wait for. Raises psycopg.OperationalError."""
    connection = pq.PGconn.connect_start(conninfo.encode())
    try:
        _set_verbosity(connection, _VERBOSE)
        while connection.status != pq.ConnStatus.BAD:
            match connection.connect_poll():
                case pq.PollingStatus.OK:
                    _set_verbosity(connection, _DEFAULT)
                    connection.nonblocking = 1
                    return connection
                case pq.PollingStatus.READING:
                    yield connection.socket, Wait.R
                case pq.PollingStatus.WRITING:
                    yield connection.socket, Wait.W
                case _:
                    break
        message = connection.get_error_message().partition("\nLOCATION:")[0]
        raise psycopg.OperationalError(f"connection failed: {message}")
    except BaseException:
        connection.finish()
        raise


def sqlstate_of(message: str) -> str:
    """Return the code that the server gave for its refusal; empty if libpq has not named one."""
    found = _SQLSTATE.search(message)
    return found[1] if found else ""


def _set_verbosity(connection: pq.abc.PGconn, verbosity: int) -> None:
    library, address = libpq(), getattr(connection, "pgconn_ptr", None)
    if library is not None and address is not None:
        library.PQsetErrorVerbosity(ctypes.c_void_p(address), verbosity)
