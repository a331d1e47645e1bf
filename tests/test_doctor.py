"""`walbridge doctor` on real servers: what it finds, that its fixes work, that it agrees with the start, and changes nothing."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import pytest
from nats.aio.client import Client

from actors.clients.nats import connection
from actors.clients.postgres.connection import PgConnection
from actors.commands.export import DEFAULT, render
from actors.doctor import checking, path_checks
from actors.doctor.postgres_checks import is_too_short
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.startup.streams import cdc_config, init_config
from tests.command_line import run_here
from tests.conftest import MakeBridge, MakeNats, MakePostgres
from tests.servers import Database, ask, edit_stream, read_stream, wait_for_events, with_nats

pytestmark = pytest.mark.own_servers("the doctor is given users of its own")
SEEN_EVERYWHERE = {"WB120", "WB126"}
"""Of the tests' shared server, whose WAL has no limit, and of a superuser."""


def doctor(dsn: str, nats_url: str, *flags: str, env: dict[str, str] | None = None) -> list[dict[str, str]]:
    """Run it, and return its rows."""
    settings = {"DATABASE_URL": dsn, "NATS_URL": nats_url, "BRIDGE_PORT": str(free_port()), **(env or {})}
    done = run_here("doctor", "--json", *flags, env=settings)
    assert not done.stderr, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    assert all(row["fix"] for row in report["checks"] if row["level"] in ("warn", "fail")), report["checks"]
    rows: list[dict[str, str]] = report["checks"]
    return rows


def codes(rows: list[dict[str, str]], level: str = "") -> set[str]:
    return {row["code"] for row in rows if row["code"] and level in ("", row["level"])} - SEEN_EVERYWHERE


def of(rows: list[dict[str, str]], check: str) -> dict[str, str]:
    (row,) = [row for row in rows if row["check"] == check]
    return row


async def stream_names(client: Client) -> list[str]:
    return (await ask(client, "STREAM.NAMES")).get("streams") or []


