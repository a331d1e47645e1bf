"""Access control: requests from foreign pages are refused, and requests that change something need the token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import Literal

from quart import Response, jsonify, request

from actors.settings.config import HttpConfig


async def guard(http: HttpConfig, private: Collection[str] = ()) -> tuple[Response, int] | None:
    """Refuse requests that a foreign page made a browser send, and without the token POSTs and what shows rows.

    `private` are the endpoints that show rows: whoever may see the bridge's figures need not be one who may read the tables.
    """
    loopback = is_loopback(http.bind)
    origin = request.headers.get("Origin")
    # on loopback the valid host names are known, so a name rebound to 127.0.0.1 is refused
    foreign = loopback and _host_of(request.host) not in {"localhost", "127.0.0.1", "::1", http.bind}
    if foreign or (origin is not None and not _same_place(origin, request.host)):
        return jsonify({"error": "foreign Host or Origin"}), 403
    if request.endpoint in private and not http.messages:
        return jsonify({"error": "BRIDGE_HTTP_MESSAGES is no: rows are not shown here"}), 403
    if request.method in ("GET", "HEAD", "OPTIONS") and request.endpoint not in private:
        return None
    if http.token:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), http.token.encode()):
            answer = jsonify({"error": "give the token: Authorization: Bearer ..."})
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer, 401
    elif not loopback:
        return jsonify({"error": "set BRIDGE_HTTP_TOKEN to allow this beyond loopback"}), 403
    return None


def posts_wanted(http: HttpConfig) -> Literal["open", "token", "closed"]:
    """Whether a POST needs nothing, needs the token, or is always refused."""
    if http.token:
        return "token"
    return "open" if is_loopback(http.bind) else "closed"


def reads_wanted(http: HttpConfig) -> Literal["open", "token", "closed", "off"]:
    """The same of a request for rows; `off` when a setting forbids them."""
    return posts_wanted(http) if http.messages else "off"


def _same_place(origin: str, host: str) -> bool:
    """Whether a page comes from this server, also through a proxy that terminates TLS."""
    scheme, _, place = origin.lower().partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.lower().removesuffix(default)


def _host_of(address: str) -> str:
    """The host in `host:port`, `[v6]:port`, `host` or `[v6]`."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
