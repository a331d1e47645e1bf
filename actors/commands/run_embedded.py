"""`walbridge run --embedded [DIR]`: both servers, the bridge, and what it stores, in one terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from actors.bridge import run
from actors.embedded.process import free_port, port_is_free
from actors.embedded.servers import EmbeddedServers, default_directory, start_embedded
from actors.mirror.stream_places import NOW
from actors.settings.config import Config
from actors.settings.resolve import resolve
from actors.tail.following import Read, Reading, follow
from actors.tail.lines import LineMaker
from actors.telemetry.log import get_logger, set_up_logging
from actors.telemetry.quantities import counted
from actors.web.serving import page_url

log = get_logger("embedded")

LINES_PER_SECOND = 20


def run_embedded(directory: str, flags: Mapping[str, object], env_file: Path | None) -> int:
    """Start the servers on the data in `directory` (empty: the default), run the bridge, stop the servers; the exit code."""
    # report what is wrong with the flags before anything is started
    resolve(flags, {**os.environ, "DATABASE_URL": "postgresql://postgres@127.0.0.1"}, env_file)
    folder = Path(directory) if directory else None
    print(f"Starting PostgreSQL and NATS in {folder or default_directory()} ...", flush=True)
    with start_embedded(folder) as servers:
        environ = {**os.environ, **servers.environment}
        given = dict(flags)
        config = resolve(given, environ, env_file)
        if not given.get("port") and not os.environ.get("BRIDGE_PORT") and not port_is_free(config.http.port):
            config = resolve({**given, "port": free_port()}, environ, env_file)
        servers.write_env_file({
            "BRIDGE_SLOT": config.source.slot, "BRIDGE_STREAM": config.publish.stream, "BRIDGE_PORT": str(config.http.port)
        })  # fmt: skip
        set_up_logging(config.log.level, config.log.format, config.secrets)
        page = page_url(config.http)
        print(f"{servers.describe()}\n{'Page:':<14}{page}\n{'Status:':<14}{page}status\n{'Stop:':<14}Ctrl-C", flush=True)
        return run(config, beside=partial(print_events, servers))


async def print_events(servers: EmbeddedServers, config: Config) -> None:
    """Print one line per change, at most 20 per second, and start again a server that has died, until cancelled."""
    lines = _Lines()
    reading = Reading(config.nats, config.publish.stream, (), NOW, lines.show, lambda _: None, waits=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, reading)
        while True:
            await trio.sleep(1)
            lines.next_second()
            for name in servers.ended:
                log.warning("a server has ended and is started again", server=name, logs=str(servers.directory))
                await trio.to_thread.run_sync(servers.start_again, name)


class _Lines:
    """Prints changes up to the limit of a second, then only counts them."""

    def __init__(self) -> None:
        self._lines = LineMaker.for_stdout()
        self._printed = self._held_back = 0

    def show(self, messages: Sequence[Read]) -> bool:
        """Print the changes of these messages, or some of them; always True: there is never enough."""
        for read in messages:
            lines = [self._lines.line(read.message.seq, int(read.message.stored_at), event) for _, event in read.events]
            for line in lines or [read.trouble]:
                if self._printed < LINES_PER_SECOND:
                    self._printed += 1
                    print(line, flush=True)
                else:
                    self._held_back += 1
        return True

    def next_second(self) -> None:
        """Say how many changes were not shown, and begin again."""
        if self._held_back:
            print(f"... and {counted(self._held_back, 'more change')}", flush=True)
        self._printed = self._held_back = 0
