"""`walbridge health`: one request to /ready. Slim images have no curl."""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection, HTTPException

from actors.errors import ConfigError


def check_health(host: str, port: str, named: str = "--port") -> int:
    """0 while the bridge at this address is streaming, 1 with the reason on stderr when it is not or does not answer.

    Raises ConfigError for a port that is none; `named` is where it was given.
    """
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ConfigError("WB002", f"{named}: {port!r} is not a port; give 1-65535, e.g. 9091")
    # the address it listens on may be all of them
    connection = HTTPConnection(
        "127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host, int(port), timeout=3
    )
    try:
        connection.request("GET", "/ready", headers={"Host": "localhost"})
        reply = connection.getresponse()
        body = json.loads(reply.read())
    except (OSError, HTTPException, ValueError) as exc:
        print(f"not ready: nothing answers at {host}:{port} ({exc})", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if reply.status == 200:
        print("ready")
        return 0
    print(f"not ready: {body.get('reason') or reply.reason}", file=sys.stderr)
    return 1