def left_in(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("""
        SELECT nspname::text FROM pg_namespace WHERE nspname ~ 'walbridge' UNION SELECT pubname::text FROM pg_publication
        WHERE pubname ~ 'walbridge' UNION SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()
    """)


@pytest.fixture
def users(database: Database) -> Database:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    return database


@contextmanager
def role(database: Database, attributes: str = "REPLICATION", grants: str = "") -> Iterator[str]:
    """A role of the test's own; gives the address with it."""
    name = f"{database.name}_role"
    database.execute(f"CREATE ROLE {name} LOGIN {attributes} PASSWORD 'secret-of-the-role'; {grants.format(name)}")
    try:
        yield re.sub(r"//[^@]*@", f"//{name}:secret-of-the-role@", database.dsn)
    finally:
        database.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def exported_rights() -> str:
    (text,) = render("nats-permissions", DEFAULT).values()
    return re.sub(r"\$NATS_\w+_PASSWORD", '"secret-of-nats"', text)


BRIDGE_USER = {"NATS_BRIDGE_USER": "bridge", "NATS_BRIDGE_PASSWORD": "secret-of-nats"}


@pytest.mark.parametrize("version", ["2.15", "2.10"])
def test_exported_rights_suffice_and_nothing_is_made(
    version: Literal["2.15", "2.10"], users: Database, make_nats: MakeNats
) -> None:
    server = make_nats(version, extra_config=exported_rights())
    admin = server.url.replace("//", "//admin:secret-of-nats@")
    with role(users, grants="GRANT SELECT ON users TO {0}") as dsn:
        rows = doctor(dsn, server.url, env=BRIDGE_USER)
        assert {row["check"] for row in rows if row["level"] not in ("ok", "note")} == {"WAL limit"}
        assert of(rows, "round trip")["level"] == "note"
        refused = of(doctor(dsn, server.url, "--round-trip", env=BRIDGE_USER), "round trip")
        assert refused["level"] == "unknown"
        assert "GRANT CREATE ON DATABASE" in refused["what"]
    assert with_nats(admin, stream_names) == []
    assert left_in(users) == []


@pytest.mark.parametrize("version", ["2.15", "2.10"])
def test_beside_a_running_bridge_it_stores_and_removes_nothing(
    version: Literal["2.15", "2.10"], users: Database, make_nats: MakeNats, make_bridge: MakeBridge
) -> None:
    server = make_nats(version)
    bridge = make_bridge(users, server)
    at_its_port = {"BRIDGE_PORT": str(bridge.port)}
    users.execute("INSERT INTO users VALUES (1, 'Ada')")
    before = wait_for_events(server.url, 1)
    rows = doctor(users.dsn, server.url, "--round-trip", env=at_its_port)
    assert codes(rows) == set()
    assert "the bridge of this slot runs" in of(rows, "HTTP port")["what"]
    assert "read by process" in of(rows, "slot")["what"]
    assert of(doctor(users.dsn, server.url, "--slot", "s2", env=at_its_port), "HTTP port")["code"] == "WB005"
    elsewhere = doctor(users.server.dsn("postgres"), server.url, env=at_its_port)
    assert of(elsewhere, "slot")["code"] == "WB114"
    assert of(elsewhere, "slot")["fix"].startswith("walbridge run --slot postgres_slot --stream POSTGRES")
    assert f"of database {users.name} listens there" in of(elsewhere, "HTTP port")["said"]
    assert of(elsewhere, "resume")["level"] == "unknown", "the record is of another database's bridge"
    assert bridge.get("/ready")[0] == 200
    bridge.stop()

    async def wish(client: Client) -> None:  # a request that waits for the bridge
        await client.publish("snapshot.request.nobody", b"")
        await client.flush()

    async def state(client: Client) -> dict[str, list[int]]:
        infos = {name: (await ask(client, f"STREAM.INFO.{name}"))["state"] for name in await stream_names(client)}
        return {name: [one["messages"], one["last_seq"]] for name, one in infos.items()}

    with_nats(server.url, wish)
    was = with_nats(server.url, state)
    rows = doctor(users.dsn, server.url, "--round-trip")
    assert codes(rows) == set()
    assert "read back" in of(rows, "round trip")["what"]
    assert "after message 1, " in of(rows, "resume")["what"]
    assert with_nats(server.url, state) == was
    assert read_stream(server.url) == before
    assert left_in(users) == [("cdc_slot",)]


# -- PostgreSQL


def test_what_is_wrong_with_tables_and_role_is_named_and_each_fix_mends_it(users: Database, nats: NatsServer) -> None:
    users.execute("""
        CREATE TABLE log (v text); CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE hidden (id int PRIMARY KEY);
        CREATE TABLE tenants (id int PRIMARY KEY, doc text); CREATE SCHEMA shut; CREATE TABLE shut.t (id int PRIMARY KEY);
        ALTER PUBLICATION cdc_pub ADD TABLE log, parent, hidden, shut.t, tenants WHERE (id > 5); CREATE TABLE child () INHERITS (parent);
        ALTER TABLE child ADD PRIMARY KEY (id);
    """)
    grants = "GRANT SELECT ON users, log, parent, child, tenants TO {0}; GRANT INSERT ON users TO {0};"
    grants += "ALTER ROLE {0} SET statement_timeout = '500ms'; ALTER ROLE {0} SET work_mem = '8MB'"
    limits = "REPLICATION CONNECTION LIMIT 3 VALID UNTIL '2000-01-01'"
    with role(users, limits.replace("VALID UNTIL '2000-01-01'", ""), grants) as dsn:
        users.execute(f"ALTER ROLE {users.name}_role VALID UNTIL '{_tomorrow(users)}'")
        rows = doctor(dsn, nats.url)
        assert codes(rows, "fail") == {"WB115"}
        assert codes(rows, "warn") == {"WB117", "WB128", "WB130", "WB132"}
        (denied,) = [row["what"] for row in rows if row["code"] == "WB117"]
        assert denied.endswith("may not read public.hidden, shut.t: it has no USAGE on the schema: shut.t")
        assert [row["what"] for row in rows if row["code"] == "WB126"] == [
            f'role {users.name}_role may do more than a bridge needs: may write to "public"."users"'
        ]
        assert of(rows, "session")["what"] == "overruled by the bridge: statement_timeout=500ms; in force: work_mem=8MB"
        for row in rows:
            if row["code"] and row["code"] != "WB120":
                users.execute("\n".join(line.partition("--")[0] for line in row["fix"].splitlines()))
        again = doctor(dsn, nats.url)
        assert {row["check"] for row in again if row["level"] not in ("ok", "note")} == {"WAL limit"}


def test_rights_that_a_bridge_does_not_need_are_taken_by_the_fix(users: Database, nats: NatsServer) -> None:
    """All in one line: whoever pastes it has a role that reads, and no more."""
    with role(users, "REPLICATION CREATEDB CREATEROLE", "GRANT SELECT, INSERT ON users TO {0}") as dsn:
        (row,) = [row for row in doctor(dsn, nats.url) if row["code"] == "WB126"]
        for right in ("CREATEROLE", "CREATEDB", 'may write to "public"."users"'):
            assert right in row["what"]
        users.execute(row["fix"].partition("--")[0])
        assert not [row for row in doctor(dsn, nats.url) if row["code"] == "WB126"]


def _tomorrow(database: Database) -> str:
    return str(database.execute("SELECT (now() + interval '1 day')::text")[0][0])


def test_a_server_that_is_not_set_up_for_it(make_postgres: MakePostgres, nats: NatsServer) -> None:
    server = make_postgres(wal_level="replica", max_slot_wal_keep_size="64MB", idle_replication_slot_timeout="1min")
    database = Database(server, "app")
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 20000)")
    database.execute("SELECT pg_create_physical_replication_slot('forgotten', true)")
    rows = doctor(database.dsn, nats.url)
    assert of(rows, "wal_level")["code"] == "WB111"
    assert of(rows, "publication")["fix"].startswith('CREATE PUBLICATION "cdc_pub" FOR TABLE "public"."t";')
    assert of(rows, "identities")["what"] == "could not be checked: publication cdc_pub does not exist"
    (limit,) = [row for row in rows if row["check"] == "WAL limit"]
    assert limit["code"] == "WB127"
    assert "idle_replication_slot_timeout" in limit["what"], "no word of a rate that was counted for seconds"
    assert [is_too_short(2 * 3600, counted_s) for counted_s in (60, 3599, 3600, 86_400)] == [False, False, True, True]
    assert not is_too_short(3 * 86_400, 86_400)
    assert of(rows, "other slots")["what"] == "1 other slot that nobody reads"
    database.close()


