"""Checks of `walbridge doctor` on NATS: those of the bridge's start and monitors, and those for a report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from actors.clients.nats.connection import ALLOW, NatsConnection, SinkRefused
from actors.clients.nats.jetstream import JetStream, JetStreamError
from actors.clients.nats.trials import NOT_A_REQUEST, refused_requests
from actors.contract.subjects import (
    BRIDGES,
    INIT,
    REQUESTS,
    SCHEMAS,
    bucket_of,
    bucket_stream,
)
from actors.doctor.checking import Check, Found, NotChecked, warned
from actors.doctor.nats_rights import check_rights
from actors.doctor.report import Level
from actors.errors import ConfigError, SinkUnavailable, WalbridgeError
from actors.settings.config import Config
from actors.startup.stream_rules import examine
from actors.startup.stream_sizes import Sizes
from actors.startup.stream_state import USUAL_REPLICAS, examine_copies, history_problem
from actors.startup.streams import WantedStream, cannot_create, payload_max, publish_mode, wanted_streams
from actors.stream_monitor import deleted_problem, stream_health
from actors.telemetry.quantities import age, counted, human_bytes, span
from actors.telemetry.telemetry import Problem
from actors.wire.jetstream import ErrCode

OLDEST = (2, 10, 0)
ANSWER_S = 3.0
"""How long JetStream may take for its first answer."""
START = "nats server report jetstream   # then start what is down"
UNSYNCED_S = 120
"""nats-server's own `sync_interval`."""


