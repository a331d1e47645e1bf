"""The histories that are recorded from a real bridge on real servers: every kind of value, in each encoding that a bridge has."""

from __future__ import annotations

import base64
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psycopg
import trio

from actors.certify.history import COPYING, LIVE, Draft, History, Step
from actors.certify.source import kv_step
from actors.clients.nats.connection import open_nats
from actors.clients.nats.jetstream import JetStream
from actors.contract import subjects
from actors.contract.decoding import decode_body
from actors.embedded.bridge import Bridge
from actors.embedded.servers import EmbeddedServers, start_embedded
from actors.settings.config import NatsConfig

VARIANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "values-msgpack": ((), (), ()),
    "values-json": (("--json",), (), ()),
    "values-packed": (("--pack", "10"), ("message.packed",), ()),
    "values-zstd": (("--zstd", "--zstd-events", "--json"), ("message.compressed",), ("zstd",)),
    "values-array-format": (("--snapshot-format", "array"), ("snapshot.array",), ("array-format",)),
    "values-array-format-json": (("--snapshot-format", "array", "--json"), ("snapshot.array",), ("array-format",)),
}
"""Name -> flags of the bridge, rules that it tries beyond those of all, needs."""
RULES = ("message.encoding", "values.types", "values.bigint", "table.token", "table.composite-key")
TOKENS = {"kinds": 'public."kinds"', "sales/Order=20Lines": 'sales."Order Lines"'}
KEPT_HEADERS = ("Nats-Msg-Id", "Walbridge-Msg-Id", "Content-Encoding", "Dictionary-Id", "Snapshot-Id", "Chunk")
TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE kinds (
  id bigint PRIMARY KEY, small smallint, int4 integer, single real, double double precision, digits numeric, yes boolean,
  words text, code varchar(20), id2 uuid, day date, at timestamptz, local timestamp, doc json, docb jsonb, bytes bytea,
  list integer[], names text[], mood mood, span int4range, address inet, took interval
);
CREATE SCHEMA sales;
CREATE TABLE sales."Order Lines" (order_id integer, "line.no" integer, "the total" numeric(10,2), PRIMARY KEY (order_id, "line.no"));
"""
ROWS = r"""
INSERT INTO kinds VALUES
 (1, 1, -1, 1.5, 0.1, 12.340, true, 'ä ☃ 😀', 'code', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2025-12-12',
  '2025-12-12 12:00:34.338547+00', '2025-12-12 12:00:34.5', '{"a": [1, 2.50, null]}', '{"b": {"c": "d"}}', '\x00ff10', '{1,2,NULL}',
  '{"a b","c,d",NULL}', 'happy', '[1,5)', '10.0.0.0/8', '1 day 02:03:04'),
 (9007199254740993, 32767, 2147483647, 'Infinity', 'NaN', 'NaN', false, '', NULL, NULL, 'infinity', '-infinity',
  '0044-03-15 00:00:00 BC', 'null', '12345678901234567890.123456789', '\x', '{}', '{{a,b},{c,d}}', 'sad', 'empty', '::1', '-1 mon'),
 (-3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO sales."Order Lines" VALUES (1, 1, 10), (1, 2, 0.05), (2, 1, NULL);
"""
CHANGES = (
    """
UPDATE kinds SET id = 9007199254740994, small = small - 1, words = E'tab\\t nul\\\\0 "quoted"' WHERE id = 9007199254740993;
UPDATE kinds SET double = '-Infinity', docb = '"a text"', list = '[0:1]={7,8}', digits = 1e-20 WHERE id = 1;
DELETE FROM kinds WHERE id = -3;
UPDATE sales."Order Lines" SET "line.no" = "line.no" + 10 WHERE order_id = 1;
DELETE FROM sales."Order Lines" WHERE order_id = 2;
INSERT INTO sales."Order Lines" VALUES (2, 1, 99999999.99), (3, 3, 0);
""",
    """
UPDATE kinds SET at = '2026-01-01 00:00:00+01', doc = NULL, bytes = '\\xdeadbeef', yes = NOT yes;
TRUNCATE sales."Order Lines";
INSERT INTO sales."Order Lines" VALUES (7, 7, 7.70);
""",
)


def histories() -> Iterator[History]:
    """Record all of them. Takes about half a minute."""
    with tempfile.TemporaryDirectory(prefix="walbridge-histories-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL runs as another user if we are root
        with start_embedded(Path(folder) / "servers") as servers:
            for number, name in enumerate(VARIANTS):
                with ExitStack() as stack:
                    yield Recording(name, number, servers, Path(folder), stack).record()


class Recording:
    """One variant: a database, a bridge with streams of its own, and what they store."""

    def __init__(self, name: str, number: int, servers: EmbeddedServers, folder: Path, stack: ExitStack) -> None:
        self._flags, rules, needs = VARIANTS[name]
        about = f"Values of all kinds, recorded from a bridge with the flags: {' '.join(self._flags) or 'none'}."
        self.draft = Draft(name, about, (*RULES, *rules), tuple(TOKENS), needs)
        self._servers, self._folder, self._database = servers, folder, f"history_{number}"
        self._read: dict[str, int] = {}
        self._stack = stack

    def record(self) -> History:
        """Record it."""
        with psycopg.connect(self._servers.database_url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {self._database}".encode())
        url = self._servers.database_url.rpartition("/")[0] + f"/{self._database}"
        with psycopg.connect(url) as connection:
            connection.execute("SET timezone = 'UTC'")
            for sql in (TABLES, ROWS, 'CREATE PUBLICATION cdc_pub FOR TABLE kinds, sales."Order Lines"'):
                connection.execute(sql.encode())
            connection.commit()
            trio.run(self._clear)
            flags = (*self._flags, "--dictionaries", str(self._dictionaries()))
            bridge = Bridge(url, self._servers.nats, self._folder, *flags, slot=self._database)
            bridge.start()
            self._stack.callback(bridge.stop)
            self._write(connection)
        return self.draft.done()

    def _dictionaries(self) -> Path:
        folder = self._folder / f"{self._database}-dictionaries"
        folder.mkdir()
        known = Path(__file__).parents[2] / "dictionaries" / "test_types.zstd.dict"
        (folder / "kinds.zstd.dict").write_bytes(known.read_bytes())
        return folder

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        for stream in (subjects.CDC, subjects.INIT):
            self.draft.add({"step": "stream", "stream": stream, "first_seq": 1})
        self._take()
        self.draft.start()
        absent = {"state": COPYING, "columns": None}
        self._expect("no copy yet: it asks for snapshots", dict.fromkeys(TOKENS, absent), asked=tuple(TOKENS))
        trio.run(self._ask)
        self._take(until="init.meta.")
        self._expect("the snapshots are the copies", self._tables(connection))
        for sql in CHANGES:
            connection.execute(sql.encode())
            connection.commit()
            self._take(until="cdc.")
            self._expect("applied", self._tables(connection))

    def _expect(self, why: str, tables: dict[str, Any], asked: tuple[str, ...] = ()) -> None:
        self.draft.add({"step": "expect", "why": why, "tables": tables, "asked": list(asked)})

    def _tables(self, connection: psycopg.Connection[Any]) -> dict[str, Any]:
        found = {}
        for token, name in TOKENS.items():
            columns = connection.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " ORDER BY attnum",
                (name,),
            ).fetchall()
            # by its output function: the cast of inet to text is another
            listed = ", ".join(
                f"""CASE WHEN "{column}" IS NOT NULL THEN format('%s', "{column}") END""" for column, _ in columns
            )
            rows = connection.execute(f"SELECT {listed} FROM {name} ORDER BY 1".encode()).fetchall()
            connection.commit()
            shown = [[_json_of(value, kind) for value, (_, kind) in zip(row, columns, strict=True)] for row in rows]
            found[token] = {"state": LIVE, "columns": [list(column) for column in columns], "rows": shown}
        return found

    # -- what the bridge has stored

    def _config(self) -> NatsConfig:
        servers = self._servers
        return NatsConfig((servers.nats_url,), user=servers.nats_user, password=servers.nats_password)

    async def _clear(self) -> None:
        async with open_nats(self._config(), set()) as connection:
            js = JetStream(connection)
            buckets = map(subjects.bucket_stream, (subjects.BRIDGES, subjects.DICTIONARIES, subjects.SCHEMAS))
            for name in (subjects.CDC, subjects.INIT, subjects.REQUESTS, *buckets):
                await js.delete_stream(name)

    async def _ask(self) -> None:
        async with open_nats(self._config(), set()) as connection:
            for token in TOKENS:
                await JetStream(connection).publish(subjects.request(token), b"")

    def _take(self, until: str = "") -> None:
        """Take what is new, after as much as `until` says has come: a meta of each table, or the end of a transaction."""
        deadline, new = time.monotonic() + 60, list[Step]()
        while True:
            new += trio.run(self._new)
            metas = [step for step in new if step.get("subject", "").startswith("init.meta.")]
            last = [step for step in new if step["step"] == "message" and "last" in str(step.get("shows"))]
            if not until or (until == "init.meta." and len(metas) == len(TOKENS)) or (until == "cdc." and last):
                break
            assert time.monotonic() < deadline, f"no {until} came"
            time.sleep(0.1)
        time.sleep(1.5 if until else 0)  # the bridge writes its record when it is idle
        self.draft.add(*new, *trio.run(self._new))

    async def _new(self) -> list[Step]:
        """What came since, buckets first: a message must find its dictionary."""
        steps: list[Step] = []
        async with open_nats(self._config(), set()) as connection:
            js = JetStream(connection)
            for name in (*map(subjects.bucket_stream, (subjects.DICTIONARIES,)), subjects.CDC, subjects.INIT):
                steps += await self._new_of(js, name)
            entry = await js.kv_get(subjects.BRIDGES, subjects.CDC)
            if entry is not None:
                steps.append(kv_step(subjects.BRIDGES, subjects.CDC, entry.data))
        return steps

    async def _new_of(self, js: JetStream, name: str) -> list[Step]:
        steps: list[Step] = []
        if await js.stream_info(name) is None:
            return steps
        while (message := await js.get_message(name, seq=self._read.get(name, 0) + 1, next_by_subj=">")) is not None:
            self._read[name] = message.seq
            bucket = subjects.bucket_of(name) if name.startswith("KV_") else ""
            if bucket:
                steps.append(kv_step(bucket, message.subject.removeprefix(f"$KV.{bucket}."), message.data))
                continue
            headers = {key: value for key, value in message.headers.items() if key in KEPT_HEADERS}
            step: Step = {
                "step": "message", "stream": name, "seq": message.seq, "subject": message.subject, "headers": headers,
                "body": base64.b64encode(message.data).decode(),
            }  # fmt: skip
            if "Content-Encoding" not in headers:
                step["shows"] = orjson.loads(msgspec.json.encode(decode_body(message.data)))
            steps.append(step)
        return steps


def _json_of(text: str | None, kind: str) -> Any:
    """A value that PostgreSQL has printed, as the JSON form of events has it. Written from the documents' table."""
    if text is None:
        return None
    if kind == "boolean":
        return text == "t"
    if kind == "bytea":
        return base64.b64encode(bytes.fromhex(text.removeprefix("\\x"))).decode()
    if kind.startswith("timestamp") and "infinity" not in text and "BC" not in text:
        return text.replace(" ", "T").replace("+00", "Z")
    is_number = kind in ("smallint", "integer") or (kind == "bigint" and abs(int(text)) < 2**53)
    is_float = kind in ("real", "double precision") and text.strip("-") not in ("NaN", "Infinity")
    return int(text) if is_number else float(text) if is_float else text
