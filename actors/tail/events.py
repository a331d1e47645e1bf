"""Decodes single messages of the stream, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.contract.decoding import decode_body, decode_event
from actors.contract.records import Body, Event
from actors.errors import MalformedMessage
from actors.mirror.source_stream import DictionaryMissing, SourceStream, bridge_position


async def events_of(
    source: SourceStream, headers: Mapping[str, str], payload: bytes
) -> tuple[Sequence[tuple[Body, Event]], str]:
    """Return the body of each event with its record, and why there are none where nobody can read them."""
    if bridge_position(headers) is None:
        return (), "not a bridge's message: another program publishes here"
    try:
        body = decode_body(await source.unpack(headers, payload))
        bodies = body if isinstance(body, list) else [body]
        return [(one, decode_event(one)) for one in bodies], ""
    except (MalformedMessage, DictionaryMissing) as exc:
        return (), f"cannot be read: {exc}"
