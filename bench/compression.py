"""What zstd saves, without a dictionary and with one: on three unlike tables, by the message and by the chunk.

Events and chunks are the bridge's own, from rows in a real PostgreSQL: the same way as `walbridge train` takes.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import trio
from psycopg import sql

from actors.clients.postgres.connection import PgConnection
from actors.clients.postgres.publications import published_tables
from actors.clients.postgres.table_sample import TableSample, sample_table
from actors.contract.compression import Compressor
from actors.contract.event_encoder import event_encoder
from actors.contract.table_schema import describe_table
from actors.dictionaries.training import ENCODINGS, MONTH_S, Measured, Trained, chunks_of, events_of, measure, train_dictionary
from actors.sample.rows import COLUMNS, Row, SampleRows
from actors.settings.config import PostgresConfig
from bench.servers import Servers

ROWS = 40_000
SAMPLE_ROWS, SAMPLE_BYTES = 20_000, 40_000_000
SIZES_BYTES = (4 * 1024, 16 * 1024, 64 * 1024)
USUAL_BYTES = 16 * 1024
PACKS = (10, 100)

PUBLICATION = "zstd_pub"
SCHEMA = f"""
CREATE TABLE users (id bigserial PRIMARY KEY, name text, email text, age int, price numeric, created_at timestamptz);
CREATE TABLE documents (id bigserial PRIMARY KEY, kind text, body jsonb, updated_at timestamptz);
CREATE TABLE readings (sensor int, at timestamptz, temperature float8, humidity float8, status smallint,
  PRIMARY KEY (sensor, at));
CREATE PUBLICATION {PUBLICATION} FOR TABLE users, documents, readings;
"""


@dataclass(frozen=True, slots=True)
class TableResult:
    """One table's figures."""

    table: str
    events: list[Measured]
    """A dictionary of 16 KB, messages of 1, 10 and 100 events, in both encodings; `what` tells how many."""
    chunks: list[Measured]
    sizes: dict[int, float]
    """Size of a dictionary -> what it saves on single MessagePack events."""


def run_compression(servers: Servers, say: Callable[[str], None]) -> list[TableResult]:
    """Fill the tables, train, measure on the rows that were not trained on."""
    makers = {"users": _users, "documents": _documents, "readings": _readings}
    with servers.connect() as connection:
        connection.execute(SCHEMA.encode())
        for table, maker in makers.items():
            columns, rows = maker()
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
                sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
            )
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                for _ in range(ROWS):
                    copy.write_row(next(rows))
        connection.execute("ANALYZE")
    found: list[TableResult] = []
    for table in makers:
        result = _measure(trio.run(_sample, servers.postgres.dsn(), table))
        found.append(result)
        event = result.events[0]
        say(f"  {table:<10} one event {event.saved(event.zstd_bytes):.1%} -> {event.saved(event.dictionary_bytes):.1%}")
    return found


async def _sample(dsn: str, table: str) -> TableSample:
    connection = await PgConnection.connect(PostgresConfig(dsn), application_name="bench")
    try:
        (published,) = [t for t in await published_tables(connection, PUBLICATION) if t.name == table]
        return await sample_table(connection, published, rows_max=SAMPLE_ROWS, bytes_max=SAMPLE_BYTES)
    finally:
        connection.close()


def _measure(sample: TableSample) -> TableResult:
    table = describe_table(sample.relation, sample.description).table
    trained: dict[int, Trained] = {size: train_dictionary(sample, size) for size in SIZES_BYTES}
    usual = Compressor(table.token, trained[USUAL_BYTES].dictionary)
    untouched = sample.rows[1::2]
    events: list[Measured] = []
    chunks: list[Measured] = []
    for encoding in ENCODINGS:
        encoder = event_encoder(encoding)
        events.append(measure("1", encoding, list(events_of(sample, table, encoder, encoding, untouched, MONTH_S)), usual))
        for pack in PACKS:  # of one subject and transaction, as --pack has them
            made = events_of(
                sample, table, encoder, encoding, untouched, MONTH_S, changes=(pack, pack), inserts_only=True
            )  # fmt: skip
            bodies = list(made)
            packed = [encoder.pack(bodies[i : i + pack]) for i in range(0, len(bodies), pack)]
            events.append(measure(str(pack), encoding, packed, usual))
        chunks.append(measure("chunk", encoding, list(chunks_of(sample, table, encoder, encoding, untouched)), usual))
    sizes = {
        size: next(f.saved(f.dictionary_bytes) for f in one.figures if f.what == "event" and f.encoding == "msgpack")
        for size, one in trained.items()
    }
    return TableResult(table.token, events, chunks, sizes)


# -- three tables


def _users() -> tuple[tuple[str, ...], Iterator[Row]]:
    return COLUMNS["users"], SampleRows(1).rows("users")


def _documents() -> tuple[tuple[str, ...], Iterator[Row]]:
    """About a kilobyte of jsonb: nested, with texts, codes and numbers."""
    pick = random.Random(2)
    samples = SampleRows(2)

    def code(length: int) -> str:
        return "".join(pick.choices(string.ascii_lowercase + string.digits, k=length))

    def rows() -> Iterator[Row]:
        while True:
            name, email, *_ = samples.user()
            body = {
                "id": code(24),
                "customer": {"name": name, "email": email, "locale": pick.choice(["en-GB", "de-DE", "fr-FR", "ja-JP"])},
                "items": [
                    {"sku": code(10).upper(), "quantity": pick.randint(1, 9), "price": round(pick.lognormvariate(3, 1), 2),
                     "title": " ".join(samples.words(3)), "color": samples.words(1)[0], "weight_g": pick.randrange(5000)}
                    for _ in range(pick.randint(2, 6))
                ],
                "delivery": {"method": pick.choice(["post", "courier"]), "note": " ".join(samples.words(pick.randrange(12)))},
                "flags": {"gift": pick.random() < 0.1, "express": pick.random() < 0.3, "reviewed": pick.random() < 0.5},
                "session": code(32),
            }  # fmt: skip
            yield pick.choice(["order", "order", "quote", "return"]), json.dumps(body), samples.time()

    return ("kind", "body", "updated_at"), rows()


def _readings() -> tuple[tuple[str, ...], Iterator[Row]]:
    """Two hundred sensors that tell every ten seconds what they see: numbers only, close to the last ones."""
    pick = random.Random(3)

    def rows() -> Iterator[Row]:
        temperature = [pick.uniform(5, 30) for _ in range(200)]
        humidity = [pick.uniform(20, 90) for _ in range(200)]
        at = datetime(2026, 1, 1, tzinfo=UTC)
        while True:
            at += timedelta(seconds=10)
            for sensor in range(200):
                temperature[sensor] += pick.gauss(0, 0.1)
                humidity[sensor] += pick.gauss(0, 0.3)
                when = at + timedelta(microseconds=pick.randrange(1_000_000))
                yield sensor, when, round(temperature[sensor], 3), round(humidity[sensor], 2), int(pick.random() < 0.01)

    return ("sensor", "at", "temperature", "humidity", "status"), rows()
