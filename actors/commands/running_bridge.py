"""Requests to a running bridge's HTTP server, for the commands that ask it or tell it something."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from actors.commands.as_typed import carried
from actors.errors import ConfigError
from actors.settings.env_file import unread_file
from actors.settings.flags import Flags, option
from actors.settings.setting import HTTP
from actors.settings.sources import Sources

TIMEOUT_S = 5.0
Url = Annotated[str, option(HTTP, "address of a bridge elsewhere, instead of --port [http://127.0.0.1:9090]", "URL")]


class NoAnswer(Exception):
    """Nothing answers at the address, or something that is not a bridge, or the bridge refuses."""


class RunningBridge(NamedTuple):
    """Where a bridge serves HTTP."""

    url: str
    token: str = ""
    hint: str = ""
    """What to do where nothing answers: how to start it, and where else its port may be written."""

    def status(self) -> dict[str, Any]:
        """Return /status. Raises NoAnswer."""
        found = self._request("status")
        if "verdict" not in found:
            raise NoAnswer(f"what answers at {self.url} is not this version of Walbridge")
        return found

    def post(self, path: str) -> dict[str, Any]:
        """POST with the token, if there is one; return the answer. Raises NoAnswer."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return self._request(path, "POST", headers)

    def _request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", headers=dict(headers or {}), method=method)
        try:
            with opener.open(request, timeout=TIMEOUT_S) as reply:
                found = json.loads(reply.read())
                if not isinstance(found, dict):
                    raise NoAnswer(f"what answers at {self.url} is not a bridge")
                return found
        except urllib.error.HTTPError as exc:
            with exc:
                raise NoAnswer(_refusal(self.url, exc)) from exc
        except HTTPException as exc:
            raise NoAnswer(f"what answers at {self.url} is not a bridge") from exc
        except (OSError, ValueError) as exc:
            cause = getattr(exc, "reason", None) or exc
            reason = getattr(cause, "strerror", None) or cause
            words = [f"no bridge answers at {self.url} ({reason})", *filter(None, [self.hint])]
            raise NoAnswer("; ".join(words)) from exc


def find_bridge(flags: Flags, url: str, env_file: Path | None, *, with_token: bool = False) -> RunningBridge:
    """Return the bridge at `url`, or else at the port of the settings. Raises ConfigError for a bad address."""
    if url and flags["port"]:
        raise ConfigError("WB002", "--port: the address of --url has one; leave out either")
    sources = Sources(flags, os.environ, env_file)
    address = url or f"http://127.0.0.1:{sources.read('port')}"
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("WB002", f"--url: {url!r} is not an address; give e.g. http://127.0.0.1:9090")
    hints = [] if url else [carried("start it: walbridge run"), unread_file(bool(env_file or flags["port"]))]
    return RunningBridge(address, sources.read("bridge_http_token") if with_token else "", "; ".join(filter(None, hints)))


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    try:
        words = str(json.loads(error.read())["error"])
    except (ValueError, LookupError, TypeError, OSError):
        return f"{url} answers {error.code} {error.reason}"
    if error.code == 401:
        return f"{url} wants its token: set BRIDGE_HTTP_TOKEN, or name the file that has it with --env-file"
    return f"{url} refuses: {words}"
