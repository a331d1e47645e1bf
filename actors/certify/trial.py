"""One trial: acts happen on a nats-server, and a consumer must have the source's tables after each of them."""

from __future__ import annotations

import base64
import random
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import trio

from actors.certify.acts import SHAPES, Act, Stage, perform, serve
from actors.certify.history import Expected, Step
from actors.certify.port import Answer, Consumer, MalformedAnswer, ask
from actors.certify.proxy import Proxy
from actors.certify.source import Source
from actors.clients.nats.connection import NatsConnection, open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract import subjects
from actors.embedded.nats import NatsServer
from actors.errors import SinkUnavailable
from actors.settings.config import NatsConfig

ASK_EVERY_S = 0.02
SUBJECTS = {
    subjects.CDC: [subjects.CDC_ALL],
    subjects.INIT: [subjects.INIT_ALL, *subjects.ARRAY_ALL],
    subjects.REQUESTS: [subjects.REQUEST_ALL],
}
BUCKETS = (subjects.SCHEMAS, subjects.DICTIONARIES, subjects.BRIDGES)


Connect = Callable[[], Awaitable[NatsConnection]]


@dataclass(slots=True)
class Verdict:
    """What came of a trial."""

    wrong: str = ""
    """How the consumer differs; empty if it was exact after each act."""
    at: int = 0
    """Number of acts that had happened then."""
    steps: list[Step] = field(default_factory=list)
    """All that has happened."""
    asked: int = 0
    """Snapshots that the consumer has asked for."""
    answered: bool = False
    """Whether the consumer has ever told its tables; if not, nothing is known of its rules."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all trials of a run have in common."""

    command: tuple[str, ...]
    tables: tuple[str, ...]
    seed: int
    zstd: bool
    without: tuple[str, ...]
    """Kinds of acts that do not happen."""
    patience_s: float
    """How long a consumer may take to have the right tables."""


