"""`walbridge health`: one request to /ready. Slim images have no curl."""

from __future__ import annotations

import json
import os
import sys
from http.client import HTTPConnection, HTTPException

from actors.commands.as_typed import carried
from actors.settings.flags import EnvFile, Flags, takes_settings
from actors.settings.sources import Sources


@takes_settings(port="of the running bridge", bind="of the running bridge")
def health(flags: Flags, *, env_file: EnvFile = None) -> int:
    """Ask a bridge whether it is streaming."""
    sources = Sources(flags, os.environ, env_file)
    return check_health(sources.read("bind"), sources.read("port"))


def check_health(host: str, port: int) -> int:
    """0 while the bridge at this address is streaming, 1 with the reason on stderr when it is not or does not answer."""
    # a bridge may listen on all addresses, and is asked at one of them
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = HTTPConnection(local.get(host, host), port, timeout=3)
    try:
        connection.request("GET", "/ready", headers={"Host": "localhost"})
        reply = connection.getresponse()
        body = json.loads(reply.read())
    except HTTPException:
        print(f"not ready: what answers at {host}:{port} is not a bridge", file=sys.stderr)
        return 1
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        print(carried(f"not ready: nothing answers at {host}:{port} ({reason}); start it: walbridge run"), file=sys.stderr)
        return 1
    finally:
        connection.close()
    if reply.status == 200:
        print("ready")
        return 0
    print(f"not ready: {carried(str(body.get('reason') or reply.reason))}", file=sys.stderr)
    return 1
