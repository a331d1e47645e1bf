"""stream_monitor: watches how full the CDC stream is, which of its consumers risk missing messages, and whether somebody
deletes messages from it or edits a stream.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from actors.clients.nats.connection import SinkRefused
from actors.clients.nats.link import JetStreamLink
from actors.contract.reader_note import ReaderNote
from actors.contract.stream_view import StreamView
from actors.errors import SinkUnavailable
from actors.startup.stream_rules import Role, examine
from actors.telemetry.log import get_logger
from actors.telemetry.quantities import counted
from actors.telemetry.telemetry import ConsumerHealth, Problem, StreamHealth, Telemetry
from actors.wire.jetstream import unix_time

log = get_logger("stream_monitor")

LOOK_EVERY_S = 10.0
"""At the CDC stream, and each second while somebody watches."""
CONSUMERS_EVERY_S = 10.0
OTHERS_EVERY_S = 60.0
LOOK_AGAIN_S = 1.0
"""While NATS is away or not up yet."""
SHOWN_MAX = 20
DELETED = "deleted messages"
"""Key of the problem."""


def stream_health(info: Mapping[str, Any], now_unix_s: float) -> StreamHealth:
    """Read a reply of STREAM.INFO."""
    state, config = info["state"], info["config"]
    oldest = str(state.get("first_ts", ""))
    return StreamHealth(
        messages=int(state["messages"]),
        bytes=int(state["bytes"]),
        bytes_max=max(0, int(config.get("max_bytes", -1))),
        first_seq=int(state["first_seq"]),
        last_seq=int(state["last_seq"]),
        oldest_unix_s=unix_time(oldest) if state["messages"] else 0.0,
        looked_at=now_unix_s,
        deleted=StreamView.of(info).deleted_count,
        messages_max=max(0, int(config.get("max_msgs", -1))),
        age_max_s=int(config.get("max_age", 0)) / 1e9,
        discards_old=config.get("discard", "old") == "old",
    )


def consumer_health(info: Mapping[str, Any], messages: int, now_unix_s: float) -> ConsumerHealth:
    """Read an entry of CONSUMER.LIST; `messages` is how many the stream has."""
    pending, config = int(info.get("num_pending", 0)), info.get("config") or {}
    delivered, floor = info.get("delivered") or {}, info.get("ack_floor") or {}
    filters = config.get("filter_subjects") or filter(None, [config.get("filter_subject")])
    is_read = bool(info.get("push_bound")) or any(int(info.get(name, 0)) for name in ("num_waiting", "num_ack_pending"))
    return ConsumerHealth(
        str(info["name"]), pending, int(info.get("num_ack_pending", 0)), round(min(1.0, pending / max(1, messages)), 3),
        is_left=not is_read and not config.get("durable_name"), looked_at=now_unix_s,
        filters=tuple(map(str, filters)),
        acknowledges=config.get("ack_policy") != "none",
        delivered_seq=int(delivered.get("stream_seq", 0)),
        acknowledged_seq=int(floor.get("stream_seq", 0)),
        created_at=unix_time(str(info["created"])) if info.get("created") else 0.0,
        active_at=unix_time(str(delivered["last_active"])) if delivered.get("last_active") else 0.0,
        note=ReaderNote.of(config.get("metadata")),
    )  # fmt: skip


def furthest_behind(listed: Sequence[Mapping[str, Any]], messages: int, now_unix_s: float) -> tuple[ConsumerHealth, ...]:
    """Return the consumers with the most left to read, at most 20; `messages` is how many the stream has."""
    health = [consumer_health(entry, messages, now_unix_s) for entry in listed]
    return tuple(sorted(health, key=lambda one: (one.is_left, -one.history_used))[:SHOWN_MAX])


def note_readers(telemetry: Telemetry, before: Sequence[ConsumerHealth], found: Sequence[ConsumerHealth]) -> None:
    """Note what mirrors have come and gone, and what `walbridge verify` has newly found of a replica."""
    journal = telemetry.journal
    # a mirror makes another consumer after a fault, so its replica's name is what stays
    known = {one.note.replica: one.note for one in before if one.note.replica}
    for one in found:
        note = one.note
        if not note.replica:
            continue
        earlier = known.pop(note.replica, None)
        if earlier is None:
            journal.note("reader", f"mirror {note.replica} reads the stream", consumer=one.name)
        elif note.mismatched_keys and note.mismatched_keys != earlier.mismatched_keys:
            differ = counted(note.mismatched_keys, "key")
            journal.note("verified", f"mirror {note.replica}: verify found {differ} that differ", "bad", consumer=one.name)
        elif note.verified_at > earlier.verified_at and not note.mismatched_keys:
            journal.note("verified", f"mirror {note.replica}: verify found it equal to its source", "ok", consumer=one.name)
    for replica in known:
        journal.note("reader", f"mirror {replica} no longer reads the stream", "warn")


def deleted_problem(stream: str, count: int) -> Problem | None:
    """Return what to say of messages that were deleted in the middle of the stream; None if there are none."""
    if not count:
        return None
    return Problem(
        "WB224", f"{count:,} {'message was' if count == 1 else 'messages were'} deleted in the middle of stream {stream}",
        means="consumers that had not read them have lost changes: mirrors copy their tables again by themselves",
        fix="other consumers whose place was before them take a snapshot; nobody may delete or purge messages of the stream, "
        "and it may have no limit per subject: walbridge export nats-permissions",
    )  # fmt: skip


def note_deleted(telemetry: Telemetry, stream: str, count_before: int) -> None:
    """Show how many messages were deleted in the middle of the stream, and log it when there are more than before."""
    known, count = telemetry.problems.get(DELETED), telemetry.stream.deleted
    problem = deleted_problem(stream, count)
    if problem is None:
        telemetry.problems.pop(DELETED, None)
        return
    if count > count_before:  # it shrinks when the stream's first sequence moves beyond deleted messages
        log.warning(problem.what, code=problem.code, fix=problem.fix)
    telemetry.problems[DELETED] = problem if known is None else replace(problem, since_unix_s=known.since_unix_s)


class Watched:
    """The streams of a bridge as the monitor last found them: what their settings would do is shown as problems.

    Settings with which the CDC stream cannot work end the bridge. Elsewhere the bridge goes on as long as it can, and refuses
    them at its next start.
    """

    def __init__(self, roles: Sequence[Role], telemetry: Telemetry) -> None:
        """`roles`: the CDC stream first."""
        self.changes, self.others = roles[0], roles[1:]
        self._telemetry = telemetry
        self._shown: dict[str, dict[str, Problem]] = {}

    def examine(self, role: Role, info: Mapping[str, Any] | None) -> None:
        """Compare a stream's settings with what the bridge would have made. Raises ConfigError."""
        found = [] if info is None else examine(role, info["config"])
        if role is self.changes and found and found[0].refused:
            found[0].refuse()
        known = self._shown.get(role.name, {})
        for key in known:
            self._telemetry.problems.pop(key, None)
        shown = {finding.what: known.get(finding.what, finding.problem) for finding in found}
        for finding in found:
            if finding.what not in known:
                tell = log.error if finding.refused else log.warning
                tell(finding.what, code=finding.code, means=finding.means, fix=finding.fix)
        self._shown[role.name] = shown
        self._telemetry.problems.update(shown)


