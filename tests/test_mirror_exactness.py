"""The proof of the whole: two replicas, in SQLite and in PostgreSQL, equal their source, whatever happens on the way.

`verify` compares; what it would miss is looked for in test_verify_finds_every_altered_value. WALBRIDGE_TEST_SECONDS is how long
pgbench runs (the random loads take half of it), WALBRIDGE_TEST_SEED makes others of the random ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard

from actors.embedded.nats import NatsServer
from tests.conftest import DEBIAN_15, MakeBridge
from tests.mirrors import MirrorProcess
from tests.servers import HANG_S, Bridge, Database

SECONDS = float(os.environ.get("WALBRIDGE_TEST_SECONDS", "30"))
SEED = os.environ.get("WALBRIDGE_TEST_SEED", "1")

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def mirrors(database: Database, nats: NatsServer, tmp_path: Path) -> Iterator[list[MirrorProcess]]:
    """One of each kind, not started."""
    replica = Database(database.server, f"{database.name}_replica")
    both = [
        MirrorProcess(nats, f"sqlite:///{tmp_path}/replica.db", tmp_path),
        MirrorProcess(nats, replica.dsn, tmp_path),
    ]
    yield both
    for mirror in both:
        mirror.kill()
    replica.drop()


@pytest.fixture
def pgbench(postgres_bin_dir: Callable[[int], Path]) -> str:
    """The program; skips without one."""
    here = (str(postgres_bin_dir(18)), str(DEBIAN_15), None)
    found = next((program for folder in here if (program := shutil.which("pgbench", path=folder))), None)
    if found is None:
        pytest.skip("no pgbench")
    return found


def dice_of(name: str) -> random.Random:
    """What is random in a test, and how to have it again."""
    print(f"WALBRIDGE_TEST_SEED={SEED}")  # pytest shows it with a failure
    return random.Random(f"{SEED} {name}")


def kill_some(dice: random.Random, bridge: Bridge, mirrors: list[MirrorProcess], longest_s: float) -> None:
    """kill -9 one or several of them, and start them again after a while, or at once."""
    processes: list[Bridge | MirrorProcess] = [bridge, *(mirror for mirror in mirrors if mirror.process is not None)]
    victims = dice.sample(processes, dice.choice([1, 1, 1, len(processes)]))
    for victim in victims:
        victim.kill()
    if dice.random() < 0.5:
        time.sleep(dice.uniform(0, longest_s))
    for victim in victims:
        if isinstance(victim, Bridge):
            victim.start(ready=False)
        else:
            victim.start()


def assert_never_wrong(mirror: MirrorProcess) -> None:
    """A replica that is not what it should be is noticed and copied again; that it came to that is a fault all the same."""
    wrong = [line for line in mirror.log().splitlines() if " met " in line or "duplicate" in line or "UNIQUE" in line]
    assert not wrong, "\n".join(wrong)


# -- pgbench


def test_pgbench_with_everything_killed_at_random_leaves_both_replicas_equal(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirrors: list[MirrorProcess], pgbench: str
) -> None:
    dice = dice_of("pgbench")
    subprocess.run([pgbench, "--initialize", "--quiet", database.dsn], check=True, capture_output=True)
    database.execute("ALTER TABLE pgbench_history REPLICA IDENTITY FULL")  # it has no key
    database.execute("CREATE PUBLICATION cdc_pub FOR ALL TABLES")
    bridge = make_bridge(database, nats)
    for mirror in mirrors:
        mirror.start()
    with subprocess.Popen(
        [pgbench, "--client=4", f"--time={SECONDS:g}", f"--random-seed={dice.randrange(2**31)}", database.dsn],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as load:  # fmt: skip
        kills = 0
        while load.poll() is None:
            time.sleep(dice.uniform(0.1, 2))
            kill_some(dice, bridge, mirrors, 1.0)
            kills += 1
        assert load.stdout is not None
        said = load.stdout.read()
    assert load.returncode == 0, said
    assert kills >= SECONDS / 4, "that was no test"
    bridge.wait_ready()
    written = database.execute("SELECT count(*), sum(delta) FROM pgbench_history")
    assert written[0][0] > 100, said
    for mirror in mirrors:
        mirror.wait_live(4)
        mirror.assert_equal(database.dsn)
        assert_never_wrong(mirror)
        assert mirror.query("SELECT count(*), sum(delta) FROM pgbench_history") == written
        assert mirror.query("SELECT sum(abalance) FROM pgbench_accounts") == [(written[0][1],)]


# -- a random load

SCHEMA = """
CREATE SCHEMA sales;
CREATE TABLE keyed (id int PRIMARY KEY, name text, n numeric, big text);
ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;
CREATE TABLE pair (a int, b text, v int, PRIMARY KEY (b, a));
CREATE TABLE bag (a int, b text, d double precision);
ALTER TABLE bag REPLICA IDENTITY FULL;
CREATE TABLE wide (id int PRIMARY KEY, big text, doc jsonb, v int);
ALTER TABLE wide ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, v int);
CREATE UNIQUE INDEX by_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_code;
CREATE TABLE sales."odd name" (k int PRIMARY KEY, tags text[], v text);
CREATE TABLE done (id int PRIMARY KEY);
INSERT INTO keyed SELECT g, 'n' || g, g / 3.0, repeat(md5(g::text), 200) FROM generate_series(0, 200) g;
INSERT INTO bag SELECT g % 20, 'same', g % 3 FROM generate_series(1, 100) g;
INSERT INTO wide SELECT g, repeat(md5(g::text), 200), jsonb_build_object('g', g, 'x', 1.50), 0 FROM generate_series(0, 100) g;
CREATE PUBLICATION cdc_pub FOR TABLE keyed, pair, bag, wide, by_index, sales."odd name", done;
"""
TABLES = ("keyed", "pair", "bag", "wide", "by_index", 'sales."odd name"')
# {i}, {j}: small numbers, often the same; {t}: a text
CHANGES = {
    "keyed": """
