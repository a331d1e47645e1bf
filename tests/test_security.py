"""TLS to both servers, credentials of every kind, secrets that stay secret, names that try to break out."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import nkeys
import psycopg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from actors.clients.postgres.connection import PgConnection, SourceRefused
from actors.contract.table_token import table_token
from actors.embedded.nats import NatsServer
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import unprivileged_account
from actors.settings.config import PostgresConfig
from tests.certificates import Authority, Pair
from tests.conftest import PASSWORD, MakeBridge, MakeNats, MakePostgres
from tests.examples import examples
from tests.servers import HANG_S, Bridge, Database, wait_for_events

TABLE = "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t"


def ends(bridge: Bridge) -> int:
    """Start it and wait for its own end."""
    bridge.start(ready=False)
    return bridge.wait()


# -- TLS to PostgreSQL; the wheel's server has none, Debian's has


class TlsPostgres(NamedTuple):
    """A server that lets `cert_role` in by certificate alone, and everybody else by password, over TLS only."""

    server: PostgresServer
    authority: Authority
    cert_role: str

    def dsn(self, host: str = "localhost", role: str = "postgres", **words: str) -> str:
        given = {"dbname": "app", "sslmode": "verify-full", "sslrootcert": self.authority.ca, **words}
        if role == "postgres":
            given["password"] = PASSWORD
        return psycopg.conninfo.make_conninfo(host=host, port=self.server.port, user=role, **given)


@pytest.fixture
def tls_postgres(make_postgres: MakePostgres, server_folder: Path, tmp_path: Path) -> Iterator[TlsPostgres]:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server", "localhost")
    folder = server_folder / "certificates"  # where the server's own user can read, and nobody else
    folder.mkdir(mode=0o700)
    account = unprivileged_account()
    for file in (pair.cert, pair.key, authority.ca):
        shutil.copy(file, folder)
    for path in (folder, *folder.iterdir()):
        if account is not None:
            os.chown(path, account.uid, account.gid)
    files = {"cert": folder / Path(pair.cert).name, "key": folder / Path(pair.key).name, "ca": folder / Path(authority.ca).name}
    server = make_postgres(15, ssl="on", **{f"ssl_{kind}_file": str(path) for kind, path in files.items()})
    database = Database(server, "app")
    database.execute(f"{TABLE}; CREATE ROLE by_certificate LOGIN REPLICATION")
    database.close()
    (server.data_dir / "pg_hba.conf").write_text(
        "hostssl all by_certificate 127.0.0.1/32 cert\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
        "host all postgres 127.0.0.1/32 reject\n"
    )
    server.restart()
    yield TlsPostgres(server, authority, "by_certificate")
    shutil.rmtree(folder)


def test_the_whole_run_is_inside_tls_and_a_certificate_is_enough(
    tls_postgres: TlsPostgres, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    ours = tls_postgres.authority.issue("by_certificate")
    bridge = make_bridge(tls_postgres.dsn(role="by_certificate", sslcert=ours.cert, sslkey=ours.key), nats)
    with psycopg.connect(tls_postgres.dsn(), autocommit=True) as admin:
        admin.execute("INSERT INTO t SELECT generate_series(1, 10)")
        assert len(wait_for_events(nats.url, 10)) == 10
        rows = admin.execute(
            "SELECT s.ssl, s.version, s.client_dn, a.backend_type FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)"
            " WHERE a.usename = 'by_certificate'"
        ).fetchall()
        # a value that is read in portions
        admin.execute(
            "ALTER TABLE t ADD v text; INSERT INTO t SELECT 11, string_agg(md5(g::text), '') FROM generate_series(1, 900000) g"
        )
        admin.execute("INSERT INTO t VALUES (12, 'small')")
        large, small = (event.body for event in wait_for_events(nats.url, 13)[-2:])
        assert (large["data"], large["omitted"], small["data"]) == ({"id": 11}, ["v"], {"id": 12, "v": "small"})
    assert "waiting for" not in bridge.log()
    assert {backend for *_, backend in rows} >= {"walsender", "client backend"}
    assert {(on, version, name) for on, version, name, _ in rows} == {(True, "TLSv1.3", "/CN=by_certificate")}
    assert bridge.stop() == 0


def test_a_postgresql_that_cannot_be_trusted_is_refused_in_words(
    tls_postgres: TlsPostgres, nats: NatsServer, make_bridge: MakeBridge, pg18: PostgresServer, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other", "stranger")
    good = tls_postgres.authority.issue("by_certificate")
    with_ours: Callable[[Pair], str] = lambda pair: tls_postgres.dsn(  # noqa: E731
        role="by_certificate", sslcert=pair.cert, sslkey=pair.key
    )
    for dsn, code, says in (
        (tls_postgres.dsn(host="127.0.0.1"), "WB122", "does not match host name"),
        (tls_postgres.dsn(sslrootcert=stranger.ca), "WB122", "certificate verify failed"),
        (tls_postgres.dsn(sslrootcert="/nonexistent/ca.pem"), "WB122", "/nonexistent/ca.pem"),
        (tls_postgres.dsn(role="by_certificate"), "WB122", "requires a valid client certificate"),
        (with_ours(stranger.issue("by_certificate")), "WB122", "alert"),
        (with_ours(tls_postgres.authority.issue("by_certificate", days=-1)), "WB122", "expired"),
        (with_ours(Pair(good.cert, "/nonexistent/key.pem")), "WB122", "/nonexistent/key.pem"),
        (with_ours(tls_postgres.authority.issue("somebody_else")), "WB103", "certificate authentication failed"),
        (tls_postgres.dsn(sslmode="disable"), "WB103", "no encryption"),
        (psycopg.conninfo.make_conninfo(pg18.dsn(), sslmode="require"), "WB122", "does not support SSL"),
    ):
        bridge = make_bridge(dsn, nats, start=False)
        assert ends(bridge) == 2, bridge.log()
        assert f"error {code}: " in bridge.log(), (says, bridge.log())
        assert says in bridge.log()
        assert "  fix:   " in bridge.log()
        assert PASSWORD not in bridge.log()


def test_a_renewed_certificate_is_read_at_the_next_connect(tls_postgres: TlsPostgres, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew(pair: Pair) -> None:
        for path, source in ((cert, pair.cert), (key, pair.key)):
            path.touch(mode=0o600)
            path.write_bytes(Path(source).read_bytes())

    config = PostgresConfig(tls_postgres.dsn(role="by_certificate", sslcert=str(cert), sslkey=str(key)))

    async def connect() -> None:
        with closing(await PgConnection.connect(config, application_name="test")):
            pass

    renew(tls_postgres.authority.issue("by_certificate"))
    trio.run(connect)
    renew(tls_postgres.authority.issue("by_certificate", days=-1))
    with pytest.raises(SourceRefused, match="no trusted TLS connection"):
        trio.run(connect)
    renew(tls_postgres.authority.issue("by_certificate"))
    trio.run(connect)


# -- TLS and keys to NATS


def test_tls_and_a_certificate_alone_carry_a_whole_run_to_nats(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(TABLE)
    authority = Authority(tmp_path / "ca")
    server, ours = authority.issue("nats", "localhost"), authority.issue("bridge")
    nats = make_nats(
        extra_config=f"""
        tls {{ cert_file: "{server.cert}", key_file: "{server.key}", ca_file: "{authority.ca}", verify_and_map: true }}
        authorization {{ users: [ {{ user: "CN=bridge" }} ] }}"""
    )
    env = {"NATS_CA": authority.ca, "NATS_CERT": ours.cert, "NATS_KEY": ours.key}
    url = f"tls://localhost:{nats.port}"
    bridge = make_bridge(database, url, env=env)
    database.execute("INSERT INTO t SELECT generate_series(1, 10)")
    deadline = time.monotonic() + HANG_S
    while bridge.status()["cdc_events_published"] < 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert bridge.stop() == 0
    stranger = Authority(tmp_path / "other", "stranger")
    unknown, foreign, late = authority.issue("unknown"), stranger.issue("bridge"), authority.issue("bridge", days=-1)
    for wrong_url, change, codes in (
        (f"tls://127.0.0.1:{nats.port}", {}, ["WB208"]),
        (url, {"NATS_CA": stranger.ca}, ["WB208"]),
        (url, {"NATS_CERT": unknown.cert, "NATS_KEY": unknown.key}, ["WB203"]),
        (url, {"NATS_KEY": unknown.key}, ["WB205"]),
        (url, {"NATS_CA": "/nonexistent/ca.pem"}, ["WB205"]),
        # TLS 1.3 tells a client that it was refused only after its handshake: that may be read as a closed connection
        (url, {"NATS_CERT": foreign.cert, "NATS_KEY": foreign.key}, ["WB200", "WB208"]),
        (url, {"NATS_CERT": late.cert, "NATS_KEY": late.key}, ["WB200", "WB208"]),
    ):
        refused = make_bridge(database, wrong_url, start=False, env={**env, **change})
        refused.start(ready=False)
        while refused.exit_code is None and "WB200" not in refused.log():
            assert time.monotonic() < deadline + HANG_S
            time.sleep(0.05)
        assert any(code in refused.log() for code in codes), refused.log()
        assert refused.get("/ready")[0] != 200
        if "WB200" not in codes:
            assert refused.wait() == 2
        refused.kill()


def test_an_nkey_from_a_file_carries_a_whole_run_and_is_nowhere_to_be_seen(
    database: Database, make_nats: MakeNats, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute(TABLE)
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()  # type: ignore[no-untyped-call]
    public = nkeys.from_seed(seed.encode()).public_key.decode()  # type: ignore[no-untyped-call]
    nats = make_nats(extra_config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    file = tmp_path / "seed"
    file.write_text(seed + "\n")
    bridge = make_bridge(database, nats.url, env={"NATS_NKEY_SEED_FILE": str(file), "LOG_LEVEL": "DEBUG"})
    database.execute("INSERT INTO t VALUES (1)")
    deadline = time.monotonic() + HANG_S
    while bridge.status()["cdc_events_published"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    nats.kill()
    while bridge.status()["state"] != "waiting_nats":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert seed not in seen_from_outside(bridge)
    bridge.kill()
    nats.start()
    another = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()  # type: ignore[no-untyped-call]
    for wrong, code in ((another, "WB203"), (seed[:20], "WB205")):
        file.write_text(wrong)
        refused = make_bridge(database, nats.url, start=False, env={"NATS_NKEY_SEED_FILE": str(file)})
        assert ends(refused) == 2
        assert code in refused.log()
        assert wrong not in refused.log()


# -- secrets: what every start-up failure and a running bridge show to others


def seen_from_outside(bridge: Bridge) -> str:
    """Log, HTTP, and what `ps` would show of the process and its threads."""
    text = bridge.log() + "".join(bridge.get(path)[1] for path in ("/status", "/metrics", "/ready", "/health", "/"))
    if bridge.process is not None and bridge.exit_code is None:
        for name in ("cmdline", "comm", "stat"):
            text += Path(f"/proc/{bridge.process.pid}/{name}").read_bytes().decode(errors="replace")
    return text


SECRETS = {
    "pg": "s3cret-PG/with@signs:and 'quotes'",
    "nats": 's3cret-NATS"back\\slash,comma',
    "token": "s3cret-TOKEN-t0ken",
    "http": "s3cret-HTTP-t0ken",
}
SPELLINGS = {
    spelling for word in SECRETS.values()
    for spelling in (word, quote(word, safe=""), json.dumps(word)[1:-1], base64.b64encode(word.encode()).decode())
}  # fmt: skip


def assert_silent(text: str) -> None:
    shown = {spelling for spelling in SPELLINGS if spelling in text}
    assert not shown, f"{shown} in\n{text}"
    assert "s3cret" not in text, text  # not even a piece of one


class Door(NamedTuple):
    """Servers that want the secrets."""

    database: Database
    nats: NatsServer
    role: str

    @property
    def url(self) -> str:
        return f"postgresql://{self.role}:{quote(SECRETS['pg'], safe='')}@127.0.0.1:{self.database.server.port}/{self.database.name}"


@pytest.fixture
def door(database: Database, make_nats: MakeNats) -> Iterator[Door]:
    role = f"role_{database.name}"
    database.execute(TABLE)
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(sql.Identifier(role), SECRETS["pg"]))
        connection.execute(sql.SQL("GRANT SELECT ON t TO {}").format(sql.Identifier(role)))
    yield Door(database, make_nats(users={"bridge": SECRETS["nats"]}), role)
    with database.connect() as connection:
        for (slot,) in connection.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"):
            deadline = time.monotonic() + HANG_S
            while True:
                try:
                    connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
                    break
                except psycopg.errors.ObjectInUse:
                    assert time.monotonic() < deadline
                    connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
                    time.sleep(0.05)
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def everything_set(door: Door, tmp_path: Path, how: str) -> dict[str, str]:
    """The same secrets as variables, as files, or inside URLs."""
    given = {
        "POSTGRES_BRIDGE_PASSWORD": SECRETS["pg"], "NATS_BRIDGE_PASSWORD": SECRETS["nats"], "BRIDGE_HTTP_TOKEN": SECRETS["http"],
    }  # fmt: skip
    names = {"PG_HOST": "127.0.0.1", "PG_PORT": str(door.database.server.port), "PG_DB": door.database.name,
             "POSTGRES_BRIDGE_USER": door.role, "NATS_BRIDGE_USER": "bridge", "NATS_URL": door.nats.url}  # fmt: skip
    if how == "files":
        for name in list(given):
            path = tmp_path / name.lower()
            path.write_text(given.pop(name) + "\n")
            given[f"{name}_FILE"] = str(path)
    if how == "urls":
        del names["NATS_BRIDGE_USER"]
        given = {"DATABASE_URL": door.url, "BRIDGE_HTTP_TOKEN": SECRETS["http"]}
        names["NATS_URL"] = door.nats.url.replace("//", f"//bridge:{quote(SECRETS['nats'], safe='')}@")
    return {**names, **given, "LOG_LEVEL": "DEBUG"}


def started_with(make_bridge: MakeBridge, env: dict[str, str], *flags: str) -> Bridge:
    bridge = make_bridge("", "", *flags, start=False, env=env)
    for name in ("DATABASE_URL", "NATS_URL"):
        if not env.get(name):
            bridge.env.pop(name, None)
    return bridge


@pytest.mark.parametrize("how", ["variables", "files", "urls"])
@pytest.mark.parametrize("style", ["logfmt", "json"])
def test_a_running_bridge_shows_no_secret_to_anybody(
    how: str, style: str, door: Door, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    env = {**everything_set(door, tmp_path, how), "LOG_FORMAT": style}
    bridge = started_with(make_bridge, env)
    bridge.start()
    door.database.execute("INSERT INTO t VALUES (1)")
    wait_for_events(door.nats.url, 1, user="bridge", password=SECRETS["nats"])
    assert_silent(seen_from_outside(bridge))
    assert bridge.post("/shutdown")[0] == 401
    assert bridge.post("/shutdown", {"Authorization": "Bearer wrong"})[0] == 401
    door.nats.kill()
    deadline = time.monotonic() + HANG_S
    while bridge.status()["state"] != "waiting_nats":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_silent(seen_from_outside(bridge))
    assert bridge.post("/shutdown", {"Authorization": f"Bearer {SECRETS['http']}"})[0] in (200, 202)
    assert bridge.wait() in (0, 1)
    assert_silent(bridge.log())
    shown = subprocess.run([*bridge.argv, "--print-config"], cwd=Path(__file__).parents[1], env=bridge.env, capture_output=True,
                           text=True, check=True)  # fmt: skip
    assert "********" in shown.stdout
    assert_silent(shown.stdout + shown.stderr)


def broken_settings(door: Door, tmp_path: Path) -> dict[str, dict[str, str]]:
    """What may be wrong at a start, and the variables that make it so."""
    base = everything_set(door, tmp_path, "variables")
    seed, creds = tmp_path / "seed", tmp_path / "user.creds"
    seed.write_text(SECRETS["token"])
    creds.write_text(f"-----BEGIN NATS USER JWT-----\n{SECRETS['token']}\n------END NATS USER JWT------\n"
                     f"-----BEGIN USER NKEY SEED-----\n{SECRETS['token']}\n------END USER NKEY SEED------\n")  # fmt: skip
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    raw = SECRETS["pg"]
    urls = {
        "an unescaped at sign": f"postgresql://u:{raw}@127.0.0.1:1/d",
        "two ports": "postgresql://u:s3cret@h:1:2/d",
        "a port of letters": "postgresql://u:s3cret@h:port/d",
        "no URL": "s3cret@h",
        "a word too many": "host=h password=s3cret nonsense",
        "an open quote": "host=h password='s3cret",
        "an unknown word": "postgresql://u:s3cret@h/d?sslmood=require",
        "an unknown sslmode": "postgresql://u:s3cret@127.0.0.1/d?sslmode=sometimes",
        "a bad escape": "postgresql://u:s3cret%zz@h/d",
        "another password": f"postgresql://{door.role}:s3cret-wrong@127.0.0.1:{door.database.server.port}/{door.database.name}",
        "another role": f"postgresql://nobody:s3cret@127.0.0.1:{door.database.server.port}/{door.database.name}",
        "another database": door.url.rsplit("/", 1)[0] + "/nowhere",
    }
    found = {f"DATABASE_URL with {name}": {**base, "DATABASE_URL": url} for name, url in urls.items()}
    for name, url in {
        "a slash in the password": f"nats://bridge:s3cret/x@127.0.0.1:{door.nats.port}",
        "a comma in the password": f"nats://bridge:s3cret,x@127.0.0.1:{door.nats.port}",
        "a port of letters": "nats://bridge:s3cret@h:port",
        "another scheme": "https://bridge:s3cret@h:1",
        "another password": f"nats://bridge:s3cret-wrong@127.0.0.1:{door.nats.port}",
        "a token that nobody wants": f"nats://s3cret-token@127.0.0.1:{door.nats.port}",
    }.items():
        found[f"NATS_URL with {name}"] = {**base, "NATS_URL": url, "NATS_BRIDGE_USER": "", "NATS_BRIDGE_PASSWORD": ""}
    return found | {
        "another password of PostgreSQL": base | {"POSTGRES_BRIDGE_PASSWORD": "s3cret-wrong"},
        "another password of NATS": base | {"NATS_BRIDGE_PASSWORD": "s3cret-wrong"},
        "a seed that is none": base | {"NATS_NKEY_SEED": SECRETS["token"]},
        "a seed file that is none": base | {"NATS_NKEY_SEED_FILE": str(seed)},
        "credentials that are none": base | {"NATS_CREDS": str(creds)},
        "a secret twice": base | {"NATS_TOKEN": SECRETS["token"], "NATS_TOKEN_FILE": str(seed)},
        "a secret file that is gone": base | {"NATS_TOKEN_FILE": str(tmp_path / "nowhere")},
        "a secret as host": base | {"NATS_URL": "", "NATS_HOST": "u:s3cret@h"},
        "no publication": base | {"WALBRIDGE_TEST_PUB": "no_such_publication"},
        "a port that is taken": base | {"BRIDGE_PORT": str(door.nats.port)},
        "no port": base | {"BRIDGE_PORT": "x"},
        "PostgreSQL away": base | {"PG_PORT": str(closed)},
        "NATS away": base | {"NATS_URL": f"nats://127.0.0.1:{closed}"},
        "no such host": base | {"PG_HOST": "no-such-host.invalid"},
    }


def test_no_failure_at_the_start_shows_a_secret(door: Door, make_bridge: MakeBridge, tmp_path: Path) -> None:
    for what, env in broken_settings(door, tmp_path).items():
        pub = env.pop("WALBRIDGE_TEST_PUB", "cdc_pub")
        bridge = started_with(make_bridge, env)
        bridge.argv[bridge.argv.index("--pub") + 1] = pub
        if "BRIDGE_PORT" in env:
            at = bridge.argv.index("--port")
            del bridge.argv[at : at + 2]
        bridge.start(ready=False)
        deadline = time.monotonic() + HANG_S
        while bridge.exit_code is None and "waiting for" not in bridge.log():
            assert time.monotonic() < deadline, f"{what}: neither ends nor waits\n{bridge.log()}"
            time.sleep(0.02)
        if bridge.exit_code is None:
            assert_silent(seen_from_outside(bridge))
            bridge.signal(signal.SIGTERM)
        assert bridge.wait() in (1, 2), what
        log = bridge.log()
        assert "WB" in log or log.startswith("walbridge: "), f"{what}: {log}"
        assert "Traceback" not in log, f"{what}: {log}"
        assert_silent(log)
        bridge.log_path.unlink()


# -- hostile names, end to end

HOSTILE = "a.b c*>\"'\\é$x;--\t\n{}%s🐘"
LONG = "é" * 31 + "x"  # 63 bytes


@pytest.mark.parametrize("name", [HOSTILE, LONG, "*", ">", "$JS", "..", "=2E", "CON", "a/b"], ids=repr)
def test_hostile_names_travel_whole_and_break_out_of_nothing(
    name: str, pg18: PostgresServer, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    unique = name if name != LONG else LONG[:-1] + "y"
    database = Database(pg18, f"{unique}"[:20] + "db")
    role = sql.Identifier(name)
    slot = "a_slot_name_of_63_characters_" + "x" * 34
    try:
        with database.connect() as connection:
            for statement in (
                "CREATE SCHEMA {0}", "CREATE TABLE {0}.{0} ({0} int PRIMARY KEY, {1} text)", "CREATE PUBLICATION {0} FOR TABLE {0}.{0}",
                "CREATE ROLE {0} LOGIN REPLICATION PASSWORD {2}", "GRANT USAGE ON SCHEMA {0} TO {0}", "GRANT SELECT ON {0}.{0} TO {0}",
            ):  # fmt: skip
                connection.execute(sql.SQL(statement).format(role, sql.Identifier(f"{name}"[:20] + "2"), name))
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user=name, password=name)
        bridge = make_bridge(dsn, nats, slot=slot, pub=name)
        with database.connect() as connection:
            connection.execute(sql.SQL("INSERT INTO {0}.{0} VALUES (1, {1})").format(role, name))
        token = table_token(name, name)
        (event,) = wait_for_events(nats.url, 1)
        assert event.subject == f"cdc.{token}.insert"
        assert re.fullmatch(r"[A-Za-z0-9_=/-]+", token)
        assert (event.body["schema"], event.body["table"]) == (name, name)
        assert event.body["data"] == {name: 1, f"{name}"[:20] + "2": name}
        assert (event.body["key"], event.headers["Nats-Msg-Id"]) == ([name], event.body["msg_id"])
        series = [
            sample for family in text_string_to_metric_families(bridge.metrics()) for sample in family.samples
            if sample.name == "bridge_table_events_total" and sample.labels["operation"] == "insert"
        ]  # fmt: skip
        assert [(s.labels["schema"], s.labels["table"], s.value) for s in series] == [(name, name, 1.0)]
        assert bridge.status()["state"] == "streaming"
        assert bridge.stop() == 0
        for line in bridge.log().splitlines():
            assert re.match(r"ts=|info\(bridge\): METRICS |\S", line), line
        assert "Traceback" not in bridge.log()
    finally:
        with database.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL"
                               " AND database = current_database()")  # fmt: skip
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))
        database.drop()


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.text(min_size=1, max_size=63), table=st.text(min_size=1, max_size=63))
def test_a_token_is_one_nats_token_and_names_one_table(schema: str, table: str) -> None:
    token = table_token(schema, table)
    assert re.fullmatch(r"[A-Za-z0-9=-][A-Za-z0-9_=/-]*", token)
    assert table_token(schema, table + "x") != token
    assert table_token(table, schema) != token or schema == table
