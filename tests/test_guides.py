"""What can be run of the guides without the providers and clusters that they are about: statements."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.documents import GUIDES, section
from tests.servers import ROOT, Database, read_messages, wait_for_events
from tests.snapshots import take

MADE = ("walbridge",)


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