INSERT INTO keyed SELECT {i} + g, {t}, {j} / 7.0, CASE {j} % 3 WHEN 0 THEN repeat(md5({t}), 200) END
  FROM generate_series(0, {j} * 6) g ON CONFLICT DO NOTHING
UPDATE keyed SET name = {t} WHERE id BETWEEN {i} AND {i} + 3
UPDATE keyed SET name = name, n = n * 1.000001 WHERE id = {i}
UPDATE keyed SET id = id + 1000 WHERE id = {i}
UPDATE keyed SET id = id - 1000, name = {t} WHERE id BETWEEN 1000 AND 1000 + {i}
UPDATE keyed SET big = repeat(md5({t}), 200 + {j}) WHERE id = {i}
UPDATE keyed SET big = NULL, n = NULL WHERE id = {i}
DELETE FROM keyed WHERE id BETWEEN {i} AND {i} + {j} % 4""",
    "pair": """
INSERT INTO pair SELECT {i} + g, {t}, {j} FROM generate_series(0, {j}) g ON CONFLICT DO NOTHING
INSERT INTO pair VALUES ({i}, {t}, {j}) ON CONFLICT (b, a) DO UPDATE SET v = pair.v + 1
UPDATE pair SET v = v + 1 WHERE a = {i}
UPDATE pair SET b = b || 'x' WHERE a = {i} AND length(b) < 20
UPDATE pair SET a = -a WHERE a BETWEEN {i} AND {i} + 5
DELETE FROM pair WHERE a = {i}""",
    "bag": """
INSERT INTO bag SELECT {i} % 20, 'same', 'NaN' FROM generate_series(0, {j}) g
INSERT INTO bag VALUES (NULL, NULL, NULL), ({i}, {t}, {j} / 10.0)
UPDATE bag SET b = {t} WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 20 LIMIT 2)
UPDATE bag SET d = -d WHERE a = {i} % 20
DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = {i} % 20 OR a IS NULL LIMIT 3)""",
    "wide": """