def test_an_open_transaction_keeps_nothing_but_what_needs_a_slot(
    users: Database, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "CHECK_S", 1.0)
    with psycopg.connect(users.dsn) as writing:
        writing.execute("INSERT INTO users VALUES (1, 'Ada')")
        rows = doctor(users.dsn, nats.url, "--round-trip")
        assert of(rows, "round trip")["level"] == "unknown"
        assert of(rows, "HTTP port")["level"] == "ok"
        writing.rollback()
    assert left_in(users) == []
    assert with_nats(nats.url, stream_names) == []


# -- connections that cannot be had


CANNOT_BE_HAD = [
    ("postgresql://bridge:hunter2@127.0.0.1:1/app", "", "WB101"),
    ("postgresql://bridge:hunter2@nowhere.invalid/app", "", "WB101"),
    ("{}?user=nobody&password=hunter2", "", "WB103"),
    ("{}_absent", "", "WB103"),
    ("", "nats://bridge:hunter2@127.0.0.1:1", "WB200"),
    ("", "nats://bridge:hunter2@nowhere.invalid", "WB200"),
]


def test_a_connection_that_cannot_be_had_is_a_row_and_the_other_side_is_checked(users: Database, nats: NatsServer) -> None:
    for dsn, nats_url, code in CANNOT_BE_HAD:
        rows = doctor(dsn.format(users.dsn) or users.dsn, nats_url or nats.url)
        failed = of(rows, "connection")
        assert (failed["level"], failed["code"]) == ("fail", code)
        assert "hunter2" not in str(rows)
        other = of(rows, "payload" if dsn else "encoding")
        assert other["level"] == "ok"
        assert of(rows, "clocks")["what"] == "could not be checked: it needs both servers"


def test_a_frozen_server_and_refused_credentials(users: Database, make_nats: MakeNats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 1.0)
    server = make_nats(users={"bridge": "right"})
    wrong = of(doctor(users.dsn, server.url, env={**BRIDGE_USER, "NATS_BRIDGE_PASSWORD": "hunter2"}), "connection")
    assert wrong["code"] == "WB203"
    server.pause()
    try:
        assert of(doctor(users.dsn, server.url, env=BRIDGE_USER), "connection")["code"] == "WB200"
    finally:
        server.resume()


# -- NATS


MISSING_RIGHTS = [
    ('publish: [">"], subscribe: ["snapshot.>"]', "JetStream", "_INBOX."),
    ('publish: {deny: ["cdc.users.>"]}', "permissions", "cdc.users.>"),
    ('publish: {deny: ["$KV.bridges.CDC"]}', "permissions", "$KV.bridges.CDC"),
    ('subscribe: ["_INBOX.>"]', "permissions", "subscribe to snapshot.request.>"),
    ('publish: {deny: ["$JS.API.STREAM.CREATE.CDC"]}', "stream CDC", "$JS.API.STREAM.CREATE.CDC"),
    ('publish: {deny: ["$JS.API.STREAM.MSG.GET.*"]}', "permissions", "$JS.API.STREAM.MSG.GET.CDC"),
]