class Trial:
    """One trial's nats-server, source and consumer."""

    def __init__(self, setting: Setting, server: NatsServer, proxy: Proxy, consumer: Consumer, connect: Connect) -> None:
        """`connect` opens a connection past the proxy."""
        self._open = connect
        self._setting, self._server, self._proxy, self._consumer = setting, server, proxy, consumer
        dice = random.Random(f"encoding {setting.seed}")
        dictionaries = dict.fromkeys(setting.tables, b"") if setting.zstd else {}
        source = Source(is_json=dice.random() < 0.5, pack=dice.choice((1, 1, 3)), dictionaries=dictionaries)
        for name in setting.tables:
            source.create(name, *SHAPES[name])
        self._stage = Stage(source, setting.tables)
        self._requests: list[str] = []
        self._served = 0
        self.verdict = Verdict()
        self._connection: NatsConnection

    async def run(self, acts: Sequence[Act]) -> Verdict:
        """Let the acts happen; return what came of it."""
        self._connection = await self._connect()
        stage = self._stage
        await self._make_streams()
        stage.wanted += [stage.source.record()]
        for _ in range(2):
            stage.transaction(random.Random(self._setting.seed))
        stage.wanted.append({"step": "start"})
        try:
            await self._act(None)
            for number, act in enumerate(acts, 1):
                if self.verdict.wrong:
                    break
                self.verdict.at = number
                perform(act, stage)
                await self._act(act)
        except MalformedAnswer as exc:
            self.verdict.wrong = str(exc)
        return self.verdict

    async def _act(self, act: Act | None) -> None:
        """Do what is wanted, and see that the consumer gets it right. Not after each act: errors may need several."""
        await self._do_wanted()
        if not self.verdict.wrong and (act is None or act.seed % 4):
            await self._settle()

    # -- steps

    async def _do_wanted(self) -> None:
        wanted, self._stage.wanted = self._stage.wanted, []
        for step in wanted:
            self.verdict.steps.append(step)
            await self._do(step)

    async def _do(self, step: Step) -> None:
        js = JetStream(self._connection)
        match step["step"]:
            case "message":
                stored = await js.publish(step["subject"], base64.b64decode(step["body"]), step["headers"])
                assert stored == step["seq"], f"stored as {stored}, not {step['seq']}"
            case "kv":
                await js.kv_put(step["bucket"], step["key"], base64.b64decode(step["value"]))
            case "purge":
                await self._api(f"STREAM.PURGE.{step['stream']}", {"seq": step["first_seq"]})
            case "remove":
                for seq in step["seqs"]:
                    await self._api(f"STREAM.MSG.DELETE.{step['stream']}", {"seq": seq})
            case "start":
                self._consumer.start()
            case "stop":
                self._consumer.kill()
            case "cut connections":
                self._proxy.cut()
            case "forget consumers":
                for stream in (subjects.CDC, subjects.INIT):
                    for consumer in await js.consumers(stream):
                        if not consumer["config"].get("durable_name"):
                            await js.delete_consumer(stream, consumer["name"])
            case "restart server":
                await self._restart_server()

    async def _restart_server(self) -> None:
        await trio.to_thread.run_sync(self._server.restart)
        self._connection = await self._connect()

    async def _connect(self) -> NatsConnection:
        """A connection of our own, past the proxy, that hears what the consumer asks for."""
        connection = await self._open()
        await connection.subscribe(subjects.REQUEST_ALL, lambda message: self._requests.append(message.subject.decode()))
        return connection

    async def _api(self, action: str, body: Mapping[str, Any]) -> None:
        await self._connection.request(self._connection.api.action(action), orjson.dumps(body), timeout_s=5)

    async def _make_streams(self) -> None:
        js = JetStream(self._connection)
        for name, patterns in SUBJECTS.items():
            await js.delete_stream(name)
            config: dict[str, object] = {"name": name, "subjects": patterns, "storage": "file", "allow_direct": True}
            await js.create_stream(config)
        for bucket in BUCKETS:
            name = subjects.bucket_stream(bucket)
            await js.delete_stream(name)
            await js.create_stream(
                {"name": name, "subjects": [subjects.bucket_keys(bucket)], "max_msgs_per_subject": 10, "storage": "file",
                 "allow_direct": True, "allow_rollup_hdrs": True, "deny_delete": True}
            )  # fmt: skip
        self._stage.source.begin()  # counts sequences from 1

    # -- what must hold

    async def _settle(self) -> None:
        """Serve what the consumer asks for, until its tables are the source's."""
        self._stage.wanted.append(self._stage.source.record())
        await self._do_wanted()
        words, doubted = "it has not answered", False
        deadline = trio.current_time() + self._setting.patience_s
        while trio.current_time() < deadline:
            if self._consumer.exit_code is not None:
                self.verdict.wrong = f"it has ended with exit code {self._consumer.exit_code}"
                return
            if await self._serve():
                deadline = trio.current_time() + self._setting.patience_s
            answer = await ask(self._connection)
            if answer is not None:
                self.verdict.answered = True
                words = self._difference(answer)
                if not words:
                    return
                if answer.place is not None and answer.place >= self._relevant_seq() and not self._requests:
                    if doubted:  # twice, since a place may be told before its event is applied
                        break
                    doubted = True
                else:
                    doubted = False
            await trio.sleep(ASK_EVERY_S)
        self.verdict.wrong = words

    def _difference(self, answer: Answer) -> str:
        """In words, what is not as in the source."""
        found = []
        for name in self._stage.tables:
            words = Expected.of(self._stage.source.live(name)).difference(answer.tables.get(name))
            if words:
                found.append(f"{name} {words}")
        return "; ".join(found)

    def _relevant_seq(self) -> int:
        """The last message that concerns the consumer's tables."""
        wanted = [subjects.cdc_event(name, "") for name in (*self._stage.tables, subjects.BRIDGE_TOKEN)]
        return max(
            (
                step["seq"] for step in self.verdict.steps
                if step["step"] == "message" and step["stream"] == subjects.CDC and step["subject"].startswith(tuple(wanted))
                and "Nats-Msg-Id" in step["headers"] and not step["headers"]["Nats-Msg-Id"].startswith("order-")
            ),
            default=0,
        )  # fmt: skip

    async def _serve(self) -> bool:
        """Take the snapshots that were asked for; return whether any was."""
        if not self._requests:
            return False
        asked = [subjects.parse(subject) for subject in dict.fromkeys(self._requests)]
        self._requests.clear()
        for request in asked:
            if request is None or request.token not in self._stage.source.tables:
                continue
            self._served += 1
            serve(self._stage, request.token, random.Random(f"{self._setting.seed} {self._served}"))
        self.verdict.asked = self._served
        await self._api(f"STREAM.PURGE.{subjects.REQUESTS}", {})
        self._stage.wanted.append(self._stage.source.record())
        await self._do_wanted()
        return True


@asynccontextmanager
async def _connections(server: NatsServer) -> AsyncGenerator[Connect]:
    """Yield what opens a connection, which ends with the body, or when the server is restarted."""
    async with trio.open_nursery() as nursery:

        async def hold(*, task_status: trio.TaskStatus[NatsConnection]) -> None:
            try:
                async with open_nats(NatsConfig((server.url,)), set()) as connection:
                    task_status.started(connection)
                    await trio.sleep_forever()
            except* SinkUnavailable:
                pass

        async def open_one() -> NatsConnection:
            connection: NatsConnection = await nursery.start(hold)
            return connection

        yield open_one
        nursery.cancel_scope.cancel()


async def run_trial(setting: Setting, server: NatsServer, acts: Sequence[Act]) -> tuple[Verdict, str]:
    """Try a consumer with an empty folder on fresh streams; return what came of it, and the last lines that it printed."""
    folder = Path(tempfile.mkdtemp(prefix="walbridge-certify-"))
    proxy = Proxy(server.port)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(proxy.serve)
            consumer = Consumer(setting.command, folder, f"nats://127.0.0.1:{proxy.port}", setting.tables)
            try:
                async with _connections(server) as connect:
                    verdict = await Trial(setting, server, proxy, consumer, connect).run(acts)
                return verdict, consumer.log_tail()
            finally:
                consumer.close()
                nursery.cancel_scope.cancel()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