INSERT INTO wide VALUES ({i}, repeat(md5({t}), 200), '{{"a": [1, 2.50, null], "b": {j}}}', {j}) ON CONFLICT DO NOTHING
UPDATE wide SET v = v + 1 WHERE id BETWEEN {i} AND {i} + 3
UPDATE wide SET doc = doc || '{{"c": {j}.0}}' WHERE id = {i}
UPDATE wide SET id = id + 1000 WHERE id = {i}
UPDATE wide SET big = repeat(md5({t}), 300), doc = NULL WHERE id = {i}
DELETE FROM wide WHERE id IN ({i}, {i} + 1000)""",
    "by_index": """
INSERT INTO by_index SELECT {i}, 'c' || {i} || {t}, 0 ON CONFLICT DO NOTHING
UPDATE by_index SET v = v + 1 WHERE id BETWEEN {i} AND {i} + 5
UPDATE by_index SET code = code || 'd' WHERE id = {i} AND length(code) < 40
UPDATE by_index SET id = id + 1000 WHERE id = {i}
DELETE FROM by_index WHERE id = {i}""",
    'sales."odd name"': """
INSERT INTO sales."odd name" VALUES ({i}, ARRAY[{t}, NULL, 'a "b", c'], {t}) ON CONFLICT DO NOTHING
UPDATE sales."odd name" SET tags = array_append(tags, {t}) WHERE k = {i} AND cardinality(tags) < 10
UPDATE sales."odd name" SET v = NULL WHERE k BETWEEN {i} AND {i} + 9
DELETE FROM sales."odd name" WHERE k = {i}""",
}
STATEMENTS = {table: text.replace("\n  ", " ").strip().splitlines() for table, text in CHANGES.items()}
TOUCH = """
DELETE FROM keyed WHERE id = -1; INSERT INTO keyed (id) VALUES (-1); DELETE FROM pair WHERE a = 0 AND b = '';
INSERT INTO pair (a, b) VALUES (0, ''); INSERT INTO bag (a) VALUES (-1); DELETE FROM wide WHERE id = -1;
INSERT INTO wide (id) VALUES (-1); DELETE FROM by_index WHERE id = -1; INSERT INTO by_index (id, code) VALUES (-1, '');
DELETE FROM sales."odd name" WHERE k = -1; INSERT INTO sales."odd name" (k) VALUES (-1); INSERT INTO done VALUES (1);
"""
"""A new shape is told with the first row that has it; `done` comes last."""
TEXTS = ("", "x", "ä ☃", "it''s", '{1,"2"}', "\\N\t\\t\r\n\\.\n")
COLUMN_TYPES = (
    "int", "int DEFAULT 7", "text DEFAULT 'some'", "numeric(10,2) DEFAULT 1.5", "timestamptz DEFAULT now()", "jsonb DEFAULT '[1]'",
    "boolean", "bytea DEFAULT '\\x00ff'", "int[] DEFAULT '{1,2}'", "uuid",
)  # fmt: skip


class RandomLoad:
    """Writers, each with transactions of its own dice, until the end of the `with`."""

    def __init__(self, database: Database, seed: str, writers: int = 3) -> None:
        self._database, self._stop = database, threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(f"{seed} {n}"),), daemon=True) for n in range(writers)
        ]
        self.committed = self.reshaped = 0
        self.bugs: list[BaseException] = []

    def __enter__(self) -> RandomLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self.bugs, self.bugs

    def _write(self, dice: random.Random) -> None:
        # whoever waits for a lock is in a transaction of somebody who sleeps, or in a deadlock
        refused = (
            psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable,
            psycopg.errors.UndefinedColumn, psycopg.errors.DuplicateColumn, psycopg.errors.FeatureNotSupported,
            psycopg.errors.InvalidColumnDefinition,
        )  # fmt: skip
        try:
            with self._database.connect(autocommit=False) as connection:
                connection.execute("SET lock_timeout = '1s'")
                connection.commit()
                while not self._stop.is_set():
                    try:
                        self._transaction(connection, dice)
                    except refused:
                        connection.rollback()
                    time.sleep(dice.choice((0, 0, 0.02)))
        except BaseException as exc:
            self.bugs.append(exc)
            raise

    def _transaction(self, connection: Connection, dice: random.Random) -> None:
        tables = dice.sample(TABLES, dice.choice((1, 1, 2, 4)))
        saved = False
        for _ in range(dice.choice((1, 1, 2, 5, 20))):
            self._change(connection, dice, dice.choice(tables))
            if dice.random() < 0.1:
                connection.execute("ROLLBACK TO SAVEPOINT s" if saved and dice.random() < 0.7 else "SAVEPOINT s")
                saved = True
        if dice.random() < 0.03:
            time.sleep(dice.uniform(0, 0.6))  # open while others commit, snapshots are taken, processes are killed
        if dice.random() < 0.1:
            connection.rollback()
        else:
            connection.commit()
            self.committed += 1

    def _change(self, connection: Connection, dice: random.Random, table: str) -> None:
        kind = dice.random()
        if kind < 0.006:
            connection.execute(f"TRUNCATE {', '.join({table, dice.choice(TABLES)})}".encode())
        elif kind < 0.014:
            self._reshape(connection, dice, table)
        elif kind < 0.03:
            with connection.cursor().copy("COPY bag (a, b, d) FROM STDIN") as copy:
                for _ in range(dice.choice((1, 50, 300))):
                    copy.write_row((dice.randrange(20), "copied", dice.random()))
        else:
            statement = dice.choice(STATEMENTS[table])
            text = f"'{dice.choice(TEXTS)}{dice.randrange(30)}'"
            connection.execute(statement.format(i=dice.randrange(200), j=dice.randrange(12), t=text).encode())

    def _reshape(self, connection: Connection, dice: random.Random, table: str) -> None:
        added = [
            name
            for (name,) in connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attname LIKE 'more%%' AND NOT attisdropped",
                [table],
            )
        ]
        if added and dice.random() < 0.55:
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {dice.choice(added)}".encode())
        else:
            kind = dice.choice(COLUMN_TYPES)
            connection.execute(f"ALTER TABLE {table} ADD COLUMN more{dice.randrange(1000)} {kind}".encode())
        self.reshaped += 1


def train_for_keyed(folder: Path) -> None:
    """A dictionary for one of the tables."""
    folder.mkdir()
    sample = b"\x84\xa7subject\xb0cdc.keyed.insert\xa5table\xa5keyed\xa6schema\xa6public\xa9operation\xa6INSERT\xa2id%d"
    samples: list[bytes | bytearray | memoryview] = [sample % i * 3 for i in range(2000)]
    (folder / "keyed.zstd.dict").write_bytes(zstandard.train_dictionary(4096, samples).as_bytes())


@contextmanager
def settled(database: Database, load: RandomLoad) -> Iterator[None]:
    """Run the load for the body's time; afterwards every table's last shape is told."""
    with load:
        yield
    database.execute(TOUCH)
    assert load.committed > 20, "that was no load"


@pytest.mark.parametrize(
    "flags",
    [(), ("--json", "--pack", "20", "--publish", "plain"), ("--snapshot-format", "array", "--zstd", "--arrays", "list"),
     ("--json", "--snapshot-format", "array", "--arrays", "list"), ("--zstd", "--zstd-events", "--pack", "100")],
    ids=lambda flags: " ".join(flags) or "default",
)  # fmt: skip
def test_a_random_load_with_snapshots_and_kills_in_the_middle_leaves_both_replicas_equal(
    flags: tuple[str, ...],
    database: Database,
    nats: NatsServer,
    make_bridge: MakeBridge,
    mirrors: list[MirrorProcess],
    tmp_path: Path,
) -> None:
    name = " ".join(flags)
    dice = dice_of(name)
    database.execute(SCHEMA)
    if "--zstd-events" in flags:
        train_for_keyed(tmp_path / "dictionaries")
        flags += ("--dictionaries", str(tmp_path / "dictionaries"))
    bridge = make_bridge(database, nats, *flags)
    early, late = dice.sample(mirrors, 2)
    early.start()
    with settled(database, load := RandomLoad(database, f"{SEED} {name}")):
        end = time.monotonic() + SECONDS / 2
        while (left := end - time.monotonic()) > 0:
            time.sleep(dice.uniform(0.1, 1.2))
            if left < SECONDS / 3 and late.process is None:
                for table in dice.sample(("keyed", "bag", "wide"), 2):
                    bridge.post(f"/snapshot/{table}")
                late.start()  # the snapshots that it finds, and some more
            if dice.random() < 0.4:
                kill_some(dice, bridge, mirrors, 0.5)
    bridge.wait_ready()
    assert load.reshaped > 0
    for mirror in mirrors:
        mirror.wait_for("SELECT id FROM done", [(1,)])  # every change of a shape is before it
        mirror.wait_live(7)
        mirror.assert_equal(database.dsn)
        assert_never_wrong(mirror)


def test_a_replica_equals_its_source_at_any_moment_of_a_load(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirrors: list[MirrorProcess]
) -> None:
    dice_of("any moment")
    database.execute(SCHEMA)
    make_bridge(database, nats)
    for mirror in mirrors:
        mirror.start()
    for mirror in mirrors:
        mirror.wait_live(7)
    stop = threading.Event()

    def write(dice: random.Random) -> None:
        with database.connect() as connection:
            while not stop.is_set():
                table = dice.choice(TABLES)
                statement = dice.choice(STATEMENTS[table])
                try:
                    connection.execute(statement.format(i=dice.randrange(200), j=dice.randrange(12), t="'x'").encode())
                except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                    pass
                time.sleep(0.01)  # the mirror stands still while it is compared, and has to make up for it

    threads = [threading.Thread(target=write, args=(random.Random(f"{SEED} {n}"),)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        seen = set()
        for mirror in mirrors * 3:
            done = mirror.verify(database.dsn, "--json")
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{mirror.log()[-4000:]}"
            seen.add(json.loads(done.stdout)["lsn"])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(seen) == 6, "each at an LSN of its own"


# -- the one who compares is tested too

KINDS = """
CREATE TABLE kinds (id int PRIMARY KEY, s smallint, l bigint, f real, d double precision, n numeric, b boolean, t text,
  by bytea, at date, ts timestamp, tz timestamptz, u uuid, j json, jb jsonb, ai int[], ta text[], iv interval, ip inet);
