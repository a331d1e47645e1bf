"""`walbridge run --embedded [DIR]`: both servers, the bridge, and what it stores, in one terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson
import trio

from actors.bridge import run
from actors.clients.nats.connection import open_nats
from actors.commands.status import printable
from actors.contract.compression import ENCODING_HEADER
from actors.contract.decoding import decode_body
from actors.contract.subjects import CDC_ALL
from actors.embedded.process import free_port, port_is_free
from actors.embedded.servers import start_embedded
from actors.errors import MalformedMessage, SinkUnavailable
from actors.settings.config import Config
from actors.settings.resolve import resolve
from actors.telemetry.log import set_up_logging
from actors.wire.nats import Msg

LINES_PER_SECOND = 20
WIDTH = 160


def run_embedded(directory: str, flags: Mapping[str, object], env_file: Path | None) -> int:
    """Start the servers on the data in `directory` (empty: the default), run the bridge, stop the servers; the exit code."""
    # report what is wrong with the flags before anything is started
    resolve(flags, {**os.environ, "DATABASE_URL": "postgresql://postgres@127.0.0.1"}, env_file)
    with start_embedded(Path(directory) if directory else None) as servers:
        environ = {**os.environ, **servers.environment}
        given = dict(flags)
        config = resolve(given, environ, env_file)
        if not given.get("port") and not os.environ.get("BRIDGE_PORT") and not port_is_free(config.http.port):
            config = resolve({**given, "port": free_port()}, environ, env_file)
        set_up_logging(config.log.level, config.log.format, config.secrets)
        page = f"http://127.0.0.1:{config.http.port}/"
        print(f"{servers.describe()}\n{'Page:':<14}{page}\n{'Status:':<14}{page}status\n{'Stop:':<14}Ctrl-C", flush=True)
        return run(config, beside=print_events)


async def print_events(config: Config) -> None:
    """Print one line per event, at most 20 per second, until cancelled."""
    lines = _Lines()
    while True:
        try:
            async with open_nats(config.nats, set()) as nats:
                await nats.subscribe(CDC_ALL, lines.take)
                while True:
                    await trio.sleep(1)
                    lines.next_second()
        except* SinkUnavailable:
            await trio.sleep(1)


class _Lines:
    """Prints events up to the limit of a second, then only counts them."""

    def __init__(self) -> None:
        self._printed = self._held_back = 0

    def take(self, message: Msg) -> None:
        if self._printed >= LINES_PER_SECOND:
            self._held_back += 1
            return
        self._printed += 1
        subject = printable(message.subject.decode("utf-8", "replace"))
        if ENCODING_HEADER.encode() in message.headers:
            _print(f"{subject:<26} {len(message.payload):,} bytes, compressed")
            return
        try:
            body = decode_body(message.payload)
            events = [event for event in (body if isinstance(body, list) else [body]) if isinstance(event, dict)]
        except MalformedMessage:
            events = []
        if not events:
            _print(f"{subject:<26} {len(message.payload):,} bytes that are not an event: another program publishes here")
        for event in events:
            shown = event.get("data") if "data" in event else {k: event[k] for k in ("schema_id", "reason") if k in event}
            text = orjson.dumps(shown, default=repr).decode()
            _print(f"{subject:<26} {text if len(text) <= WIDTH else text[:WIDTH] + ' ...'}")

    def next_second(self) -> None:
        if self._held_back:
            _print(f"... and {self._held_back:,} more events in this second")
        self._printed = self._held_back = 0


def _print(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