class NatsSide:
    """NATS as one run of the doctor sees it."""

    def __init__(self, config: Config, tokens: Sequence[str]) -> None:
        """`tokens` are those of the publication's tables."""
        self._config, self._tokens = config, tokens
        self.infos: dict[str, dict[str, Any]] = {}
        """By name, of the streams that exist."""
        self.missing: list[WantedStream] = []
        self.payload_max = 0
        """Bytes of the largest message that servers and streams take; 0 while that is unknown."""
        self.narrow: list[str] = []
        """Streams that take only smaller messages than the server."""
        self._unanswered: dict[str, SinkUnavailable] = {}
        self._room: Sizes | None = None
        self.is_known = False
        """Whether JetStream has said of every stream if it exists."""

    def checks(self) -> dict[str, Check[NatsConnection]]:
        """Return the checks by name."""
        found: dict[str, Check[NatsConnection]] = {"version": self._version, "JetStream": self._jetstream}
        found |= {_label(name): self._of_stream(name) for name in self.names()}
        return {
            **found, "room": self._account, "publishing": self._publishing, "copies": self._copies, "history": self._history,
            "payload": self._payload, "durability": self._durability, "permissions": self._permissions,
        }  # fmt: skip

    def names(self) -> list[str]:
        """Return the names of all streams of the bridge, that of changes first."""
        stream, zstd = self._config.publish.stream, self._zstd
        buckets = [bucket_stream(bucket) for bucket in (BRIDGES, SCHEMAS, *(("dictionaries",) if zstd else ()))]
        return [stream, INIT, REQUESTS, *buckets]

    @property
    def _zstd(self) -> bool:
        return self._config.snapshots.zstd or self._config.snapshots.zstd_events

    def _wanted(self, js: JetStream) -> dict[str, WantedStream]:
        config = self._config
        found = wanted_streams(
            js, stream=config.publish.stream, replicas=config.nats.replicas, fmt=config.snapshots.format, zstd=self._zstd
        )
        return {wanted.role.name: wanted for wanted in found}

    # -- the server

    async def _version(self, connection: NatsConnection) -> Found:
        version = connection.info.get("version")
        if connection.version < OLDEST:
            return warned("", Problem(
                "WB207", f"nats-server {version} is older than what the bridge is tested with",
                fix="upgrade nats-server to 2.10 or later, best to 2.15 or later",
            ))  # fmt: skip
        return Found(f"nats-server {version}")

    async def _jetstream(self, connection: NatsConnection) -> Found:
        """Look which streams there are. Without any answer nothing else can be looked at."""
        js = JetStream(connection)
        wanted = self._wanted(js)
        async with trio.open_nursery() as nursery:
            for stream in wanted.values():
                nursery.start_soon(self._ask, js, stream)
        # JetStream itself may be off, which no right would change
        refused = [one.said for one in self._unanswered.values() if isinstance(one, SinkRefused) and one.code == "WB204"]
        self.is_known = not self._unanswered
        if refused:
            return Found("", [("fail", ConfigError(
                "WB204", f"the NATS user may not ask for information on {counted(len(refused), 'stream')}", said=refused[0],
                means="the bridge cannot see whether they exist, or where they end", fix=ALLOW,
            ))])  # fmt: skip
        if self._unanswered.keys() == wanted.keys():
            return Found("", [("fail", next(iter(self._unanswered.values())))])
        words = f"{len(self.infos)} of {len(wanted)} streams and buckets exist"
        return Found(f"{words}, {len(self._unanswered)} did not answer" if self._unanswered else words)

    async def _ask(self, js: JetStream, stream: WantedStream) -> None:
        name = stream.role.name
        try:
            with trio.fail_after(ANSWER_S):
                info = await js.stream_info(name)
        except trio.TooSlowError:
            self._unanswered[name] = SinkUnavailable(
                "WB202", f"JetStream does not answer within {ANSWER_S:g} s what stream {name} is",
                means="NATS is up; the server that holds the stream, or most servers of the cluster, are not",
                fix=START,
            )  # fmt: skip
        except SinkUnavailable as exc:
            exc.fix = exc.fix or START
            self._unanswered[name] = exc
        else:
            if info is None:
                self.missing.append(stream)
            else:
                self.infos[name] = info

    def _need_jetstream(self) -> None:
        if not self.is_known and not self.infos and not self.missing:
            raise NotChecked("JetStream has not answered")

    # -- one stream

    def _of_stream(self, name: str) -> Check[NatsConnection]:
        async def check(connection: NatsConnection) -> Found:
            self._need_jetstream()
            js = JetStream(connection)
            wanted = self._wanted(js)[name]
            if any(missing.role.name == name for missing in self.missing):
                return await self._would_make(js, wanted)
            if name in self._unanswered:
                error = self._unanswered[name]
                if isinstance(error, SinkRefused):
                    raise NotChecked("the NATS user may not ask for information on it")
                return Found("", [("fail", error)])
            info = self.infos[name]
            findings = examine(wanted.role, info["config"])
            problems: list[tuple[Level, Problem]] = [("fail" if one.refused else "warn", one.problem) for one in findings]
            deleted = deleted_problem(name, stream_health(info, 0.0).deleted) if name == self._config.publish.stream else None
            return Found(_described(info), problems if deleted is None else [*problems, ("warn", deleted)])

        return check

    async def _would_make(self, js: JetStream, stream: WantedStream) -> Found:
        """Say what the bridge would make, or why it could not. Nothing is made."""
        wanted, missing = stream.config, [one.config for one in self.missing]
        if self._room is None:
            self._room = Sizes(js, self._config.nats.replicas)
            await self._room.plan(missing)
            if self.infos:
                await self._room.fit(missing, next(iter(self.infos.values()))["config"])
        room = self._room
        action = f"STREAM.CREATE.{wanted.name}"
        refused = await refused_requests(js.connection, {action: NOT_A_REQUEST})
        if refused:
            (said,) = refused.values()
            error = await cannot_create(js, wanted, room, missing, SinkRefused("WB204", "it may not be asked for", said=said))
            return Found("", [("warn" if wanted.name == REQUESTS else "fail", error)])
        if await self._taken(js, wanted.subjects or ()):
            overlap = JetStreamError(f"create stream {wanted.name}", 400, ErrCode.SUBJECTS_OVERLAP, "subjects overlap")
            error = await cannot_create(js, wanted, room, missing, overlap)
            error.said = ""  # JetStream has not been asked
            return Found("", [("fail", error)])
        size = room.likely(wanted)
        limits = f" with {human_bytes(size)}" if size else ""
        return Found(f"missing; the bridge makes it at its first start{limits}", level="note")

    async def _taken(self, js: JetStream, subjects: Sequence[str]) -> list[str]:
        try:
            return sorted({name for subject in subjects for name in await js.streams_taking(subject)})
        except SinkRefused:
            return []

    # -- all streams

    async def _account(self, connection: NatsConnection) -> Found:
        """Look at the account's limits, against what is missing and what is there."""
        self._need_jetstream()
        js = JetStream(connection)
        try:
            account = await js.account()
        except SinkRefused:
            return Found("the NATS user may not ask for the account's limits", level="note")
        tier = (account.get("tiers") or {}).get(f"R{self._config.nats.replicas}") or account
        limits, streams = tier["limits"], int(tier.get("streams") or 0)
        most, storage = int(limits.get("max_streams") or -1), int(limits.get("max_storage") or -1)
        used = max(int(tier.get("reserved_storage") or 0), int(tier.get("storage") or 0))
        words = f"{streams} of {most} streams" if most > 0 else counted(streams, "stream")
        words += f", {human_bytes(used)} of {human_bytes(storage)}" if storage > 0 else f", {human_bytes(used)}"
        if storage <= 0 and self.missing and not self.infos:
            words += "; without a limit of the account. The server's own shows with its first stream"
        names = ", ".join(wanted.role.name for wanted in self.missing)
        problems: list[WalbridgeError] = []
        if 0 < most < streams + len(self.missing):
            problems.append(ConfigError(
                "WB230", f"the account may have {counted(most, 'stream')} and has {streams}; {len(self.missing)} are missing: "
                + names,
                fix="raise max_streams of the account in nats-server's configuration, then: nats-server --signal reload",
            ))  # fmt: skip
        if self.missing and self._room is not None and not self._room.fits:
            problems.append(ConfigError(
                "WB230", f"JetStream has no room for what is missing: {names}", said=words,
                means="the account's limit, the server's max_file_store or its disk is taken by other streams",
                fix="nats stream report   # see what takes the room, and make some",
            ))  # fmt: skip
        servers = _servers(connection, self.infos)
        if self._config.nats.replicas > servers and self.missing:
            problems.append(ConfigError(
                "WB230", f"NATS_REPLICAS is {self._config.nats.replicas}, and there is no cluster of so many servers",
                means="JetStream refuses to make the streams",
                fix=f"export NATS_REPLICAS={USUAL_REPLICAS if servers >= USUAL_REPLICAS else 1}",
            ))  # fmt: skip
        return Found(words, [("fail", problem) for problem in problems])

    def _changes(self, js: JetStream) -> Mapping[str, Any]:
        """The configuration of the stream of changes, as it is or as it would be made."""
        self._need_jetstream()
        stream = self._config.publish.stream
        if stream in self.infos:
            return dict(self.infos[stream]["config"])
        if stream in self._unanswered:
            raise NotChecked(f"it is unknown what stream {stream} is")
        return dict(self._wanted(js)[stream].config.as_dict())

    async def _publishing(self, connection: NatsConnection) -> Found:
        js = JetStream(connection)
        wanted = self._config.publish.mode
        mode = publish_mode(js, self._config.publish.stream, wanted, self._changes(js))
        return Found(f"{mode}" if wanted == mode else f"{mode}, chosen by --publish {wanted}")

    async def _copies(self, connection: NatsConnection) -> Found:
        self._need_jetstream()
        servers = _servers(connection, self.infos)
        found = [examine_copies(info, servers) for name, info in self.infos.items() if name != REQUESTS]
        words = "one server, no cluster" if servers == 1 else f"all streams are complete, cluster of {servers}"
        return Found(words, [("fail" if one.refused else "warn", one.problem) for one in found if one is not None])

    async def _history(self, connection: NatsConnection) -> Found:
        changes = self._changes(JetStream(connection))
        info, init = self.infos.get(self._config.publish.stream), self.infos.get(INIT)
        kept_s = int(changes.get("max_age") or 0) / 1e9
        words = f"changes are kept for {span(kept_s)}" if kept_s else "changes are kept without a limit of age"
        if info is None or init is None:
            return Found(words)
        return warned(f"{words}, at least as long as snapshots", history_problem(info["config"], init["config"]))

    async def _payload(self, connection: NatsConnection) -> Found:
        js = JetStream(connection)
        changes, of_server = self._changes(js), payload_max(js, {})
        configs = {changes["name"]: changes} | {name: self.infos[name]["config"] for name in (INIT,) if name in self.infos}
        try:
            limits = {name: payload_max(js, config) for name, config in configs.items()}
        except ConfigError:
            raise NotChecked("a stream takes only small messages") from None
        self.payload_max = min(limits.values())
        self.narrow = [name for name, limit in limits.items() if limit < of_server]
        return Found(f"messages of up to {human_bytes(self.payload_max)}")

    async def _durability(self, connection: NatsConnection) -> Found:
        changes = self._changes(JetStream(connection))
        hold_s, copies = self._config.publish.confirm_hold_s, int(changes.get("num_replicas") or 1)
        unknown = "nats-server tells nobody its sync_interval"
        if hold_s:
            words = f"--confirm-hold {hold_s} covers a sync_interval of up to {hold_s // 2} s"
        elif copies >= USUAL_REPLICAS:
            words = f"{copies} copies: a power cut of one server loses nothing"
        else:
            words = "with the default of 2 minutes a power cut loses changes, unless sync_interval: always or "
            words += f"--confirm-hold {2 * UNSYNCED_S}"
        return Found(f"{unknown}; {words}", level="note")

    async def _permissions(self, connection: NatsConnection) -> Found:
        return await check_rights(connection, self._config, self._tokens, self.names(), zstd=self._zstd)


def _servers(connection: NatsConnection, infos: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many servers the cluster has, as far as a client hears of them; 1 without a cluster."""
    if not connection.info.get("cluster"):
        return 1
    urls = connection.info.get("connect_urls")
    copies = [int(info["config"].get("num_replicas") or 1) for info in infos.values()]
    return max(len(urls) if isinstance(urls, list) else 1, 1, *copies)


def _described(info: Mapping[str, Any]) -> str:
    config, health = info["config"], stream_health(info, 0.0)
    words = [", ".join(config.get("subjects") or ()), f"R{int(config.get('num_replicas') or 1)}"]
    words += [f"{age(int(config['max_age']) / 1e9)}"] if config.get("max_age") else []
    full = f" of {human_bytes(health.bytes_max)}" if health.bytes_max else ""
    return f"{', '.join(words)}; {counted(health.messages, 'message')}, {human_bytes(health.bytes)}{full}"


def _label(name: str) -> str:
    bucket = bucket_of(name)
    return f"bucket {bucket}" if bucket else f"stream {name}"
