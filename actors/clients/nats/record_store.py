"""Writes the record of one stream in KV `bridges`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import trio

from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.bridge_record import BridgeRecord
from actors.contract.subjects import BRIDGES, bucket_key, bucket_stream
from actors.errors import ConfigError, SinkFenced, SinkUnavailable
from actors.wire.jetstream import KV_OPERATION_HEADER, WRONG_LAST_SEQUENCE

OVERHEAD_BYTES = 1024
"""Room for the headers of a write."""


def encoded_record(record: BridgeRecord, stream: str, payload_max: int) -> bytes:
    """Return a record's bytes. Raises ConfigError if they are more than a message may have: the server ends the connection."""
    data = record.encode()
    if len(data) > payload_max - OVERHEAD_BYTES:
        raise ConfigError(
            "WB244", f"the record of stream {stream} has {len(data):,} bytes, more than a message may have",
            means=f"it lists the {len(record.tables):,} tables of the publication and their schemas",
            fix="set max_payload: 8MB in nats-server's configuration, and reload it; or divide the tables among "
            "several bridges",
        )  # fmt: skip
    return data


class RecordStore:
    """The current record of one stream and its revision.

    Each write expects the revision of the previous write, so that one of two bridges is refused. The batcher, the snapshotter
    (suspensions) and the acker (positions) change the record, one at a time.
    """

    def __init__(self, js: JetStream, stream: str, record: BridgeRecord, revision: int) -> None:
        self.stream = stream
        self._js = js
        self._lock = trio.Lock()
        self.record, self._revision = record, revision

    async def update(self, **changes: Any) -> None:
        """Write the record with these fields changed; return once JetStream has stored it.

        Shielded from cancellation for the time of one request, since the revision would be unknown afterwards. Raises
        SinkFenced when another bridge has written the record since, SinkUnavailable when NATS does not answer, ConfigError when
        the record is larger than a message may be.
        """
        async with self._lock:
            record = replace(self.record, **changes)
            data = encoded_record(record, self.stream, self._js.connection.max_payload)
            try:
                with trio.CancelScope(shield=True):
                    self._revision = await self._js.kv_put(BRIDGES, self.stream, data, self._revision)
            except JetStreamError as exc:
                if exc.err_code not in WRONG_LAST_SEQUENCE:
                    raise
                raise await self._moved(exc) from exc
            self.record = record

    async def _moved(self, refusal: JetStreamError) -> SinkUnavailable:
        """Say why the record is not at the revision of this bridge's last write: another bridge's, or somebody removed it."""
        last = await self._js.get_message(bucket_stream(BRIDGES), last_by_subj=bucket_key(BRIDGES, self.stream))
        means = "this bridge stops writing and reads the stream's tail again"
        if last is None or KV_OPERATION_HEADER in last.headers:
            how = "purged, or has expired" if last is None else "deleted"
            return SinkUnavailable(
                "WB223", f"the record of stream {self.stream} in KV {BRIDGES} was {how}", said=refusal.said,
                means=f"{means}; it writes a new record",
                fix=f"nobody may remove keys of {BRIDGES}, and it must have no time limit: nats kv info {BRIDGES}",
            )  # fmt: skip
        return SinkFenced(
            "WB223", f"another bridge has written the record of stream {self.stream}", said=refusal.said, means=means,
            fix=f"stop the other bridge: nats kv get {BRIDGES} {self.stream}   # names its slot",
        )  # fmt: skip
