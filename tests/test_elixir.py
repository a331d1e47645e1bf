"""The live copy in Elixir, where Elixir is installed: equal to its table in each encoding, through faults, and ended by a clear word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import zstandard

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.programs import printed, running
from tests.servers import ROOT, Database
from tests.snapshots import ask

pytestmark = pytest.mark.skipif(shutil.which("elixir") is None, reason="no Elixir here")


def live_copy(tables: str, **variables: str) -> list[str]:
    named = [f"{name}={value}" for name, value in {"TABLES": tables, **variables}.items()]
    return ["env", *named, "elixir", str(ROOT / "consumers" / "elixir" / "live_copy.exs")]


def rows(line: str, table: str = "users") -> list[dict[str, Any]]:
    """What a line says that the table holds, by its key."""
    assert line.startswith(f"{table} ["), line
    return sorted(json.loads(line.removeprefix(f"{table} ")), key=lambda row: row["id"])


def in_postgres(database: Database) -> list[dict[str, Any]]:
    return [row for (row,) in database.execute("SELECT to_json(u) FROM users u ORDER BY id")]


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ((), {"FORMAT": "msgpack", "COMPRESSION": "none"}),
        (("--json", "--pack", "10"), {"FORMAT": "json"}),
        pytest.param(
            ("--zstd", "--zstd-events"), {"COMPRESSION": "zstd"},
            marks=pytest.mark.skipif(shutil.which("zstd") is None, reason="no program zstd here"),
        ),
    ],
)  # fmt: skip
def test_the_copy_equals_the_table_also_after_its_connection_was_lost(
    flags: tuple[str, ...], variables: dict[str, str], database: Database, nats: NatsServer, make_bridge: MakeBridge,
    tmp_path: Path,
) -> None:  # fmt: skip
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, notes text, seen float8, big bigint, more jsonb)")
    database.execute("ALTER TABLE users ALTER notes SET STORAGE EXTERNAL; CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("""INSERT INTO users VALUES (1, 'Ada', repeat('x', 3000), 1.5, 4611686018427387904, '{"a": [1, -2.5, "\\u00e9\\ud83d\\ude00\\n"]}'),
                        (2, 'Grace', NULL, -1e-7, -70000, '[]')""")
    samples = [f"User-{i} of the table users".encode() for i in range(500)]
    (tmp_path / "users.zstd.dict").write_bytes(zstandard.train_dictionary(2048, samples).as_bytes())
    make_bridge(database, nats, "--dictionaries", str(tmp_path), *flags)
    with running(tmp_path / "printed", nats.url, *live_copy("users", **variables)) as output:
        assert [row["notes"] for row in rows(printed(output, 1)[0])] == ["x" * 3000, None]
        database.execute("UPDATE users SET name = 'Ada L.' WHERE id = 1")  # its notes are unchanged TOAST
        database.execute("UPDATE users SET id = 5 WHERE id = 2; INSERT INTO users VALUES (6, 'Edsger', '')")
        assert len(rows(printed(output, 4)[-1])) == 3
        nats.restart()
        database.execute("DELETE FROM users WHERE id = 6; INSERT INTO users VALUES (7, 'Bärbel \U0001f600', 'z')")
        found, wanted = rows(printed(output, 6)[-1]), in_postgres(database)
        assert [{**row, "big": row["big"] and int(row["big"])} for row in found] == wanted
        database.execute("TRUNCATE users")
        assert rows(printed(output, 7)[-1]) == []


def test_a_copy_ends_on_an_unknown_table_and_is_made_again_when_no_event_tells_what_the_table_holds(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int, region int, notes text, PRIMARY KEY (id, region))")
    database.execute("ALTER TABLE users ALTER notes SET STORAGE EXTERNAL")
    database.execute("INSERT INTO users SELECT g, 0, repeat('x', 3000) FROM generate_series(1, 2) g")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users WHERE (region = 1)")
    bridge = make_bridge(database, nats)
    with running(tmp_path / "unknown", nats.url, *live_copy("nobody")) as output:
        assert printed(output.with_suffix(".err"), 1)[-1].startswith("unknown_table: no table nobody in publication cdc_pub")
    with running(tmp_path / "printed", nats.url, *live_copy("users")) as output:
        assert rows(printed(output, 1)[0]) == []
        database.execute("UPDATE users SET region = 1 WHERE id = 1")  # its notes are not sent
        assert "row filter" in printed(output, 2)[1]
        assert [len(row["notes"]) for row in rows(printed(output, 3)[2])] == [3000]
        database.execute("ALTER TABLE users ADD age int DEFAULT 7; INSERT INTO users VALUES (3, 1, 'z', 8)")
        assert printed(output, 4)[3] == "users copying again: its columns have changed"
        assert [row["age"] for row in rows(printed(output, 5)[4])] == [7, 8]
        database.execute("ALTER PUBLICATION cdc_pub SET TABLE users WHERE (region IN (0, 1))")
        ask(nats.url, "nobody_knows_this")  # has the publication looked at
        assert printed(output, 6)[5].startswith("users copying again: it is published differently")
        assert len(rows(printed(output, 7)[6])) == 3
        bridge.stop()
        database.execute("SELECT pg_drop_replication_slot('cdc_slot')")
        database.execute("DELETE FROM users WHERE id = 3")
        make_bridge(database, nats, "--accept-gap")
        assert printed(output, 8)[7].startswith("users copying again: changes are lost: ")
        assert [row["id"] for row in rows(printed(output, 9)[8])] == [1, 2]


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"TABLES": ""}, "TABLES is not set"),
        ({"FORMAT": "json"}, "a body is MessagePack, and FORMAT is json"),
    ],
)
def test_what_cannot_work_ends_with_a_clear_word(
    variables: dict[str, str], word: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    with running(tmp_path / "printed", nats.url, *live_copy(**{"tables": "users", **variables})) as output:
        said = printed(output.with_suffix(".err"), 1)
        assert any(word in line for line in said), said