CREATE PUBLICATION cdc_pub FOR TABLE kinds;
INSERT INTO kinds SELECT g, 1, 2, 0.5, 0.1, 1.50, false, 'text', '\\x00ff', '2025-12-12', '2025-12-12 12:00:00', '2025-12-12 12:00:00Z',
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": [1, 2.5]}', '{"a": [1, 2.5]}', '{1,2}', '{x,NULL}', '1 day', '10.0.0.1'
  FROM generate_series(1, 200) g;
"""
ALTERED: dict[str, tuple[str, ...]] = {
    "s": ("2", "NULL", "-1"), "l": ("3", "9223372036854775807"), "f": ("0.25", "NULL", "'NaN'"), "d": ("0.10000000000000002",),
    "n": ("'1.5'", "'1.500'", "NULL"), "b": ("true", "NULL"), "t": ("'Text'", "'text '", "''", "NULL"),
    "at": ("'2025-12-13'", "'infinity'"), "ts": ("'2025-12-12 12:00:00.000001'",), "tz": ("'2025-12-12 12:00:01Z'", "NULL"),
    "u": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12'",), "j": ("'{\"a\": [2.5, 1]}'", "'null'", "NULL"),
    "jb": ("'{\"a\": [1, 2.5], \"b\": null}'", "'{\"a\": [\"1\", 2.5]}'", "NULL"), "ai": ("'{2,1}'", "'{1,2,NULL}'", "'{}'"),
    "ta": ("'{x,\"NULL\"}'", "'{x}'", "NULL"), "iv": ("'2 days'",), "ip": ("'10.0.0.2'",),
}  # fmt: skip
ALTERED_BYTES = {"sqlite": ("x'00fe'", "x''"), "postgresql": (r"'\x00fe'", r"'\x'")}
ONLY_SQLITE: dict[str, tuple[str, ...]] = {  # whose columns take anything
    "s": ("1.5", "'one'", "x'31'"), "l": ("'two'", "2.000001"), "f": ("'half'",), "d": ("x'302e31'",), "b": ("2", "'no'", "''"),
    "by": ("'text'",),
}  # fmt: skip


def test_verify_finds_every_altered_value(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirrors: list[MirrorProcess]
) -> None:
    database.execute(KINDS)
    make_bridge(database, nats)
    for mirror in mirrors:
        mirror.start()
    for mirror in mirrors:
        mirror.wait_live(1)
        mirror.assert_equal(database.dsn)
        kind = mirror.to.partition(":")[0]
        altered = [(name, value) for name, values in ALTERED.items() for value in values]
        altered += [("by", value) for value in ALTERED_BYTES[kind]]
        altered += [(name, value) for name, values in ONLY_SQLITE.items() for value in values if kind == "sqlite"]
        for key, (name, value) in enumerate(altered, 1):
            mirror.change(f"UPDATE kinds SET {name} = {value} WHERE id = {key}")
        mirror.change("UPDATE kinds SET id = 1000 WHERE id = 199")
        mirror.change("UPDATE kinds SET s = 7, t = 'both' WHERE id = 200")
        done = mirror.verify(database.dsn, "--json", "--limit", "1000")
        assert done.returncode == 1, done.stderr
        (table,) = json.loads(done.stdout)["tables"]
        found = {int(one["key"]["id"]): one["difference"] for one in table["keys"]}
        expected = {key: f"differs in {name}" for key, (name, _) in enumerate(altered, 1)}
        expected |= {199: "missing in the replica", 1000: "only in the replica", 200: "differs in s, t"}
        assert found == expected
        assert not table["equal"]


BAG, PAIR = "(a int, b text, c text)", "(a int, b text, v int, PRIMARY KEY (b, a))"
HARM: dict[str, tuple[str, str, list[tuple[dict[str, str | None], str]]]] = {
    "missing": (BAG, "DELETE FROM missing WHERE a = 2", [({"a": "2", "b": "x", "c": "y"}, "missing in the replica")]),
    "extra": (BAG, "INSERT INTO extra VALUES (1, 'x', NULL)", [({"a": "1", "b": "x", "c": None}, "only in the replica")]),
    "changed": (BAG, "UPDATE changed SET c = '' WHERE a = 2", [
        ({"a": "2", "b": "x", "c": ""}, "only in the replica"), ({"a": "2", "b": "x", "c": "y"}, "missing in the replica")]),
    "emptied": (BAG, "DELETE FROM emptied", [
        ({"a": "1", "b": "x", "c": None}, "missing in the replica"), ({"a": "2", "b": "x", "c": "y"}, "missing in the replica")]),
    "rekeyed": (PAIR, "UPDATE rekeyed SET b = 'c' WHERE a = 2", [
        ({"a": "2", "b": "c"}, "only in the replica"), ({"a": "2", "b": "x"}, "missing in the replica")]),
    # two wrongs whose sum might make a right
    "swapped": (PAIR, "UPDATE swapped SET v = CASE a WHEN 2 THEN 5 ELSE 6 END WHERE a < 4", [
        ({"a": "2", "b": "x"}, "differs in v"), ({"a": "3", "b": "x"}, "differs in v")]),
    "untouched": (BAG, "SELECT 1", []),
}  # fmt: skip


def test_verify_names_rows_that_are_too_many_too_few_or_not_the_same(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirrors: list[MirrorProcess]
) -> None:
    for table, (columns, _, _) in HARM.items():
        database.execute(f"CREATE TABLE {table} {columns}; ALTER TABLE {table} REPLICA IDENTITY FULL")
        if columns == BAG:
            database.execute(f"INSERT INTO {table} SELECT 1, 'x', NULL FROM generate_series(1, 9)")
            database.execute(f"INSERT INTO {table} VALUES (2, 'x', 'y')")
        else:
            database.execute(f"INSERT INTO {table} VALUES (2, 'x', 6), (3, 'x', 5), (4, 'x', 5), (5, 'y', NULL)")
    database.execute("CREATE PUBLICATION cdc_pub FOR ALL TABLES")
    make_bridge(database, nats)
    for mirror in mirrors:
        mirror.start()
    for mirror in mirrors:
        mirror.wait_live(len(HARM))
        for _, harm, _ in HARM.values():
            mirror.change(harm)
        done = mirror.verify(database.dsn, "--json")
        assert done.returncode == 1, done.stderr
        found = {
            table["table"]: [(one["key"], one["difference"]) for one in table["keys"]]
            for table in json.loads(done.stdout)["tables"]
        }
        assert found == {table: named for table, (_, _, named) in HARM.items()}
        shown = mirror.verify(database.dsn, "--tables", "untouched,missing")
        assert shown.returncode == 1
        assert 'a=2, b="x", c="y": missing in the replica' in shown.stdout
        assert mirror.verify(database.dsn, "--tables", "untouched").returncode == 0


def test_nobody_reads_half_of_a_transaction_in_a_replica(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, mirrors: list[MirrorProcess]
) -> None:
    dice = dice_of("whole transactions")
    database.execute("""
        CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int);
        INSERT INTO a SELECT g, 0 FROM generate_series(1, 40) g; INSERT INTO b SELECT * FROM a;
        CREATE PUBLICATION cdc_pub FOR TABLE a, b""")
    bridge = make_bridge(database, nats, "--pack", "3")
    for mirror in mirrors:
        mirror.start()
    for mirror in mirrors:
        mirror.wait_live(2)
    stop = threading.Event()

    def move() -> None:
        with database.connect() as connection:
            own = random.Random(SEED)
            while not stop.is_set():
                i, j, v = own.randrange(1, 41), own.randrange(1, 41), own.randrange(100)
                connection.execute(
                    f"BEGIN; UPDATE a SET v = v - {v} WHERE id = {i}; UPDATE b SET v = v + {v} WHERE id = {j}; COMMIT".encode()
                )

    mover = threading.Thread(target=move)
    mover.start()
    moved = dict.fromkeys(range(2), 0)
    try:
        end = time.monotonic() + SECONDS / 3
        while time.monotonic() < end:
            for number, mirror in enumerate(mirrors):
                ((total, largest),) = mirror.query("SELECT sum(v), max(v) FROM (SELECT v FROM a UNION ALL SELECT v FROM b) x")
                assert total == 0
                moved[number] += bool(largest)
            if dice.random() < 0.02:
                kill_some(dice, bridge, mirrors, 0.2)
    finally:
        stop.set()
        mover.join()
    assert all(moved.values()), moved
    bridge.wait_ready()
    deadline = time.monotonic() + HANG_S
    rows = database.execute("SELECT id, v FROM a ORDER BY id")
    for mirror in mirrors:
        while mirror.query("SELECT id, v FROM a ORDER BY id") != rows:
            assert time.monotonic() < deadline, mirror.log()[-4000:]
            time.sleep(0.05)
        mirror.assert_equal(database.dsn)