def test_each_missing_right_in_nats_is_named(users: Database, make_nats: MakeNats) -> None:
    of_users = [
        f'{{user: "{i}", password: "secret-of-nats", permissions: {{{allowed}}}}}'
        for i, (allowed, *_) in enumerate(MISSING_RIGHTS)
    ]
    server = make_nats(extra_config=f"authorization {{ users: [{', '.join(of_users)}] }}")
    for i, (allowed, check, said) in enumerate(MISSING_RIGHTS):
        rows = doctor(users.dsn, server.url, env={**BRIDGE_USER, "NATS_BRIDGE_USER": str(i)})
        (failed,) = [row for row in rows if row["check"] == check and row["level"] == "fail"]
        assert said in failed["what"] + failed["said"], allowed


def test_limits_of_the_account_and_streams_that_take_its_subjects(users: Database, make_nats: MakeNats) -> None:
    account = 'accounts {{ A {{ jetstream {{ {} }}, users: [{{user: bridge, password: "secret-of-nats"}}] }} }}'
    few = make_nats(extra_config=account.format("max_file: 3M, max_streams: 3"))
    found = [row["what"] for row in doctor(users.dsn, few.url, env=BRIDGE_USER) if row["check"] == "room"]
    assert "may have 3 streams and has 0" in found[0]
    assert "no room for what is missing" in found[1]

    taken = make_nats()

    async def take(client: Client) -> None:
        await ask(client, "STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["init.start.*"]})

    with_nats(taken.url, take)
    rows = doctor(users.dsn, taken.url)
    assert of(rows, "stream INIT")["means"] == "OTHER takes init.> or a part of it"
    assert of(rows, "stream CDC")["level"] == "note"
    small, long = make_nats(extra_config="max_payload: 5000"), "t" * 50
    users.execute("".join(f"CREATE TABLE {long}{i} (); ALTER PUBLICATION cdc_pub ADD TABLE {long}{i};" for i in range(40)))
    assert of(doctor(users.dsn, small.url), "record")["code"] == "WB244"
    off = make_nats(extra_config="accounts { A { users: [{user: bridge, password: secret-of-nats}] } }")
    assert of(doctor(users.dsn, off.url, env=BRIDGE_USER), "JetStream")["code"] == "WB211"


def test_rows_and_streams_are_compared_and_each_fix_mends_it(users: Database, nats: NatsServer) -> None:
    day_ns = 86_400 * 10**9

    async def make(client: Client) -> None:
        for made in (cdc_config("CDC", 1, (2, 15, 0)), init_config(1, "map")):
            await ask(client, f"STREAM.CREATE.{made.name}", made.as_dict())
        for i in range(3):
            await client.jetstream().publish("cdc.users.insert", b"", headers={"Nats-Msg-Id": str(i)})
        await ask(client, "STREAM.MSG.DELETE.CDC", {"seq": 2})

    with_nats(nats.url, make)
    users.execute("INSERT INTO users VALUES (1, repeat('x', 3000000))")
    edit_stream(nats.url, "CDC", max_age=10 * day_ns)
    edit_stream(nats.url, "INIT", max_age=30 * day_ns, max_msg_size=8192)
    rows = doctor(users.dsn, nats.url)
    assert of(rows, "clocks")["what"].count(" s") == 2, "of both servers"
    assert of(rows, "stream CDC")["code"] == "WB224"
    wide, short = of(rows, "widest row"), of(rows, "history")
    assert "public.users is about 2.9 MB" in wide["what"]
    assert wide["fix"] == "nats stream edit INIT --max-msg-size=-1"
    assert short["fix"].startswith("nats stream edit CDC --max-age=31d ")
    edit_stream(nats.url, "INIT", max_msg_size=-1)
    edit_stream(nats.url, "CDC", max_age=31 * day_ns)
    rows = doctor(users.dsn, nats.url)
    assert of(rows, "widest row")["fix"].startswith("max_payload: 6MB ")
    assert of(rows, "history")["level"] == "ok"
    users.execute("UPDATE users SET name = repeat('x', 70000000)")
    assert "large columns out of the publication" in of(doctor(users.dsn, nats.url), "widest row")["fix"]


def test_tables_that_there_is_no_time_for_are_told_and_the_next_check_is_made(
    users: Database, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(connection: PgConnection, _: object) -> int:
        await connection.query("SELECT pg_sleep(10)")
        return 0

    monkeypatch.setattr(path_checks, "WIDTHS_S", 0.1)
    monkeypatch.setattr(path_checks, "widest_row", slow)
    rows = doctor(users.dsn, nats.url)
    assert of(rows, "widest row")["what"] == "no table has wide rows; 0 of 1 table could be looked at in 0.1 s"
    assert of(rows, "widest row")["level"] == "note"
    assert of(rows, "clocks")["level"] == "ok"


# -- the same checks as the start's


def test_the_bridge_ends_with_what_the_doctor_has_said(users: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    bridge = make_bridge(users, nats)
    users.execute("INSERT INTO users VALUES (1, 'Ada')")
    wait_for_events(nats.url, 1)
    bridge.stop()

    def agree(code: str) -> None:
        (failed,) = [row for row in doctor(users.dsn, nats.url) if row["level"] == "fail"]
        env = {"DATABASE_URL": users.dsn, "NATS_URL": nats.url, "BRIDGE_PORT": str(free_port())}
        ended = run_here("run", env=env)
        assert failed["code"] == code
        assert ended.returncode
        assert f"error {code}: {failed['what']}" in ended.stderr
        assert failed["fix"].splitlines()[0] in ended.stderr

    users.execute("DROP PUBLICATION cdc_pub")
    users.execute("CREATE PUBLICATION app_pub FOR TABLE users; CREATE PUBLICATION cdc_pvb FOR TABLE users")
    agree("WB106")
    offered = of(doctor(users.dsn, nats.url), "publication")["fix"].splitlines()[-1]
    assert offered == "or read one that is there (app_pub, cdc_pvb): --pub cdc_pvb"
    users.execute("CREATE PUBLICATION cdc_pub FOR TABLE users")
    edit_stream(nats.url, "CDC", no_ack=True)
    agree("WB236")
    edit_stream(nats.url, "CDC", no_ack=False)
    users.execute("SELECT pg_drop_replication_slot('cdc_slot')")
    users.execute("SELECT pg_create_logical_replication_slot('cdc_slot', 'test_decoding')")
    agree("WB114")
    users.execute("SELECT pg_drop_replication_slot('cdc_slot')")
    agree("WB108")
    for flag in ("--accept-gap", "--temporary-slot"):  # what the user accepts is no failure
        accepted = of(doctor(users.dsn, nats.url, flag), "resume")
        assert accepted["level"] == "warn"
        assert accepted["what"].startswith("the next start stores a gap event")
    with psycopg.connect(users.dsn) as running:
        running.execute("SELECT pg_create_logical_replication_slot('cdc_slot', 'pgoutput', temporary => true)")
        slot = of(doctor(users.dsn, nats.url, "--temporary-slot"), "slot")
        assert (slot["level"], "of a bridge that runs" in slot["what"]) == ("ok", True)

    async def publish(client: Client) -> None:
        await client.jetstream().publish("cdc.users.insert", b"{}")

    with_nats(nats.url, publish)
    agree("WB241")


def test_only_the_chosen_sides_are_reported_in_the_form_that_was_chosen(users: Database, nats: NatsServer) -> None:
    env = {"DATABASE_URL": users.dsn, "NATS_URL": "nats://127.0.0.1:1", "BRIDGE_PORT": str(free_port())}
    rows = doctor(users.dsn, "nats://127.0.0.1:1", "--only", "postgres")
    assert {row["group"] for row in rows} == {"PostgreSQL"}, "an unreachable NATS is of no concern"
    done = run_here("doctor", "--only", "nats,path", "--format", "nagios", env=env)
    assert (done.returncode, done.stdout.startswith("WALBRIDGE CRITICAL connection WB200")) == (2, True), done.stdout
    done = run_here("doctor", "--only", "nats", "--format", "prometheus", env={**env, "NATS_URL": nats.url})
    assert 'bridge_check_status{group="NATS",check="payload"} 0' in done.stdout
    assert "PostgreSQL" not in done.stdout
    script = run_here("doctor", "--only", "postgres", "--fix-script", env=env)
    assert subprocess.run(["sh", "-n"], input=script.stdout, text=True, check=False).returncode == 0, script.stdout
    assert "ALTER SYSTEM SET max_slot_wal_keep_size" in script.stdout
    assert "--only: 'pg' is not one of postgres, nats, path" in run_here("doctor", "--only", "pg", env=env).stderr
