"""The documents say what the program does: codes, flags, variables, metrics, paths; what they print to copy works."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Never

import pytest
import trio
from nats.aio.client import Client

from actors.commands.export import DEFAULT, render
from actors.commands.help import explain
from actors.embedded.nats import NatsServer
from actors.main import COMMANDS
from actors.mirror.metrics import MirrorMetrics
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.view import View
from actors.pace import Pace
from actors.pause import Pause
from actors.settings.config import SETTINGS
from actors.settings.resolve import resolve
from actors.telemetry.history import History
from actors.telemetry.metrics import Metrics
from actors.telemetry.telemetry import Telemetry
from actors.web.bridge_app import PATHS, make_app
from actors.web.feed import Feed
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.documents import OPERATIONS, PAGES, section
from tests.http_api import FakeLookup
from tests.programs import printed, running
from tests.servers import HANG_S, ROOT, Database, wait_for_events, with_nats
from tests.snapshots import ask, take

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSUMERS = (ROOT / "docs/consumers.md").read_text(encoding="utf-8")
CODE = re.compile(r"\bWB\d{3}\b")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def codes_in_use() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "actors").rglob("*.py")]
    return {code for source in sources for code in CODE.findall(source)}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def test_every_code_has_a_section_and_every_section_a_code() -> None:
    headings = re.findall(r"^### (WB.*)$", OPERATIONS, re.MULTILINE)
    assert all(re.fullmatch(r"WB\d{3} \S.*", heading) for heading in headings), headings
    documented = [heading[:5] for heading in headings]
    assert documented == sorted(set(documented))
    assert set(documented) == codes_in_use()


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_documents_name_only_codes_and_files_that_exist(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert set(CODE.findall(text)) <= codes_in_use()
    folders = "actors|walbridge|docs|tests|property_tests|compose|bench"
    for named in re.findall(rf"(?<![\w/])(?:{folders})/(?:[\w/.-]*\w(?:\.py|\.md)|(?:[\w-]+/)*(?=`))", text):
        assert (ROOT / named).exists(), named
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).parent.joinpath(target).exists(), target


def test_help_prints_the_section_of_a_code() -> None:
    for code in sorted(codes_in_use()):
        printed = explain(code.lower())
        assert printed.startswith(code)
        assert "\n### " not in printed
        assert len(printed.splitlines()) >= 3, f"{code} has a heading and no words"


def test_the_readme_has_every_flag_and_no_other() -> None:
    shown = set(FLAG.findall(_help().partition("Examples:")[0]))
    anywhere = shown.union(*(FLAG.findall(_help(command.partition(":")[2])) for command in COMMANDS if command != "help:help"))
    settings = section(README, "Settings")
    assert shown - {"--help", "--version"} <= set(re.findall(r"`(--[a-z-]+)", settings))
    ours = set(re.findall(r"(?<!--user )(?:walbridge|actors\.main)\b([^`\n]*)", README))
    used = {flag for line in ours for flag in FLAG.findall(line)} | set(FLAG.findall(settings))
    assert used <= anywhere


def _help(*of: str) -> str:
    return run_here(*of, "--help", env={"COLUMNS": "200"}).stdout


def test_the_readme_has_every_variable_with_its_default_and_no_other() -> None:
    rows = {cells[1].strip(" `"): cells for line in section(README, "Settings").splitlines()
            if (cells := line.split("|"))[0] == "" and len(cells) > 3}  # fmt: skip
    for setting in SETTINGS.values():
        row = rows[setting.flag or setting.variable]
        assert not setting.variable or f"`{setting.variable}`" in "|".join(row), setting
        if setting.default not in ("", "no"):
            assert f"`{setting.default}`" in "|".join(row), setting
    known = {s.variable for s in SETTINGS.values() if s.variable}
    named = set(re.findall(r"`([A-Z][A-Z0-9_]*)`", " ".join(cells[2] for cells in rows.values())))
    assert named == known


def test_the_readme_has_every_http_path_and_no_other() -> None:
    rows = re.findall(r"^\| `(GET|POST) (/[^`?]*)", section(README, "HTTP"), re.MULTILINE)
    listed = [("POST", path[5:]) if path.startswith("POST ") else ("GET", path.partition("?")[0]) for path in PATHS]
    assert sorted(rows) == sorted(listed)


def test_the_paths_are_the_applications_routes() -> None:
    config = resolve({}, {"DATABASE_URL": "postgresql://someone@localhost/app"})
    telemetry = Telemetry()
    app = make_app(
        config,
        telemetry,
        Feed(config, telemetry, History(telemetry)),
        stop=trio.Event(),
        pause=Pause(telemetry),
        pace=Pace(telemetry, 0),
        stream_info=_never,
        request_snapshot=_never,
        lookup=FakeLookup(),
        acknowledge_gap=_never,
        has_table=_never,
    )
    routes = app.url_map.bind("localhost")
    listed = [path.partition("?")[0].rpartition(" ") for path in PATHS]
    shown = [routes.match(path, method or "GET")[0] for method, _, path in listed]
    assert sorted(shown) == sorted(rule.endpoint for rule in app.url_map.iter_rules() if rule.endpoint != "static")


async def _never(_: object) -> Never:
    raise AssertionError("no request is made")


def test_the_readme_has_every_command_once_and_no_other() -> None:
    documented = re.findall(r"^\| `walbridge ([a-z]+)", README, re.MULTILINE)
    assert sorted(documented) == sorted(["run", *(command.partition(":")[2] for command in COMMANDS)])


def test_the_metrics_tables_have_every_metric_with_its_type_and_no_other() -> None:
    config = resolve({}, {"DATABASE_URL": "postgresql://someone@localhost/app"})
    shown = (Metrics(Telemetry(), config).render() + MirrorMetrics(View("CDC", "sqlite", MirrorCounts())).render()).decode()
    types = re.findall(r"^# TYPE ((?:bridge|mirror)_\w+) (\w+)$", shown, re.MULTILINE)
    rows = re.findall(r"^\| `((?:bridge|mirror)_\w+)` \| (\w+)", section(OPERATIONS, "Metrics"), re.MULTILINE)
    missing, extra = sorted(set(types) - set(rows)), sorted(set(rows) - set(types))
    assert not missing, f"docs/operations.md lacks these metrics, or has them with another type: {missing}"
    assert not extra, f"docs/operations.md has metrics that /metrics does not show: {extra}"
    assert rows == types, "the rows of docs/operations.md are to stand in the order of /metrics, each once"


def test_operations_lists_the_rights_of_the_exported_nats_user_and_no_other() -> None:
    (exported,) = render("nats-permissions", DEFAULT).values()
    bridge = exported[exported.index('user: "bridge"') : exported.index('user: "mirror"')]
    for action in ("publish", "subscribe"):
        allowed = re.search(rf"{action}: {{ allow: \[(.*?)\] }}", bridge, re.DOTALL)
        assert allowed, action
        text = section(OPERATIONS, "What the NATS user needs")
        table = text.partition(f"| {action} |")[2].partition("\n\n")[0]
        rows = [line.split("|")[1] for line in table.splitlines()[2:]]
        documented = [subject for row in rows for subject in re.findall(r"`([^`]+)`", row)]
        assert len(documented) == len(set(documented))
        assert set(documented) == set(re.findall(r'"([^"]+)"', re.sub(r"#.*", "", allowed[1]))), action


def test_operations_lists_the_rights_of_the_exported_role() -> None:
    (exported,) = render("sql-role", DEFAULT).values()
    granted = set(re.findall(r"GRANT (CONNECT|USAGE|SELECT|INSERT|UPDATE|DELETE|ALL|CREATE) ON", exported))
    granted |= set(
        re.findall(r"(?:CREATE|ALTER) ROLE \S+ (LOGIN|REPLICATION|SUPERUSER|CREATEROLE|CREATEDB|BYPASSRLS)", exported)
    )
    rows = [line.split("|")[1] for line in section(OPERATIONS, "What the role needs").splitlines() if line.startswith("| ")]
    assert granted == set(re.findall(r"\b[A-Z]{4,}\b", " ".join(rows)))


@contextmanager
def example(tmp_path: Path, nats_url: str, *arguments: str) -> Iterator[Path]:
    """The consumer of docs/consumers.md as it is printed there; gives the file with what it prints."""
    (program,) = blocks(section(CONSUMERS, "A consumer in 20 lines"), "python")
    assert len([line for line in program.splitlines() if line]) <= 28, "about 20 lines, it says"
    script = tmp_path / "consumer.py"
    script.write_text(impatient(program), encoding="utf-8")
    with running(tmp_path / f"printed{len(arguments)}", nats_url, sys.executable, str(script), *arguments) as output:
        yield output


def impatient(program: str) -> str:
    """The program with a shorter time until nats-py makes its consumer again after a fault; it waits 10 to 20 s by itself."""
    return program.replace("deliver_policy=DeliverPolicy.BY", "idle_heartbeat=0.5, deliver_policy=DeliverPolicy.BY")


@pytest.mark.parametrize("flags", [(), ("--json",), ("--pack", "10")])
def test_the_consumer_example_prints_every_change(
    flags: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats, *flags)
    database.execute("INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace')")
    database.execute("ALTER TABLE users ADD age int")
    database.execute("UPDATE users SET age = 36 WHERE id = 1")
    database.execute("DELETE FROM users WHERE id = 2")
    places = [event.seq for event in wait_for_events(nats.url, 5) if event.body["operation"] != "SCHEMA"]
    words = [
        "INSERT users {'id': 1, 'name': 'Ada'}",
        "INSERT users {'id': 2, 'name': 'Grace'}",
        "UPDATE users {'id': 1, 'name': 'Ada', 'age': 36}",
        "DELETE users {'id': 2}",
    ]
    everything = [f"{place} {text}" for place, text in zip(places, words, strict=True)]
    with example(tmp_path, nats.url) as output:
        assert printed(output, 4) == everything
        database.execute("INSERT INTO users VALUES (3, 'Edsger', 72)")
        assert printed(output, 5)[4] == f"{places[-1] + 1} INSERT users {{'id': 3, 'name': 'Edsger', 'age': 72}}"
    with example(tmp_path, nats.url, str(places[-1])) as output:
        assert printed(output, 2)[0] == everything[-1]


def test_the_rule_for_places_finds_what_was_deleted(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    make_bridge(database, nats)
    for i in range(3):
        database.execute("INSERT INTO users VALUES (%s)", [i])
    events = wait_for_events(nats.url, 3)
    ids = [event.headers["Nats-Msg-Id"] for event in events]
    (program,) = blocks(section(CONSUMERS, "Does your place still fit?"), "python")
    names: dict[str, Any] = {}
    exec(program, names)

    async def reasons(client: Client) -> list[str]:
        js, why = client.jetstream(), names["why_out_of_date"]
        created = json.loads((await client.request("$JS.API.STREAM.INFO.CDC", b"")).data)["created"]
        said = [await why(client, 1, created, ids[0])]
        await js.delete_msg("CDC", 2)
        return [*said, *[await why(client, seq, created, ids[seq - 1]) for seq in (1, 2, 3)]]

    said = with_nats(nats.url, reasons)
    assert [bool(reason) for reason in said] == [False, True, True, False], said


@pytest.mark.parametrize("language", ["python", "js"])
@pytest.mark.parametrize("flags", [(), ("--json", "--pack", "10")])
def test_the_live_copy_examples_equal_the_table(
    language: str, flags: tuple[str, ...], database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    folder = tmp_path if language == "python" else request.getfixturevalue("node_folder")
    database.execute("CREATE TABLE users (id int PRIMARY KEY, name text, notes text)")
    database.execute("ALTER TABLE users ALTER notes SET STORAGE EXTERNAL; CREATE PUBLICATION cdc_pub FOR TABLE users")
    database.execute("INSERT INTO users VALUES (1, 'Ada', repeat('x', 3000)), (2, 'Grace', NULL)")
    make_bridge(database, nats, *flags)
    with running(tmp_path / "printed", nats.url, *live_copy(language, folder), "users") as output:
        assert len(json.loads(printed(output, 1)[0])) == 2
        database.execute("UPDATE users SET name = 'Ada L.' WHERE id = 1")  # its notes are unchanged TOAST
        database.execute("UPDATE users SET id = 5 WHERE id = 2; INSERT INTO users VALUES (6, 'Edsger', '')")
        database.execute("DELETE FROM users WHERE id = 6; INSERT INTO users VALUES (7, 'Barbara', 'z')")
        whole = database.execute("SELECT to_json(u) FROM users u ORDER BY id")
        copy = sorted(json.loads(printed(output, 6)[-1]), key=lambda row: row["id"])
        assert copy == [row for (row,) in whole]
        database.execute("TRUNCATE users")
        assert json.loads(printed(output, 7)[-1]) == []


def live_copy(language: str, folder: Path) -> list[str]:
    """The command of a live copy that the documents print."""
    titles = {"python": "A live copy in Python", "js": "A live copy in JavaScript"}
    (program,) = blocks(section(CONSUMERS, titles[language]), language)
    script = folder / f"live_copy.{language[:2]}"
    script.write_text(impatient(program), encoding="utf-8")
    return [sys.executable if language == "python" else "node", str(script)]


def wait_for_consumers(nats: NatsServer, but: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """The names of the streams' consumers, once each stream of `but` has one that is not named there."""

    async def names(client: Client) -> dict[str, set[str]]:
        return {stream: {one.name for one in await client.jetstream().consumers_info(stream)} for stream in but}

    deadline = time.monotonic() + HANG_S
    while not all((found := with_nats(nats.url, names))[stream] - but[stream] for stream in but):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_no_example_begins_again_when_nats_server_restarts_before_its_first_message(
    database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    for i in range(1, 6):
        database.execute("INSERT INTO users VALUES (%s)", [i])
    take(nats.url, "users")  # it is older than what the live copy asks for
    bridge.stop()
    command = live_copy("python", tmp_path)  # nats.js waits half a minute before it makes its consumer again
    with example(tmp_path, nats.url, "6") as changes, running(tmp_path / "copy", nats.url, *command, "users") as copy:
        before = wait_for_consumers(nats, {"CDC": set(), "INIT": set()})
        nats.restart()
        wait_for_consumers(nats, before)
        database.execute("INSERT INTO users VALUES (6)")
        bridge.start()
        assert printed(changes, 1) == ["6 INSERT users {'id': 6}"]
        assert len(json.loads(printed(copy, 1)[0])) == 6


@pytest.mark.parametrize("language", ["python", "js"])
def test_a_live_copy_ends_on_an_unknown_table_and_hears_gaps_new_shapes_and_other_publications(
    language: str, database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    command = live_copy(language, tmp_path if language == "python" else request.getfixturevalue("node_folder"))
    database.execute("CREATE TABLE users (id int, region int, notes text, PRIMARY KEY (id, region))")
    database.execute("ALTER TABLE users ALTER notes SET STORAGE EXTERNAL")
    database.execute("INSERT INTO users SELECT g, 0, repeat('x', 3000) FROM generate_series(1, 2) g")
    database.execute("CREATE PUBLICATION cdc_pub FOR TABLE users WHERE (region = 1)")
    bridge = make_bridge(database, nats)
    with running(tmp_path / "unknown", nats.url, *command, "nobody") as output:
        said = printed(output.with_suffix(".err"), 1)[0]
        assert re.match(r"unknown_table: no table nobody in publication cdc_pub .*users", said)
    with running(tmp_path / "printed", nats.url, *command, "users") as output:
        assert printed(output, 1) == ["[]"]
        database.execute("UPDATE users SET region = 1 WHERE id = 1")  # its notes are not sent
        assert re.match("copying again: .*row filter", printed(output, 2)[1])
        assert [len(row["notes"]) for row in json.loads(printed(output, 3)[2])] == [3000]
        database.execute("ALTER TABLE users ADD age int DEFAULT 7; INSERT INTO users VALUES (3, 1, 'z', 8)")
        assert printed(output, 4)[3] == "copying again: its columns have changed"
        assert sorted(row["age"] for row in json.loads(printed(output, 5)[4])) == [7, 8]
        database.execute("ALTER PUBLICATION cdc_pub SET TABLE users WHERE (region IN (0, 1))")
        ask(nats.url, "nobody_knows_this")  # has the publication looked at
        assert re.match("copying again: it is published differently", printed(output, 6)[5])
        assert len(json.loads(printed(output, 7)[6])) == 3
        bridge.stop()
        database.execute("SELECT pg_drop_replication_slot('cdc_slot')")
        database.execute("DELETE FROM users WHERE id = 3")
        make_bridge(database, nats, "--accept-gap")
        assert re.match("copying again: changes are lost: .*dropped", printed(output, 8)[7])
        assert sorted(row["id"] for row in json.loads(printed(output, 9)[8])) == [1, 2]


def test_the_event_that_the_documents_show_has_the_fields_of_a_real_one(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TABLE users (id bigserial PRIMARY KEY, name text NOT NULL, email text, age int, price numeric,
          created_at timestamptz NOT NULL DEFAULT now());
        CREATE PUBLICATION cdc_pub FOR TABLE users""")
    make_bridge(database, nats, "--json")
    database.execute("INSERT INTO users (name, email) VALUES ('Ada', 'ada@example.org')")
    (event,) = wait_for_events(nats.url, 1)
    for document in (README, CONSUMERS):
        (shown,) = blocks(document, "json")
        assert _fields(shown) == _fields(str(event.body).replace("'", '"'))


def _fields(text: str) -> list[str]:
    return re.findall(r'"(\w+)":', text)


def test_the_role_of_the_readme_is_enough(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY)")
    (statements,) = blocks(section(README, "With your own servers"), "sql")
    in_database = [s for s in re.sub(r"--.*", "", statements).split(";") if s.strip() and "ALTER SYSTEM" not in s]
    (role, password) = re.findall(r"CREATE ROLE (\w+) .*PASSWORD '(.*)'", statements)[0]
    try:
        for statement in in_database:
            database.execute(statement)
        make_bridge(re.sub(r"//[^@]*@", f"//{role}:{password}@", database.dsn), nats)
        database.execute("INSERT INTO users VALUES (1); INSERT INTO orders VALUES (2)")
        assert [event.subject for event in wait_for_events(nats.url, 2)] == ["cdc.users.insert", "cdc.orders.insert"]
    finally:
        database.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_each_act_of_the_table_is_done_by_a_test_that_is_never_skipped() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    table = section(text, "What somebody does, and who sees it")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    functions = {
        node.name: node
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(rows) > 20
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)`$", row[-1])
        assert name in functions, row[0]
        assert "skip" not in "".join(map(ast.dump, functions[name].decorator_list))
