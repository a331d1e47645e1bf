"""The libpq that psycopg uses, for what psycopg does not offer."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

from psycopg import pq


@cache
def libpq() -> ctypes.CDLL | None:
    """Return the library; None if it cannot be reached. Functions that it may lack raise AttributeError."""
    module = sys.modules[pq.PGconn.__module__]
    try:
        # a lookup in a loaded library searches those that it was linked with, so this finds psycopg's own libpq
        library = ctypes.CDLL(getattr(module, "__file__", None) or "")
        library.PQlibVersion  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library
