"""zstd dictionaries: reads them from a folder, and puts them into KV `dictionaries` for consumers (contract, section 5)."""

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
"""A larger dictionary saves no more, and may not fit into a message."""


def read_dictionaries(folder: Path) -> dict[str, bytes]:
    """Return dictionaries by table token, from `{token}.zstd.dict` files; log and leave out unusable files.

    The `/` in a token is a folder. A missing folder has no dictionaries.
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
                raise ValueError("the file name is not a table's token")
            if not file.is_file():
                raise ValueError("not a file")
            if file.stat().st_size > BYTES_MAX:
                raise ValueError(f"larger than {BYTES_MAX} bytes")
            content = file.read_bytes()
            Compressor(token, content)
            found[token] = content
        except (OSError, ValueError) as exc:
            log.warning("continuing without a dictionary", file=str(file), reason=str(exc))
    return found


async def publish_dictionaries(js: JetStream, dictionaries: Mapping[str, bytes], stream: str = CDC) -> dict[str, Compressor]:
    """Put dictionaries into the bucket unless they are there; return a compressor per table whose dictionary is there.

    A dictionary that cannot be put is logged and left out. Raises SinkUnavailable when NATS is away.
    """
    ready: dict[str, Compressor] = {}
    for token, content in dictionaries.items():
        if len(content) > js.connection.max_payload:  # the server would end the connection
            reason = f"{len(content):,} bytes are more than max_payload"
            log.warning("continuing without a dictionary: cannot put it into the bucket", table=token, reason=reason)
            continue
        try:
            # first the permanent key, which messages name
            for key in (dictionary_id(token, content, stream), dictionary_key(token, stream=stream)):
                held = await js.kv_get(DICTIONARIES, key)
                if held is None or held.data != content:
                    await js.kv_put(DICTIONARIES, key, content)
        except (JetStreamError, SinkRefused) as exc:
            log.warning("continuing without a dictionary: cannot put it into the bucket", table=token, reason=str(exc))
            continue
        ready[token] = Compressor(token, content, stream)
    return ready
