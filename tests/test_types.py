"""Every type of the contract, section 4: what an event says against what psycopg reads from the table."""

from __future__ import annotations

import base64
import math
from typing import Any

import psycopg
import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.servers import Database, wait_for_events

TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok"', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN very_positive AS positive;
CREATE DOMAIN moods AS mood[];
CREATE TABLE types (
  id int PRIMARY KEY, i2 smallint, i8 bigint, o oid, f4 real, f8 double precision, n numeric, m money, b boolean,
  t text, v varchar(50), c char(5), nm name, u uuid, d date, ts timestamp, tz timestamptz, ti time, tt timetz, iv interval,
  j json, jb jsonb, by bytea, e mood, r int4range, ip inet, bi bit(4), p pair, dom positive, dom2 very_positive,
  ai int[], at text[], am int[][], ae mood[], ad positive[], adm moods, aj jsonb[], ab box[], atz timestamptz[],
  afl float8[], aby bytea[], px xid8, vec tsvector
);
CREATE PUBLICATION cdc_pub FOR TABLE types;
"""
ROWS: list[dict[str, str]] = [
    {},  # all NULL
    {
        "i2": "-32768", "i8": "9223372036854775807", "o": "4294967295", "f4": "0.1", "f8": "1.7976931348623157e308",
        "n": "123.4500", "m": "12.5", "b": "true", "t": "Grüße\n\"quoted\" \\ 😀", "v": "", "c": "ab", "nm": "name",
        "u": "f4b0611f-7258-47f8-bceb-0eba9ac5195a", "d": "2025-12-12", "ts": "2025-12-12 12:00:34.338547",
        "tz": "2025-12-12 13:00:34.338547+01", "ti": "12:00:00.5", "tt": "12:00:00+02", "iv": "1 year 2 days 03:04:05.6",
        "j": '{"a": [1, 2.5, "x"]}', "jb": '{"k": {"n": null, "t": true}}', "by": "\\x00ff10", "e": "it's \"ok\"",
        "r": "[1,5)", "ip": "10.0.0.1/24", "bi": "1010", "p": "(1,\"a b\")", "dom": "7", "dom2": "8",
        "ai": "{1,NULL,-3}", "at": '{"a b","with \\"quotes\\" and \\\\",NULL,"NULL",""}', "am": "{{1,2},{3,4}}",
        "ae": '{sad,"it\'s \\"ok\\""}', "ad": "{1,2}", "adm": "{happy}", "aj": '{"{\\"a\\": 1}",NULL}',
        "ab": "{(1,1),(0,0);(3,3),(2,2)}", "atz": '{"2025-12-12 12:00:00+00",infinity}', "afl": "{1.5,-0.25}",
        "aby": '{"\\\\x01ff",NULL}', "px": "18446744073709551615", "vec": "a fat cat",
    },
    {
        "i8": "-9007199254740993", "f4": "NaN", "f8": "-Infinity", "n": "NaN", "d": "infinity", "ts": "-infinity",
        "tz": "infinity", "j": '{"a": 1, "a": 2}', "jb": "null", "at": "{}", "ai": "[0:1]={1,2}", "afl": "{NaN}",
    },
    {
        "d": "0044-03-15 BC", "ts": "0044-03-15 12:00:00 BC", "tz": "0044-03-15 12:00:00+00 BC", "f8": "5e-324",
        "n": "0.00000000000000000001", "jb": '{"big": 12345678901234567890123, "s": "x"}', "j": "[1e400]",
        "aj": '{"12345678901234567890123"}', "i8": "9007199254740991", "f4": "1e10", "t": "", "at": '{{"a"},{"b"}}',
    },
    {"jb": "[" * 101 + "]" * 101, "j": '"\\ud800"', "tz": "2025-12-12 12:00:34+00", "iv": "-1 mons", "n": "1e50"},
    {"jb": '{"f": 0.1, "i": 9007199254740993, "e": 1.10}', "j": " { } ", "by": "\\x", "am": "{}", "t": "\\x41"},
]  # fmt: skip


@pytest.fixture
def typed_rows(database: Database) -> Database:
    database.execute(TYPES)
    return database


def insert_rows(database: Database) -> None:
    for number, row in enumerate(ROWS):
        columns = ", ".join(["id", *row])
        values = ", ".join([str(number), *("'" + v.replace("'", "''") + "'" for v in row.values())])
        database.execute(f"INSERT INTO types ({columns}) VALUES ({values})")


def as_text(database: Database) -> list[dict[str, str | None]]:
    """The rows as PostgreSQL prints them under the pinned settings."""
    with psycopg.connect(database.dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        connection.execute("SET timezone = 'UTC'; SET bytea_output = 'hex'; SET intervalstyle = 'postgres'")
        names = [r["attname"] for r in connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'types'::regclass AND attnum > 0 ORDER BY attnum")]  # fmt: skip
        casts = ", ".join(f'"{n}"::text AS "{n}"' if n != "c" else '"c" AS "c"' for n in names)
        return connection.execute(f"SELECT {casts} FROM types ORDER BY id").fetchall()


def native_values(database: Database) -> list[dict[str, Any]]:
    """The rows as psycopg converts them; dates beyond Python's stay out."""
    with psycopg.connect(database.dsn, row_factory=psycopg.rows.dict_row) as connection:
        connection.execute("SET timezone = 'UTC'")
        return connection.execute("SELECT id, i2, i8, o, f4, f8, b, t, v, u, by, ai, afl, am FROM types ORDER BY id").fetchall()


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


