"""`walbridge replay`: set a durable consumer of the stream back, so that it gets changes again."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, NamedTuple

import trio

from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.commands.over_jetstream import over_jetstream
from actors.commands.status import printable
from actors.errors import ConfigError
from actors.mirror.source_stream import SourceStream, bridge_position, no_such_stream, streams_of_bridges
from actors.mirror.stream_places import Beginning, first_seq_from, parse_place
from actors.positions import format_lsn
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.resolve import resolve_client
from actors.settings.setting import OTHER
from actors.telemetry.log import set_up_logging
from actors.telemetry.quantities import counted, listed
from actors.wire.jetstream import ErrCode

RESET_SINCE = (2, 14, 0)
"""nats-server's first release that can set a consumer back."""
_NAME = re.compile(r"[^\s.*>/\\]{1,255}")


class Replay(NamedTuple):
    """What is to be done."""

    stream: str
    consumer: str
    place: str
    """As the user wrote it."""
    beginning: Beginning
    is_agreed: bool
    """Whether nobody needs to be asked."""


class Reach(NamedTuple):
    """The messages among which a consumer can be set back."""

    first_seq: int
    last_seq: int
    """Both of the stream."""
    delivered_seq: int
    """The last message that the consumer was given."""


@takes_settings("nats_context", stream="the bridge's stream")
def replay(
    flags: Flags,
    *,
    consumer: Annotated[str, option(OTHER, "the durable consumer to set back", "NAME")],
    to: Annotated[
        str, option(OTHER, "the first change to get again: first, a sequence, a time (UTC, or 10m: ago) or an LSN", "PLACE")
    ],
    yes: Annotated[bool, option(OTHER, "do not ask")] = False,
    env_file: EnvFile = None,
) -> int:
    """Set a consumer back."""
    if not _NAME.fullmatch(consumer):
        raise ConfigError("WB002", f"--consumer: {consumer!r} is not a consumer's name; see: nats consumer ls")
    try:
        beginning = parse_place(to, datetime.now(UTC))
    except ValueError as exc:
        raise ConfigError("WB002", f"--to: {to!r} {exc}") from None
    client = resolve_client(flags, os.environ, env_file)
    set_up_logging("ERROR", client.log.format, client.secrets)
    wanted = Replay(client.stream, consumer, to, beginning, yes)
    return trio.run(over_jetstream, client.nats, partial(_set_back, wanted=wanted))


async def _set_back(js: JetStream, wanted: Replay) -> int:
    """0 when the consumer is set back, 1 when somebody thought better of it. Raises ConfigError and SinkUnavailable."""
    source = SourceStream(js, wanted.stream)
    if not await source.look():
        raise await no_such_stream(js, wanted.stream)
    info = await js.consumer(wanted.stream, wanted.consumer)
    if info is None or not info["config"].get("durable_name"):
        raise await _no_durable(js, wanted, is_there=info is not None)
    reach = Reach(source.first_seq, source.last_seq, int(info["delivered"]["stream_seq"]))
    seq = await first_seq_from(source, wanted.beginning)
    why_not = why_out_of_reach(wanted.beginning, seq, reach)
    if why_not:
        raise ConfigError(
            "WB527", f"consumer {wanted.consumer} cannot be set back to {wanted.place}: {why_not}",
            fix=nearest(seq, reach) or "nothing is to be done: it gets all that the stream has and what comes",
        )  # fmt: skip
    if js.connection.version < RESET_SINCE:
        version = ".".join(map(str, js.connection.version))
        raise _by_hand(wanted, seq, f"nats-server {version} has no request for that, which came with 2.14")
    if refused := why_no_reset(info["config"], seq):
        raise _by_hand(wanted, seq, refused)
    await _show(js, wanted, seq, reach, info)
    if not wanted.is_agreed and not _confirmed(wanted.consumer):
        print("nothing was changed", file=sys.stderr)
        return 1
    try:
        after = await js.reset_consumer(wanted.stream, wanted.consumer, seq)
    except JetStreamError as exc:
        if exc.err_code != ErrCode.CONSUMER_INVALID_RESET:
            raise
        raise _by_hand(wanted, seq, f"{exc.err_code} {exc.description}") from exc
    print(f"set back: {counted(int(after['num_pending']), 'message')} for {wanted.consumer} from message {seq} on")
    return 0


