"""Keeps the pause in the bridge's record, which outlives the process and is shared by all bridges of a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio
from trio_util import wait_any

from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream, JetStreamError, where_it_exists
from actors.clients.nats.record_store import encoded_record
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGES
from actors.errors import WalbridgeError
from actors.pause import Pause
from actors.process import most_telling
from actors.settings.config import Config
from actors.telemetry.log import get_logger
from actors.wire.jetstream import WRONG_LAST_SEQUENCE

log = get_logger("bridge")

LOOK_WITHIN_S = 5.0
AGREE_EVERY_S = 2.0
"""Another bridge of the stream, or its operator, may begin or end the pause."""


class PauseRecord:
    """The pause as the record has it. Only for a bridge that does not stream.

    When it writes, another bridge that streams is refused at its next write, looks at the record again, and follows.
    """

    def __init__(self, config: Config, pause: Pause, known_servers: set[str]) -> None:
        self._config, self._pause, self._known_servers = config, pause, known_servers
        self.was_read = False

    async def agree(self, js: JetStream) -> None:
        """Write into the record what an operator has said here, or else take over what the record says.

        Without a record of this slot nothing can be written: then the pause ends with the process. Raises SinkUnavailable.
        """
        stream, pause = self._config.publish.stream, self._pause
        entry = await where_it_exists(js.kv_get(BRIDGES, stream))
        record = None if entry is None else BridgeRecord.decode(entry.data, stream)
        self.was_read = True
        if entry is None or record is None or record.slot != self._config.source.slot:
            if not pause.is_on:
                pause.written(0.0)
            return
        if pause.is_recorded:
            pause.adopt(record.paused_at)
            return
        since = pause.since.value
        if record.paused_at != since:
            data = encoded_record(replace(record, paused_at=since), stream, js.connection.max_payload)
            try:
                await js.kv_put(BRIDGES, stream, data, entry.revision)
            except JetStreamError as exc:
                if exc.err_code not in WRONG_LAST_SEQUENCE:
                    raise
                return  # another bridge was faster: the next look sees what it wrote
        pause.written(since)

    async def look(self) -> None:
        """Read the record without PostgreSQL, which may be away because of the pause.

        What goes wrong here goes wrong again in the run that follows, which says so.
        """
        with trio.move_on_after(LOOK_WITHIN_S):
            try:
                async with open_nats(self._config.nats, self._known_servers) as nats:
                    await self.agree(JetStream(nats))
            except* WalbridgeError as group:
                log.debug("cannot ask NATS for a pause", reason=str(most_telling(group)))

    async def keep(self, stop: trio.Event, shown: Callable[[bool], None]) -> None:
        """Keep record and pause in line, over as many connections as it takes, until there is nothing left to write.

        `shown` gets whether NATS is connected.
        """
        pause = self._pause
        while True:
            try:
                async with open_nats(self._config.nats, self._known_servers) as nats:
                    shown(True)
                    while True:
                        await self.agree(JetStream(nats))
                        if pause.is_recorded and (stop.is_set() or not pause.is_on):
                            return
                        with trio.move_on_after(AGREE_EVERY_S):
                            await wait_any(stop.wait, pause.since.wait_transition)
            except* WalbridgeError as group:
                if not pause.is_recorded:
                    log.warning("cannot record the pause or its end: a restart would not know", reason=str(most_telling(group)))
            finally:
                shown(False)
            await trio.sleep(AGREE_EVERY_S)