TEXT_COLUMNS = [
    "n",
    "m",
    "t",
    "v",
    "c",
    "nm",
    "u",
    "ti",
    "tt",
    "iv",
    "e",
    "r",
    "ip",
    "bi",
    "p",
    "d",
    "px",
    "vec",
]  # as PostgreSQL prints them, in every mode


def check_common(event: dict[str, Any], text: dict[str, str | None]) -> None:
    data = event["data"]
    assert list(data) == list(text)
    for column in TEXT_COLUMNS:
        assert data[column] == text[column], column
    for column, suffix in (("ts", ""), ("tz", "Z")):
        printed = text[column]
        if printed is not None and printed[0].isdigit() and not printed.endswith("BC"):
            printed = printed.removesuffix("+00").replace(" ", "T") + suffix
        assert data[column] == printed, column
    assert data["dom"] == (None if text["dom"] is None else int(text["dom"]))
    assert data["dom2"] == (None if text["dom2"] is None else int(text["dom2"]))


@pytest.mark.parametrize("version", [18, 15])
def test_msgpack_values_are_what_psycopg_reads(
    version: int, request: pytest.FixtureRequest, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database: Database = request.getfixturevalue("database" if version == 18 else "database15")
    database.execute(TYPES)
    make_bridge(database, nats)
    insert_rows(database)
    events = [e.body for e in wait_for_events(nats.url, len(ROWS))]
    for event, text, native in zip(events, as_text(database), native_values(database), strict=True):
        check_common(event, text)
        data = event["data"]
        for column in ("id", "i2", "i8", "o", "f8", "b"):
            assert same(data[column], native[column]), (column, data[column], native[column])
        assert data["f4"] is None or math.isnan(data["f4"]) or data["f4"] == float(text["f4"] or 0)
        assert data["by"] == native["by"]
        for column in ("ai", "at", "am", "ae", "ad", "adm", "aj", "ab", "atz", "afl", "aby"):
            assert data[column] == text[column], "literal arrays are PostgreSQL's text"
    assert [e.get("raw", []) for e in events] == [[], [], ["j", "jb"], ["j", "jb"], ["j", "jb"], []]
    assert events[1]["data"]["j"] == {"a": [1, 2.5, "x"]}
    assert events[1]["data"]["jb"] == {"k": {"n": None, "t": True}}
    assert events[2]["data"]["jb"] == "null"
    assert events[5]["data"]["jb"] == {"f": 0.1, "i": 9007199254740993, "e": 1.1}


def test_json_values_are_exact_or_named_raw(typed_rows: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    make_bridge(typed_rows, nats, "--json")
    insert_rows(typed_rows)
    stored = wait_for_events(nats.url, len(ROWS))
    texts = as_text(typed_rows)
    for event, text in zip(stored, texts, strict=True):
        check_common(event.body, text)
    data = [e.body["data"] for e in stored]
    raw = [e.body.get("raw", []) for e in stored]
    assert (data[1]["i8"], raw[1]) == ("9223372036854775807", ["i8"])
    assert (data[2]["i8"], data[3]["i8"]) == ("-9007199254740993", 9007199254740991)
    assert raw[2:] == [["i8", "j", "jb"], ["j", "jb"], ["j", "jb"], ["jb"]]
    assert (data[2]["f4"], data[2]["f8"]) == ("NaN", "-Infinity")
    assert (data[1]["f4"], data[1]["f8"], data[3]["f8"]) == (0.1, 1.7976931348623157e308, 5e-324)
    assert base64.b64decode(data[1]["by"]) == b"\x00\xff\x10"
    assert data[5]["by"] == ""


def test_arrays_as_lists_are_nested_and_convert_like_scalars(
    typed_rows: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    make_bridge(typed_rows, nats, "--arrays", "list")
    insert_rows(typed_rows)
    stored = wait_for_events(nats.url, len(ROWS))
    data = [e.body["data"] for e in stored]
    raw = [e.body.get("raw", []) for e in stored]
    row = data[1]
    assert row["ai"] == [1, None, -3]
    assert row["at"] == ["a b", 'with "quotes" and \\', None, "NULL", ""]
    assert row["am"] == [[1, 2], [3, 4]]
    assert row["ae"] == ["sad", 'it\'s "ok"']
    assert (row["ad"], row["adm"], row["aj"]) == ([1, 2], ["happy"], [{"a": 1}, None])
    assert row["ab"] == ["(1,1),(0,0)", "(3,3),(2,2)"]
    assert row["atz"] == ["2025-12-12T12:00:00Z", "infinity"]
    assert (row["afl"], row["aby"]) == ([1.5, -0.25], [b"\x01\xff", None])
    assert (data[2]["at"], data[5]["am"], data[3]["at"]) == ([], [], [["a"], ["b"]])
    assert data[2]["ai"] == "[0:1]={1,2}"
    assert "ai" in raw[2]
    assert "aj" in raw[3]