def why_no_reset(config: Mapping[str, Any], seq: int) -> str:
    """Say why nats-server would not set a consumer of this configuration back to `seq`; empty if it would, or only it knows.

    It resets to a sequence only what it began at one, at a time or at the first message, and never to before that.
    """
    policy, start = config.get("deliver_policy", "all"), int(config.get("opt_start_seq") or 0)
    if policy not in ("all", "by_start_sequence", "by_start_time"):
        return f"its deliver policy is {policy}: only all, by_start_sequence and by_start_time allow it"
    if policy == "by_start_sequence" and seq < start:
        return f"it was made to begin at message {start}"
    return ""


def nearest(seq: int, reach: Reach) -> str:
    """Words for the place within reach that is nearest to a sequence out of it; empty if there is none."""
    first, _, delivered = reach
    if delivered < first:
        return ""
    return "--to first, where the stream begins" if seq <= first else f"--to {delivered}, the last message that it was given"


def why_out_of_reach(beginning: Beginning, seq: int, reach: Reach) -> str:
    """Say why a consumer cannot get everything again from a place on, which is at `seq`; empty if it can."""
    first, last, delivered = reach
    if last < first:
        return "the stream is empty"
    if seq < first or (seq == first and first > 1 and beginning.kind in ("time", "lsn")):
        return f"the stream's oldest message is {first}; older ones were removed"
    if seq > last:
        return f"the stream ends before that, at message {last}"
    if seq > delivered:
        return f"it has come to message {delivered} only, and would skip what it has not got; the place is message {seq}"
    return ""


async def _show(js: JetStream, wanted: Replay, seq: int, reach: Reach, info: Mapping[str, Any]) -> None:
    waiting = int(info["num_ack_pending"])
    unacknowledged = f", {counted(waiting, 'message')} of them not acknowledged" if waiting else ""
    print(
        f"consumer {wanted.consumer} of stream {wanted.stream} was given messages up to {reach.delivered_seq}{unacknowledged}"
    )
    print(f"  back to  message {seq}{await _described(js, wanted.stream, seq)}")
    again = counted(reach.delivered_seq - seq + 1, "message")
    filters = info["config"].get("filter_subjects") or [one for one in (info["config"].get("filter_subject"),) if one]
    only = f", of which it gets those on {listed(list(map(str, filters)))}" if filters else ""
    unread = reach.last_seq - reach.delivered_seq
    rest = f"those that it has not had yet ({unread:,})" if unread else "new messages"
    print(f"  again    {again} of the stream{printable(only)}; then it continues with {rest}")
    sys.stdout.flush()


async def _described(js: JetStream, stream: str, seq: int) -> str:
    message = await js.get_message(stream, seq=seq, next_by_subj=">")
    if message is None:
        return ""
    position = bridge_position(message.headers)
    lsn = f"LSN {format_lsn(position.lsn)}, " if position is not None else ""
    return printable(f", {lsn}stored {message.time[:19].replace('T', ' ')} UTC, on {message.subject}")


def _confirmed(consumer: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("WB002", "--yes: nobody is here to be asked; give it to set the consumer back")
    print(f"Type the consumer's name, {consumer}, to set it back: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == consumer


async def _no_durable(js: JetStream, wanted: Replay, *, is_there: bool) -> ConfigError:
    if is_there:
        return ConfigError(
            "WB525", f"consumer {wanted.consumer} of stream {wanted.stream} is not durable",
            means="it ends with its reader, which keeps the place itself",
            fix="have the reader begin elsewhere; for a mirror: walbridge mirror --again",
        )  # fmt: skip
    for other in await streams_of_bridges(js):
        if other != wanted.stream and await js.consumer(other, wanted.consumer) is not None:
            return ConfigError(
                "WB525", f"stream {wanted.stream} has no consumer {wanted.consumer}, but stream {other} has one",
                fix=f"add --stream {other}",
            )  # fmt: skip
    names = [str(one.get("name")) for one in await js.consumers(wanted.stream) if (one.get("config") or {}).get("durable_name")]
    there = f"give one of these: {listed(sorted(names))}" if names else "it has no durable consumers; mirrors need none"
    return ConfigError("WB525", f"stream {wanted.stream} has no consumer {wanted.consumer}", fix=there)


def _by_hand(wanted: Replay, seq: int, said: str) -> ConfigError:
    """The error where NATS does not set this consumer back, with what does the same."""
    stream, name = wanted.stream, wanted.consumer
    return ConfigError(
        "WB526", f"NATS cannot set back consumer {name}", said=said,
        means="only a consumer that begins at that place can deliver these messages again",
        fix=f"nats consumer copy {stream} {name} {name}-again --deliver={seq}   # then let the program read {name}-again",
    )  # fmt: skip
