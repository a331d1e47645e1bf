"""`walbridge export`: what it writes is what compose/ has, takes any name, and ships in the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import psycopg
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from actors import __version__
from actors.commands import export
from actors.commands.export import DEFAULT, IN_COMPOSE, KINDS, PLACES, SINGLE, Setup, make_setup, parse_tables, render
from actors.embedded.postgres import PostgresServer
from actors.errors import ConfigError
from tests.command_line import run_here
from tests.compose_files import parse_compose, parse_env
from tests.servers import ROOT, Database


def run_export(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_here("export", *arguments, env=env)


def test_the_compose_folder_is_what_export_makes(tmp_path: Path) -> None:
    done = run_export("compose", "--dir", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    made = {str(p.relative_to(tmp_path / "made")): p for p in (tmp_path / "made").rglob("*") if p.is_file()}
    kept = {str(p.relative_to(ROOT / "compose")): p for p in (ROOT / "compose").rglob("*")
            if p.is_file() and "secrets" not in p.parts and p.name != ".env" and p.suffix != ".whl"}  # fmt: skip
    env = made.pop(".env")
    assert made.keys() == kept.keys()
    for name, path in made.items():
        assert path.read_bytes() == kept[name].read_bytes(), f"walbridge export compose --dir compose makes another {name}"
        assert os.access(path, os.X_OK) == os.access(kept[name], os.X_OK), name
    text = (ROOT / "compose/compose.yaml").read_text()
    assert parse_compose(text) == parse_compose(text, env.read_text()), "without .env, compose.yaml has the default names"
    variables = set(re.findall(r"\$\{(\w+):-", text))
    assert parse_env(env.read_text()).keys() == variables
    assert f"pip wheel --no-deps --wheel-dir {tmp_path}/made/wheel {ROOT}\n" in done.stderr, "a checkout has no wheel of itself"


def test_the_default_names_are_those_of_the_settings_and_every_place_of_a_name_is_found() -> None:
    assert make_setup({}, {}, None, "users,orders") == DEFAULT
    other = Setup("s_1", "p", "ORDERS", 9191, "r", "shop", "writer", (("sales", "o"),))
    before, after = render("compose", DEFAULT), render("compose", other)
    assert PLACES.keys() | {".env"} == {name for name in after if after[name] != before[name]}
    for name in PLACES:
        assert not re.search(
            'cdc_slot|cdc_pub|"public"|\'walbridge\'|TO "walbridge"|bridge:9090|user: "bridge"', after[name]
        ), name
        assert "ORDERS" in after[name] or name in ("prometheus/prometheus.yml", "init/02-walbridge-role.sql")
        assert not re.search(r"@[a-z_]+(?:\|[a-z]+)?@", after[name]), name
    left = [line for name in PLACES for line in after[name].splitlines() if "CDC" in line]
    account = r"^ *#|^  CDC \{$|^      \{ (service|stream): \{ account: CDC, subject: |^ +publish: .*\$JS\.CDC\.API"
    assert all(re.search(account, line) for line in left), "the account is called so whatever the stream's name"


def test_a_checkouts_secrets_and_env_are_never_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "compose"
    shutil.copytree(ROOT / "compose", folder, ignore=shutil.ignore_patterns("secrets", ".env"))
    subprocess.run(["sh", str(folder / "make-secrets.sh")], check=True)
    (folder / ".env").write_text("WALBRIDGE_SLOT=mine\n")
    (folder / "wheel/walbridge-0.0.1-py3-none-any.whl").write_bytes(b"PK\xff")
    monkeypatch.setattr(export, "_compose_folder", lambda: folder)
    made = render("compose", DEFAULT)
    assert not [name for name in made if name.startswith("secrets") or name.endswith(".whl")]
    assert parse_env(made[".env"])["WALBRIDGE_SLOT"] == "cdc_slot"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("compose", "kubernetes")])
def test_a_file_is_printed_and_written_alike(kind: str, tmp_path: Path) -> None:
    printed = run_export(kind)
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr == ""
    for _ in range(2):  # what is there already and equal is no fault
        assert run_export(kind, "--dir", str(tmp_path)).returncode == 0
    (path,) = tmp_path.iterdir()
    assert path.read_text() == printed.stdout
    if kind in IN_COMPOSE:
        assert (ROOT / "compose" / IN_COMPOSE[kind]).read_text() == printed.stdout  # type: ignore[index]
    path.write_text("mine")
    refused = run_export(kind, "--dir", str(tmp_path))
    assert refused.returncode == 2
    assert str(path) in refused.stderr
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["compose"], "--dir"),
        (["kubernetes"], "--dir kubernetes"),
        (["grafanna"], "grafana"),
        (["alerts", "--slot", "Bad Slot"], "--slot"),
        (["alerts", "--port", "0"], "--port"),
        (["sql-role", "--tables", ""], "--tables"),
        (["sql-role", "--tables", "a..b"], "--tables"),
        (["sql-role", "--tables", "users,"], "--tables"),
        (["alerts", "--dir", "/proc/nowhere"], "/proc"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(arguments: list[str], says: str) -> None:
    done = run_export(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_every_name_arrives_where_it_belongs() -> None:
    made = {kind: render(kind, Setup("s_1", "p", "ORDERS", 9191, "r", "shop", "writer", (("sales", "o"),)))
            for kind in (*SINGLE, "compose")}  # fmt: skip
    text = {kind: "\n".join(files.values()) for kind, files in made.items()}
    assert 'slot_name="s_1"' in text["alerts"]
    assert 'stream_name=~"ORDERS.*"' in text["alerts"]
    assert json.loads(text["grafana"])["title"] == "Walbridge: s_1 to ORDERS"
    assert "run --slot s_1 --pub p --stream ORDERS --port 9191\n" in text["systemd"]
    for subject in ("_ORDERS.cdc.>", "$KV.bridges.ORDERS", "$JS.API.STREAM.CREATE.ORDERS"):
        assert f'"{subject}"' in text["nats-permissions"]
    assert '"cdc.>"' not in text["nats-permissions"], "another bridge's subject"
    assert 'user: "writer"' in text["nats-permissions"]
    assert 'GRANT SELECT ON "sales"."o" TO "r";' in text["sql-role"]
    bridge = parse_compose(made["compose"]["compose.yaml"], made["compose"][".env"])["services"]["bridge"]
    assert bridge["command"] == [
        "run",
        "--slot",
        "s_1",
        "--pub",
        "p",
        "--stream",
        "ORDERS",
        "--port",
        "9191",
        "--bind",
        "0.0.0.0",
    ]
    assert bridge["environment"]["PG_DB"] == "shop"
    assert yaml.safe_load(made["compose"]["prometheus/prometheus.yml"])["scrape_configs"][0]["static_configs"] == [
        {"targets": ["bridge:9191"]}
    ]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=30)


@given(publication=names, role=names, table=names, user=names)
def test_no_name_breaks_out_of_its_file(publication: str, role: str, table: str, user: str) -> None:
    setup = Setup("s", publication, "CDC", 9090, role, "app", user, ((table, table),))
    for kind in SINGLE:
        (text,) = render(kind, setup).values()
        words = {f"@{word}@" for word in re.findall(r"@([a-z_]+(?:\|[a-z]+)?)@", text)}
        assert not words - {f"@{w}@" for name in (publication, role, table, user) for w in re.findall(r"@(.*?)@", name)}
    made = render("compose", setup)
    services = parse_compose(made["compose.yaml"], made[".env"])["services"]
    bridge = services["bridge"]
    assert bridge["command"][4] == publication
    assert bridge["environment"]["POSTGRES_BRIDGE_USER"] == role
    assert bridge["environment"]["NATS_BRIDGE_USER"] == user
    whole = f"{table}.{table}"
    assert services["mirror"]["command"][2] in (whole, sql.Identifier(whole).as_string(None))
    (unit,) = render("systemd", setup).values()
    (start,) = [line for line in unit.split("\n") if line.startswith("ExecStart=")]
    assert start.endswith(" --stream CDC --port 9090")


@given(st.lists(st.tuples(names, names), min_size=1, max_size=5))
def test_a_list_of_tables_reads_back(tables: list[tuple[str, str]]) -> None:
    quoted = [f"{sql.Identifier(schema, table).as_string(None)}" for schema, table in tables]
    assert parse_tables(",".join(quoted)) == tuple(tables)
    assert parse_tables(" , ".join(quoted)) == tuple(tables)


def test_a_table_without_a_schema_is_public() -> None:
    assert parse_tables('users, sales.Order Lines,"a.b"') == (("public", "users"), ("sales", "Order Lines"), ("public", "a.b"))
    for wrong in ("", " ", "a.b.c", 'a"b', '"a', "a,,b", ".a"):
        with pytest.raises(ConfigError):
            parse_tables(wrong)


def test_names_come_from_the_bridges_own_settings_and_secrets_go_nowhere(tmp_path: Path) -> None:
    secret = "hunter2-do-not-show"
    env = {
        "DATABASE_URL": f"postgresql://reader:{secret}@db.internal/shop", "NATS_URL": f"nats://n:{secret}@nats.internal:4222",
        "NATS_BRIDGE_USER": "writer", "NATS_BRIDGE_PASSWORD": secret, "BRIDGE_HTTP_TOKEN": secret, "NATS_NKEY_SEED": secret,
        "BRIDGE_PORT": "9393",
    }  # fmt: skip
    for kind in KINDS:
        done = run_export(kind, "--dir", str(tmp_path / kind), env=env)
        assert done.returncode == 0, done.stderr
        for path in (tmp_path / kind).rglob("*"):
            assert path.is_dir() or secret not in path.read_text()
    assert '"reader"' in (tmp_path / "sql-role/walbridge-role.sql").read_text()
    assert '"writer"' in (tmp_path / "nats-permissions/nats-permissions.conf").read_text()
    assert "--port 9393" in (tmp_path / "systemd/walbridge.service").read_text()


def test_names_come_from_an_env_file_too_and_the_environment_beats_it(tmp_path: Path) -> None:
    file = tmp_path / "walbridge.env"
    file.write_text("POSTGRES_BRIDGE_USER=from_file\nNATS_BRIDGE_USER=nats_from_file\nPG_DB=shop\n")
    setup = make_setup({}, {"NATS_BRIDGE_USER": "from_environment"}, file, "users")
    assert (setup.role, setup.nats_user, setup.database) == ("from_file", "from_environment", "shop")


def test_the_changelog_has_the_version_that_is_made() -> None:
    assert f"To be {__version__}," in (ROOT / "CHANGELOG.md").read_text()


def psql(server: PostgresServer, database: str, script: Path, env: dict[str, str] | None = None) -> str:
    """Run a script as the entrypoint of PostgreSQL's image does."""
    done = subprocess.run(
        [str(server.bin_dir / "psql"), "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "-d", server.dsn(database), "-f", str(script)],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


HOSTILE = "Rö\"le's $1 :x %s;--"


def test_the_role_script_takes_hostile_names_and_may_run_again(
    database: Database, pg18: PostgresServer, tmp_path: Path
) -> None:
    quoted = sql.Identifier(HOSTILE)
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {0}; CREATE TABLE {0}.{0} (id int PRIMARY KEY)").format(quoted))
    password = "p'w\\d\"$(id) `id` :role"
    setup = Setup("s", HOSTILE, "CDC", 9090, HOSTILE, "app", "b", ((HOSTILE, HOSTILE),))
    script, secret = tmp_path / "role.sql", tmp_path / "secret"
    script.write_text(render("sql-role", setup)["walbridge-role.sql"])
    secret.write_text(password)
    try:
        for env in ({"POSTGRES_BRIDGE_PASSWORD_FILE": str(secret)}, {"POSTGRES_BRIDGE_PASSWORD": password}, {}):
            assert password not in psql(pg18, database.name, script, env)
        with psycopg.connect(database.dsn, user=HOSTILE, password=password) as role:
            assert role.execute(sql.SQL("SELECT * FROM {0}.{0}").format(quoted)).fetchall() == []
            published = role.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", [HOSTILE])
            assert published.fetchall() == [(HOSTILE, HOSTILE)]
        assert password not in pg18.log_path.read_text()
    finally:
        with database.connect() as connection:
            connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(quoted))


def test_the_password_is_not_in_the_servers_log_even_when_it_logs_everything(
    database: Database, pg18: PostgresServer, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY)")
    database.execute(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    script = tmp_path / "role.sql"
    setup = Setup("s", "cdc_pub", "CDC", 9090, "quiet_role", "app", "b", (("public", "users"), ("public", "orders")))
    script.write_text(render("sql-role", setup)["walbridge-role.sql"])
    try:
        psql(pg18, database.name, script, {"POSTGRES_BRIDGE_PASSWORD": "only-psql-knows-this"})
        log = pg18.log_path.read_text()
        assert "set_config('log_statement'" in log, "statements are logged"
        assert "only-psql-knows-this" not in log
    finally:
        database.execute("DROP OWNED BY quiet_role; DROP ROLE quiet_role")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = shutil.which("true")
    (text,) = render("systemd", DEFAULT).values()
    unit = tmp_path / "walbridge.service"
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", text))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "walbridge.service" in line]
    assert ours == [], done.stderr
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystme=strict"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "ProtectSystme" in done.stderr, "the check sees a wrong word"


def test_alerts_link_to_the_page_that_is_given() -> None:
    done = run_here("export", "alerts", "--runbooks", "https://wiki.example.org/a?b=c")
    links = [rule["annotations"]["runbook_url"] for group in yaml.safe_load(done.stdout)["groups"] for rule in group["rules"]]
    assert "https://wiki.example.org/a?b=c#walbridgelag" in links
    assert all(link.startswith("https://wiki.example.org/a?b=c#walbridge") for link in links)
    for bad in ("", 'x"', "a b", "x#y", "a\\b"):
        refused = run_here("export", "alerts", f"--runbooks={bad}")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "--runbooks" in refused.stderr


def test_the_script_of_a_role_is_never_for_the_one_that_initdb_makes() -> None:
    done = run_here("export", "sql-role", "--tables", "users", env={"DATABASE_URL": "postgresql://postgres@127.0.0.1/app"})
    assert (done.returncode, "\\set role 'walbridge'" in done.stdout) == (0, True)


def test_kubernetes_files_with_an_address_of_this_machine_say_so(tmp_path: Path) -> None:
    env = {"DATABASE_URL": "postgresql://u@127.0.0.1/app", "NATS_URL": "nats://nats:4222"}
    done = run_here("export", "kubernetes", "--dir", str(tmp_path / "one"), env=env)
    assert "127.0.0.1 is each container's own address" in done.stderr
    done = run_here("export", "kubernetes", "--dir", str(tmp_path / "two"), env=env | {"DATABASE_URL": "postgresql://u@db/app"})
    assert "own address" not in done.stderr
