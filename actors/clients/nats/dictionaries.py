"""zstd dictionaries: files of a folder, and KV `dictionaries`, where consumers find them (contract, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.contract.compression import Compressor, dictionary_id
from actors.contract.subjects import CDC, DICTIONARIES, dictionary_key
from actors.contract.table_token import split_token
from actors.telemetry.log import get_logger

log = get_logger("dictionaries")

SUFFIX = ".zstd.dict"
BYTES_MAX = 1024 * 1024
"""Larger ones help nobody, and may not fit into a message."""


def read_dictionaries(folder: Path) -> dict[str, bytes]:
    """Dictionaries by table token, from `{token}.zstd.dict` files; what cannot be used is said and left out.

    The `/` of a schema's table is a folder. A folder that is not there has none.
    """
    found: dict[str, bytes] = {}
    try:
        files = sorted(folder.rglob(f"*{SUFFIX}"))
    except OSError as exc:
        log.warning("no dictionaries: the folder cannot be read", folder=str(folder), reason=exc.strerror)
        return {}
    for file in files:
        token = file.relative_to(folder).as_posix().removesuffix(SUFFIX)
        try:
            if "" in split_token(token):
                raise ValueError("its name names no table")
            if not file.is_file():
                raise ValueError("not a file")
            if file.stat().st_size > BYTES_MAX:
                raise ValueError(f"larger than {BYTES_MAX} bytes")
            content = file.read_bytes()
            Compressor(token, content)
            found[token] = content
        except (OSError, ValueError) as exc:
            log.warning("going on without a dictionary", file=str(file), reason=str(exc))
    return found


async def publish_dictionaries(js: JetStream, dictionaries: Mapping[str, bytes], stream: str = CDC) -> dict[str, Compressor]:
    """Put what the bucket does not have yet; returns a compressor for each table whose dictionary consumers can find.

    A dictionary that cannot be put is said and left out. Raises SinkUnavailable when NATS is away.
    """
    ready: dict[str, Compressor] = {}
    for token, content in dictionaries.items():
        if len(content) > js.connection.max_payload:  # the server would end the connection
            reason = f"{len(content):,} bytes are more than max_payload"
            log.warning("going on without a dictionary: it cannot be put into the bucket", table=token, reason=reason)
            continue
        try:
            # first the key that stays, which messages name
            for key in (dictionary_id(token, content, stream), dictionary_key(token, stream=stream)):
                held = await js.kv_get(DICTIONARIES, key)
                if held is None or held.data != content:
                    await js.kv_put(DICTIONARIES, key, content)
        except (JetStreamError, SinkRefused) as exc:
            log.warning("going on without a dictionary: it cannot be put into the bucket", table=token, reason=str(exc))
            continue
        ready[token] = Compressor(token, content, stream)
    return ready
