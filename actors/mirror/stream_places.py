"""Where a reader of the stream begins, or is set back to: now, at the first message, at a sequence, at a time, or at an LSN."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from actors.clients.nats.bisection import Found, first_reached
from actors.mirror.source_stream import SourceStream
from actors.positions import Lsn, parse_lsn

ANY_SUBJECT = ">"
FORMS = "first, a sequence such as 1842, a time such as 2026-11-21T07:05 (UTC) or 10m (ago), or an LSN such as 0/16B3748"
_AGES = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Beginning(NamedTuple):
    """A place in the stream. Only the field that `kind` names counts."""

    kind: Literal["now", "first", "seq", "time", "lsn"]
    seq: int = 0
    time: datetime = datetime.min
    """In UTC: messages stored before are left out."""
    lsn: Lsn = Lsn(0)
    """Changes of transactions that committed before are left out."""


NOW = Beginning("now")


def parse_beginning(text: str, now: datetime) -> Beginning:
    """Read the value of `--from`. Raises ValueError with what to do."""
    return Beginning("now") if text == "now" else parse_place(text, now, f"now, {FORMS}")


def parse_place(text: str, now: datetime, forms: str = FORMS) -> Beginning:
    """Read a place before the present, such as the value of `--to`. Raises ValueError with `forms`."""
    if text == "first":
        return Beginning("first")
    if re.fullmatch(r"[0-9]{1,18}", text) and int(text):
        return Beginning("seq", seq=int(text))
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([smhd])", text):
            return Beginning("time", time=now - timedelta(**{_AGES[ago[2]]: int(ago[1])}))
        if "/" in text:
            return Beginning("lsn", lsn=parse_lsn(text))
        if re.match(r"\d{4}-\d\d-\d\d", text):
            time = datetime.fromisoformat(text)
            return Beginning("time", time=time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"is no place in the stream; give {forms}")


async def first_seq_from(source: SourceStream, beginning: Beginning) -> int:
    """Return the sequence at which to begin; behind the stream's end when nothing is there yet. The stream was looked at."""

    async def stored_since(seq: int) -> Found | None:
        message = await source.js.get_message(source.name, seq=seq, next_by_subj=ANY_SUBJECT)
        return None if message is None else Found(message.seq, datetime.fromisoformat(message.time) >= beginning.time)

    async def committed_since(seq: int) -> Found | None:
        found = await source.next_of_a_bridge(seq - 1, ANY_SUBJECT)
        return None if found is None else Found(found[0], found[1].lsn >= beginning.lsn)

    end = source.last_seq + 1
    if beginning.kind == "time":
        return await first_reached(source.first_seq, end, stored_since)
    if beginning.kind == "lsn":
        return await first_reached(source.first_seq, end, committed_since)
    return {"now": end, "first": source.first_seq, "seq": beginning.seq}[beginning.kind]
