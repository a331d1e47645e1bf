"""What can be run of the guides without the providers and clusters that they are about: statements, settings, the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.settings.resolve import resolve
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.documents import GUIDES, section
from tests.servers import ROOT, Database, read_messages, wait_for_events
from tests.snapshots import take

PROVIDERS = ("azure", "cloud-sql", "neon", "rds", "supabase")
BEFORE = {
    "azure": "CREATE ROLE shopadmin",
    "neon": "CREATE ROLE walbridge LOGIN REPLICATION PASSWORD 'change-me'",
    "rds": "CREATE ROLE rds_replication",
}
"""What the provider has, or makes by other means than SQL."""
OURS = {"rds": "ALTER ROLE walbridge REPLICATION"}
"""What stands in for the provider's own right to replicate."""
MADE = ("walbridge", "shopadmin", "rds_replication")


def guide(name: str) -> str:
    return (ROOT / f"docs/guides/{name}.md").read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


@pytest.fixture
def tables(database: Database) -> Iterator[Database]:
    """A database with the guides' tables; roles that a test makes are dropped with it."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, email text, age int);"
                     "CREATE TABLE orders (id int PRIMARY KEY)")  # fmt: skip
    yield database
    for role in MADE:
        if database.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]):
            database.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_providers_settings_are_ones_that_there_are_and_verify_the_server(provider: str, tmp_path: Path) -> None:
    (settings,) = fenced(guide(provider), "ini")
    file = tmp_path / "walbridge.env"
    file.write_text(settings.replace("/etc/walbridge/postgres-password", str(file)))
    config = resolve({}, {}, file)
    words = psycopg.conninfo.conninfo_to_dict(config.postgres.conninfo)
    assert words["user"] == "walbridge"
    assert words["sslmode"] in ("verify-full", "verify-ca")
    assert str(words["sslrootcert"]).startswith("/"), "a relative path depends on the folder that the bridge is started in"
    for name in re.findall(r"^(\w+)=", settings, re.MULTILINE):
        assert name in run_here("help", "env").stdout.replace("_FILE", "") + "POSTGRES_BRIDGE_PASSWORD_FILE"


@pytest.mark.own_servers("the guides' NATS has no password")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_providers_statements_make_a_role_that_the_doctor_finds_fit(
    provider: str, tables: Database, nats: NatsServer, tmp_path: Path
) -> None:
    if provider in BEFORE:
        tables.execute(BEFORE[provider])
    (statements,) = fenced(section(guide(provider), "Make the role and the publication"), "sql")
    for statement in re.sub(r"--.*", "", statements).split(";"):
        if statement.strip():
            tables.execute(statement)
    if provider in OURS:
        tables.execute(OURS[provider])
    (settings,) = fenced(guide(provider), "ini")
    (commands,) = fenced(section(guide(provider), "Check and start"), "sh")
    doctor, bridge = commands.splitlines()
    (tmp_path / "postgres-password").write_text("change-me\n")
    local = f"postgresql://walbridge@127.0.0.1:{tables.server.port}/{tables.name}"
    settings = re.sub(r"postgresql://\S+", local, settings).replace("/etc/walbridge", str(tmp_path))
    file = tmp_path / "walbridge.env"
    file.write_text(settings.replace("nats://nats.example.org:4222", nats.url))
    done = run_here(*doctor.replace("walbridge.env", str(file)).split()[1:], env={"BRIDGE_PORT": str(free_port())})
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "FAIL" not in done.stdout, done.stdout
    assert "WB112" not in done.stdout
    assert "WB117" not in done.stdout, "snapshots"
    assert bridge == doctor.replace(" doctor", "")


def test_a_column_that_is_left_out_is_in_no_message(tables: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    made, changed = fenced(section(guide("privacy"), "Leave columns and rows out"), "sql")
    tables.execute(made)
    make_bridge(tables, nats)
    row = "VALUES (%s, 'Ada', 'secret@example.org', 36)"
    tables.execute(f"INSERT INTO users {row}", [1])
    assert take(nats.url, "users").rows == [{"id": 1, "name": "Ada", "age": 36}]
    tables.execute(changed)
    take(nats.url, "users")  # the publication is looked at before a snapshot
    tables.execute(f"INSERT INTO users {row}", [2])
    events = [event.body for event in wait_for_events(nats.url, 4)]
    assert [event["operation"] for event in events] == ["INSERT", "PUBLISHED", "SCHEMA", "INSERT"]
    assert events[-1]["data"] == {"id": 2, "name": "Ada"}
    for stream in ("CDC", "INIT", "KV_schemas"):
        assert not [message for message in read_messages(nats.url, stream) if b"secret@" in message.data]
    assert not [message for message in read_messages(nats.url, "KV_schemas") if b"email" in message.data]


def test_the_readme_lists_every_guide_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"\]\((docs/guides/[\w-]+\.md)", section(readme, "Guides")))) == sorted(GUIDES)


@pytest.mark.parametrize("path", [*GUIDES, "docs/comparison.md"])
def test_links_within_the_documents_lead_to_a_heading(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        of = (ROOT / path).parent / target if target else ROOT / path
        headings = re.findall(r"^#+ (.*)$", of.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, (target, anchor)
