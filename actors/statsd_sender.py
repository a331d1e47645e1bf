"""statsd_sender: sends the metrics to a StatsD daemon by UDP.

A packet is handed to the system or dropped, so neither a slow receiver nor one that is away holds anything up.
"""

from __future__ import annotations

import trio

from actors.settings.config import Config
from actors.telemetry.log import get_logger
from actors.telemetry.metrics import Metrics
from actors.telemetry.statsd_lines import StatsdLines, datagrams
from actors.telemetry.telemetry import Telemetry

log = get_logger("statsd_sender")

EVERY_S = 10.0
"""StatsD's own interval."""
LAST_SEND_S = 1.0
"""How long the end of the bridge waits for the last packets, which a look-up of the name may take."""


async def send_statsd(config: Config, telemetry: Telemetry, *, every_s: float = EVERY_S) -> None:
    """Send until cancelled, and once more then. A failure is only logged."""
    host, _, port = config.statsd.rpartition(":")
    sender = _Sender(Metrics(telemetry, config), host.strip("[]"), int(port))
    try:
        while True:
            await trio.sleep(every_s)
            await sender.send()
    finally:
        with trio.move_on_after(LAST_SEND_S) as last:
            last.shield = True
            await sender.send()


class _Sender:
    """Looks the name up each time, because it may move; notes whether sending fails."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._metrics, self._lines = metrics, StatsdLines()
        self._host, self._port = host, port
        self._failing = False

    async def send(self) -> None:
        try:
            await self._send()
        except (OSError, UnicodeError) as exc:  # also a name that is none
            self._failing = True
            log.warning("cannot send StatsD", to=f"{self._host}:{self._port}", reason=str(exc))
            return
        if self._failing:
            log.info("StatsD is sent again")
        self._failing = False

    async def _send(self) -> None:
        found = await trio.socket.getaddrinfo(self._host, self._port, type=trio.socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with trio.socket.socket(family, kind, protocol) as socket:
            for packet in datagrams(self._lines.lines(self._metrics.families())):
                await socket.sendto(packet, address)