async def watch_streams(asked: JetStreamLink, roles: Sequence[Role], telemetry: Telemetry) -> None:
    """Look at the CDC stream every 10 s, each second while somebody watches, at its consumers every 10 s and at the other
    streams every minute, until cancelled.

    Raises ConfigError when somebody has given the CDC stream a setting with which nothing may be confirmed any more.
    """
    watched = Watched(roles, telemetry)
    stream, may_list, list_at, others_at = watched.changes.name, True, 0.0, 0.0
    while True:
        try:
            found = await asked.stream_info(stream)
            watched.examine(watched.changes, found)
            if found is not None:
                deleted_before = telemetry.stream.deleted
                telemetry.stream = stream_health(found, time.time())
                note_deleted(telemetry, stream, deleted_before)
                if may_list and trio.current_time() >= list_at:
                    list_at = trio.current_time() + CONSUMERS_EVERY_S
                    try:
                        listed = await asked.stream_consumers(stream)
                        consumers = furthest_behind(listed, telemetry.stream.messages, time.time())
                        note_readers(telemetry, telemetry.consumers, consumers)
                        telemetry.consumers = consumers
                    except SinkRefused as exc:
                        may_list = False  # the bridge can do without this permission: further requests would fill NATS's log
                        log.info("the page shows no consumers: the NATS user may not list them", said=exc.said)
            if trio.current_time() >= others_at:
                for role in watched.others:
                    watched.examine(role, await asked.stream_info(role.name))
                others_at = trio.current_time() + OTHERS_EVERY_S
            await telemetry.looking.pause(LOOK_EVERY_S)
        except SinkUnavailable as exc:
            log.debug("cannot check the streams", error=str(exc))
            await trio.sleep(LOOK_AGAIN_S)
