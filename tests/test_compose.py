"""compose/ and what `export` makes of it, as far as no container engine is needed: schemas, programs, and the real servers.

The role of init/ and the users of nats/ carry whole runs of the bridge, and are refused what they may not do.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import nats as nats_py
import psycopg
import pytest
import yaml
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from actors import __version__
from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer
from actors.embedded.process import free_port
from actors.main import app
from actors.mirror.metrics import MirrorMetrics
from actors.mirror.mirror_counts import MirrorCounts
from actors.mirror.view import View
from actors.positions import Lsn
from actors.settings.resolve import resolve
from actors.telemetry.log import metrics_line
from actors.telemetry.metrics import Metrics
from actors.telemetry.telemetry import Telemetry
from tests.command_line import run_here
from tests.compose_files import (
    COMPOSE,
    MAIN,
    NATS_USERS,
    as_nats_user,
    config_of_nats_users,
    healthy,
    read_compose,
    run_init_scripts,
    with_secrets,
)
from tests.conftest import PASSWORD, MakeBridge, MakeNats, MakePostgres
from tests.documents import section
from tests.schemas import departure_from
from tests.servers import HANG_S, ROOT, Database, read_stream, wait_for_events

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
CLUSTER = read_compose(COMPOSE, "compose.cluster.yaml")
LOGS = read_compose(COMPOSE, "compose.logs.yaml")
WEBSOCKET = read_compose(COMPOSE, "compose.websocket.yaml")
ALERTS = COMPOSE / "prometheus/walbridge-alerts.yml"
DASHBOARD: dict[str, Any] = json.loads((COMPOSE / "grafana/dashboards/walbridge.json").read_text())


# -- the compose files


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cluster.yaml", "compose.logs.yaml"])
def test_the_compose_files_keep_to_the_compose_specification(name: str, tmp_path: Path) -> None:
    assert departure_from("vendor.compose-spec", COMPOSE / name) == ""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((COMPOSE / name).read_text().replace("read_only", "read_onyl"))
    assert "read_onyl" in departure_from("vendor.compose-spec", wrong)


def test_the_file_for_browsers_adds_one_port_with_tls_to_nats(tmp_path: Path) -> None:
    assert departure_from("vendor.compose-spec", COMPOSE / "compose.websocket.yaml") == ""
    assert WEBSOCKET["services"] == {
        "nats": {"command": ["-c", "/etc/nats/websocket.conf"], "volumes": ["./tls:/etc/nats-tls:ro"], "ports": ["8443:8443"]}
    }


@pytest.mark.skipif(
    shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="no docker compose",
)  # fmt: skip
@pytest.mark.parametrize(
    "files", [["compose.yaml"], ["compose.yaml", "compose.cluster.yaml"], ["compose.yaml", "compose.logs.yaml"]]
)
def test_docker_compose_reads_them(files: list[str], tmp_path: Path) -> None:
    folder = with_secrets(tmp_path)
    words = [word for name in files for word in ("-f", str(folder / name))]
    subprocess.run(["docker", "compose", *words, "config", "--quiet"], check=True)


@pytest.mark.parametrize("document", [MAIN, CLUSTER, LOGS], ids=["alone", "cluster", "logs"])
def test_what_a_service_names_is_there(document: dict[str, Any], tmp_path: Path) -> None:
    secrets = {path.name for path in (with_secrets(tmp_path) / "secrets").iterdir()}
    known = {**MAIN.get("secrets", {}), **document.get("secrets", {})}
    volumes = {**MAIN["volumes"], **document["volumes"]}
    services = {**MAIN["services"], **document["services"]}
    assert {Path(entry["file"]).name for entry in known.values()} <= secrets
    for name, service in document["services"].items():
        assert set(service.get("secrets", ())) <= known.keys(), name
        for source, *_ in (volume.split(":") for volume in service.get("volumes", ())):
            is_there = (COMPOSE / source).is_dir() if source.startswith(".") else source in volumes
            assert is_there or (name, source) == ("alloy", "/var/run/docker.sock"), f"{name}: {source}"
        assert set(service.get("depends_on", ())) <= services.keys()
        text = json.dumps(service)
        for used in re.findall(r"/run/secrets/(\w+)", text):
            assert used in service["secrets"], f"{name} reads {used}"
        assert "password=" not in text.lower()


@pytest.mark.parametrize("name", [*sorted(MAIN["services"]), "loki", "alloy"])
def test_a_service_has_no_more_than_it_needs(name: str) -> None:
    service = {**LOGS["services"], **MAIN["services"]}[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), "nothing listens beyond this host"
    assert service["restart"] == "unless-stopped"
    assert service["mem_limit"]
    assert "privileged" not in service
    if name != "postgres":  # whose entrypoint changes owners and users
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    if name in ("bridge", "mirror"):
        assert service["stop_grace_period"] == "40s", "longer than the drain, which may take 30 s"


def test_the_image_runs_as_nobody_and_asks_the_bridge_how_it_is() -> None:
    dockerfile = (COMPOSE / "Dockerfile").read_text()
    assert len(re.findall(r"^FROM", dockerfile, re.MULTILINE)) == 2
    assert dockerfile.index("USER 65532:65532") < dockerfile.index("ENTRYPOINT")
    assert 'CMD ["walbridge", "health"]' in dockerfile
    assert MAIN["services"]["bridge"]["healthcheck"]["test"] == ["CMD", "walbridge", "health"]
    assert MAIN["services"]["bridge"]["image"] == f"walbridge:{__version__}"


def test_secrets_are_made_once_random_and_behind_a_closed_door(tmp_path: Path) -> None:
    folder = with_secrets(tmp_path) / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(set(first.values())) == len(first) >= 10
    for text in first.values():
        assert re.fullmatch("[0-9a-f]{48}", text)
    (folder / "nats_admin_password").unlink()
    with_secrets(tmp_path)
    second = {path.name: path.read_text() for path in folder.iterdir()}
    assert second.keys() == first.keys()
    assert {name for name in first if first[name] != second[name]} == {"nats_admin_password"}


@pytest.mark.parametrize(("document", "servers"), [(MAIN, 1), (CLUSTER, 3)], ids=["alone", "cluster"])
def test_the_bridge_accepts_the_settings_that_it_is_given(document: dict[str, Any], servers: int, tmp_path: Path) -> None:
    secrets = with_secrets(tmp_path) / "secrets"
    service = MAIN["services"]["bridge"]
    given = {**service["environment"], **document["services"]["bridge"]["environment"]}
    env = {name: str(value).replace("/run/secrets", str(secrets)) for name, value in given.items()}
    done = subprocess.run([sys.executable, "-m", "actors.main", *service["command"], "--print-config"], cwd=ROOT,
                          env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = {line.split()[0]: line for line in done.stdout.splitlines()}
    for name in given:
        assert "default" not in shown[{"BRIDGE_PORT": "--port"}.get(name.removesuffix("_FILE"), name.removesuffix("_FILE"))]
    assert len(shown["NATS_URL"].split()[1].split(",")) == servers
    assert shown["NATS_REPLICAS"].split()[1] == str(servers)
    for secret in secrets.iterdir():
        assert secret.read_text() not in done.stdout


def test_mirror_and_verify_are_asked_for_in_words_that_they_know_and_of_one_replica() -> None:
    mirror, verify = MAIN["services"]["mirror"], MAIN["services"]["verify"]
    assert mirror["command"][:3] == ["mirror", "--tables", "users,orders"]
    app["mirror"].parse_args(mirror["command"][1:], print_error=False, exit_on_error=False)
    app["verify"].parse_args(verify["command"], print_error=False, exit_on_error=False)

    def replica(command: list[str]) -> str:
        return command[command.index("--to") + 1]

    assert replica(mirror["command"]) == replica(verify["command"]) == "sqlite:////data/replica.db"
    assert mirror["volumes"][0] == verify["volumes"][0] == "replica:/data"
    assert mirror["healthcheck"]["test"][-1] == mirror["command"][mirror["command"].index("--port") + 1]


@pytest.mark.parametrize("hour", range(24))
def test_verify_is_run_at_once_and_at_its_hour(hour: int, tmp_path: Path) -> None:
    """The script alone: `walbridge` here says what it was asked for, `sleep` how long, and then it is told to stop."""
    for name, does in (("walbridge", 'echo "$@"'), ("sleep", 'echo "$1"; kill $PPID')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["sh", str(COMPOSE / "verify/nightly.sh"), "--to", "x"], capture_output=True, text=True, check=False,
                          env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VERIFY_HOUR": str(hour)})  # fmt: skip
    said = done.stdout.splitlines()
    assert said[0] == "verify --to x"
    assert said[1:] == [f"verify: again in {said[2]} s", said[2]]
    assert 0 < int(said[2]) <= 86400
    then = (time.time() + int(said[2])) % 86400
    assert abs((then - hour * 3600 + 43200) % 86400 - 43200) < 30


# -- the logs: Alloy and Loki are on no machine of the tests, so their files are read


def test_alloy_finds_every_figure_of_the_metrics_line() -> None:
    config = (COMPOSE / "logs/config.alloy").read_text()
    expression = json.loads(re.findall(r'expression = (".*")$', config, re.MULTILINE)[0])
    telemetry = Telemetry(wal_messages_received=7, events_published=12, confirmed_lsn=Lsn(0x183F680), reconnects=1)
    line = metrics_line(telemetry)
    found = re.search(expression, line)
    assert found is not None
    written = dict(word.split("=") for word in line.partition("METRICS ")[2].split())
    assert found.groupdict() == written
    values = re.findall(r'^ +"(\w+)" +\= "",$', config, re.MULTILINE)
    assert values == list(written), "each figure is kept"
    assert json.loads(re.findall(r"selector = (.*)$", config, re.MULTILINE)[0]) == '{service="bridge"} |= "METRICS"'
    assert "bridge" in MAIN["services"]


def test_what_alloys_components_name_is_there() -> None:
    config = re.sub(r"^\s*//.*$", "", (COMPOSE / "logs/config.alloy").read_text(), flags=re.MULTILINE)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', config)
    assert [bare.count(left) for left in "{[("] == [bare.count(right) for right in "}])"]
    components = {f"{kind}.{label}" for kind, label in re.findall(r'^([a-z.]+) "(\w+)" \{', config, re.MULTILINE)}
    assert len(components) == 5
    used = {name.rpartition(".")[0] for name in re.findall(r"[a-z]+\.[a-z]+\.\w+\.(?:targets|output|receiver)", config)}
    assert used == components - {"loki.source.docker.walbridge"}
    environment = set(re.findall(r'sys\.env\("(\w+)"\)', config))
    assert environment == LOGS["services"]["alloy"]["environment"].keys()
    assert LOGS["services"]["alloy"]["environment"]["WALBRIDGE_PROJECT"] == MAIN["name"]
    (url,) = re.findall(r'url = "(.*)"', config)
    loki = yaml.safe_load((COMPOSE / "logs/loki.yaml").read_text())
    assert url == f"http://loki:{loki['server']['http_listen_port']}/loki/api/v1/push"
    assert loki["schema_config"]["configs"][0]["schema"] == "v13", "structured metadata needs it"


def test_grafana_has_with_the_logs_what_it_has_without_and_loki() -> None:
    def provisioned(folder: str, kind: str) -> dict[str, Any]:
        files = [yaml.safe_load(file.read_text()) for file in sorted((COMPOSE / "grafana" / folder / kind).iterdir())]
        return {
            entry["name"]: entry for file in files for entry in file["datasources" if kind == "datasources" else "providers"]
        }

    for kind, more in (("datasources", "Loki"), ("dashboards", "walbridge-logs")):
        alone, with_logs = provisioned("provisioning", kind), provisioned("provisioning-logs", kind)
        assert with_logs.keys() == {*alone, more}
        assert {name: with_logs[name] for name in alone} == alone
    targets = [volume.split(":")[1] for volume in LOGS["services"]["grafana"]["volumes"]]
    assert targets[0] in [volume.split(":")[1] for volume in MAIN["services"]["grafana"]["volumes"]], "it takes its place"
    assert provisioned("provisioning-logs", "dashboards")["walbridge-logs"]["options"]["path"] == targets[1]
    dashboard = json.loads((COMPOSE / "grafana/dashboards-logs/walbridge-logs.json").read_text())
    uid = provisioned("provisioning-logs", "datasources")["Loki"]["uid"]
    queries = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert {query["datasource"]["uid"] for query in queries} == {uid}
    unwrapped = {name for query in queries for name in re.findall(r"unwrap (\w+)", query["expr"])}
    assert unwrapped
    assert unwrapped <= set(re.findall(r"(\w+)=", metrics_line(Telemetry())))


# -- Prometheus and Grafana


@pytest.fixture(scope="session")
def prometheus_bin_dir() -> Path:
    """promtool and prometheus: the system's, or Debian's package unpacked once into a cache folder; else the test is skipped."""
    found = shutil.which("promtool")
    if found:
        return Path(found).parent
    cache = Path(os.environ.get("WALBRIDGE_TEST_CACHE") or Path.home() / ".cache" / "walbridge-tests")
    folder = cache / "prometheus"
    if not (folder / "usr/bin/promtool").exists():
        if shutil.which("apt-get") is None:
            pytest.skip("no promtool, and no apt-get that could bring it")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            got = subprocess.run(
                ["apt-get", "download", "prometheus"], cwd=scratch, capture_output=True, text=True, check=False
            )
            packages = list(Path(scratch).glob("*.deb"))
            if not packages:
                pytest.skip(f"no promtool, and apt-get cannot bring it: {got.stderr.strip()[-200:]}")
            subprocess.run(["dpkg-deb", "-x", str(packages[0]), f"{scratch}/root"], check=True)
            shutil.rmtree(folder, ignore_errors=True)
            Path(scratch, "root").rename(folder)
    return folder / "usr/bin"


def metrics_in(expression: str) -> set[str]:
    return set(
        re.findall(
            r"\b(?:bridge|jetstream|pg|process|mirror)_[a-z_]+\b(?!\s*=)", re.sub(r'"[^"]*"|by \([^)]*\)', "", expression)
        )
    )


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return found + [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_every_metric_of_alerts_and_dashboard_is_one_that_we_have() -> None:
    config = resolve({}, {"DATABASE_URL": "postgresql://someone@localhost/app"})
    shown = (Metrics(Telemetry(), config).render() + MirrorMetrics(View("CDC", "sqlite", MirrorCounts())).render()).decode()
    ours = set(re.findall(r"^# TYPE (\w+)", shown, re.MULTILINE))
    ours |= {f"{name}_bucket" for name in re.findall(r"^# TYPE (\w+) histogram", shown, re.MULTILINE)} | {"bridge_info"}
    used = {name for text in [rule["expr"] for rule in rules()] + dashboard_expressions() for name in metrics_in(text)}
    assert len(used) > 30
    foreign = {name for name in used if name.startswith(("jetstream_", "pg_"))}
    assert used - foreign <= ours, used - foreign - ours


def test_every_alert_has_a_section_and_every_section_an_alert() -> None:
    alerts = [rule["alert"] for rule in rules()]
    assert re.findall(r"^#### (Walbridge\w+)$", OPERATIONS, re.MULTILINE) == alerts
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) <= 120
    assert len(alerts) == len(set(alerts)) >= 18


def test_promtool_finds_the_rules_right_and_they_speak_when_they_should(prometheus_bin_dir: Path, tmp_path: Path) -> None:
    promtool = str(prometheus_bin_dir / "promtool")
    subprocess.run([promtool, "check", "config", str(COMPOSE / "prometheus/prometheus.yml")], check=True)
    shutil.copy(ALERTS, tmp_path / "alerts.yml")
    shutil.copy(ROOT / "tests/ops/alerts.test.yml", tmp_path)
    tested = subprocess.run([promtool, "test", "rules", "alerts.test.yml"], cwd=tmp_path, capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    wrong = ALERTS.read_text().replace("bridge_connected == 0", "bridge_connected == 2")
    (tmp_path / "alerts.yml").write_text(wrong)
    assert subprocess.run([promtool, "test", "rules", "alerts.test.yml"], cwd=tmp_path, capture_output=True,
                          check=False).returncode == 1  # fmt: skip


def test_every_alert_is_tested() -> None:
    tested = set(re.findall(r"alertname: (\w+)", (ROOT / "tests/ops/alerts.test.yml").read_text()))
    assert tested == {rule["alert"] for rule in rules()}


def test_prometheus_scrapes_a_bridge_and_every_query_of_the_dashboard_is_answered(
    prometheus_bin_dir: Path, database: Database, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO users SELECT generate_series(1, 100)")
    wait_for_events(nats.url, 100)
    folder = tmp_path / "prometheus"
    shutil.copytree(COMPOSE / "prometheus", folder)
    text = (folder / "prometheus.yml").read_text().replace("bridge:9090", f"127.0.0.1:{bridge.port}")
    (folder / "prometheus.yml").write_text(text.replace("15s", "1s"))
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [str(prometheus_bin_dir / "prometheus"), f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)  # fmt: skip

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(expression: str) -> list[Any]:
        return list(ask("query?" + urllib.parse.urlencode({"query": expression}))["result"])

    try:
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                if query('count_over_time(up{job="walbridge"}[1m]) >= 4') and query('up{job="walbridge"} == 1'):
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()[-3000:]
            time.sleep(0.2)
        empty = [e for e in dashboard_expressions() if not metrics_in(e) & {"jetstream_stream_last_seq"}
                 and not query(filled(e, bridge.port)) and "> 0" not in e and "jetstream" not in e]  # fmt: skip
        assert empty == ["bridge_slot_safe_wal_bytes" + SELECTION + " and bridge_slot_wal_limited" + SELECTION + " == 1"], (
            "the test's server has no limit, so that one alone has nothing to show"
        )
        assert query(filled(dashboard_expressions()[3], bridge.port))
        rules_now = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules_now} <= {"ok", "unknown"}, rules_now
        firing = {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"}
        assert firing == set()
        bridge.kill()
        while not any(a["labels"]["alertname"] == "WalbridgeDown" for a in ask("alerts")["alerts"]):
            assert time.monotonic() < deadline + HANG_S, ask("alerts")
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()


SELECTION = '{job=~"$job", instance=~"$instance"}'


def filled(expression: str, port: int) -> str:
    """As Grafana fills the dashboard's variables in."""
    variables = {"$job": "walbridge", "$instance": f"127.0.0.1:{port}", "$__rate_interval": "1m"}
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression


def test_the_dashboard_is_one_that_grafana_can_provision() -> None:
    assert DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    variables = {entry["name"] for entry in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD)))
    assert used <= variables, used - variables
    provider = yaml.safe_load((COMPOSE / "grafana/provisioning/dashboards/walbridge.yml").read_text())["providers"][0]
    mounts = dict(volume.split(":")[:2] for volume in MAIN["services"]["grafana"]["volumes"])
    assert provider["options"]["path"] == mounts["./grafana/dashboards"]
    source = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


# -- PostgreSQL: init/


@pytest.fixture
def postgres_of_compose(make_postgres: MakePostgres, tmp_path: Path) -> PostgresServer:
    """A server whose database `app` is made by the scripts of init/, in order, as PostgreSQL's image runs them."""
    server = make_postgres()
    Database(server, MAIN["services"]["postgres"]["environment"]["POSTGRES_DB"]).close()
    run_init_scripts(server, with_secrets(tmp_path) / "secrets")
    return server


def as_role(server: PostgresServer, tmp_path: Path, user: str, secret: str) -> str:
    password = (with_secrets(tmp_path) / "secrets" / secret).read_text()
    return server.dsn("app").replace(f"postgres:{PASSWORD}@", f"{user}:{password}@")


FORBIDDEN_SQL = [
    "INSERT INTO users (name) VALUES ('x')",
    "UPDATE users SET name = 'x'",
    "DELETE FROM orders",
    "TRUNCATE users",
    "SELECT * FROM secrets",
    "CREATE TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "ALTER TABLE users ADD more int",
    "DROP TABLE orders",
    "DROP PUBLICATION cdc_pub",
    "ALTER PUBLICATION cdc_pub ADD TABLE secrets",
    "CREATE PUBLICATION mine FOR ALL TABLES",
    "CREATE ROLE mine",
    "ALTER ROLE walbridge SUPERUSER",
    "ALTER ROLE walbridge CREATEROLE",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY users TO PROGRAM 'true'",
    "COPY users FROM '/etc/passwd'",
    "ALTER SYSTEM SET wal_level = 'replica'",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
]


def test_the_role_of_init_carries_a_whole_run_and_may_do_nothing_else(
    postgres_of_compose: PostgresServer, nats: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    server = postgres_of_compose
    dsn = as_role(server, tmp_path, "walbridge", "postgres_bridge_password")
    with psycopg.connect(server.dsn("app"), autocommit=True) as admin:
        admin.execute("CREATE TABLE secrets (id int PRIMARY KEY); INSERT INTO secrets VALUES (1)")
        bridge = make_bridge(dsn, nats)
        admin.execute("INSERT INTO users (name) VALUES ('Ada'); INSERT INTO orders (user_id, total) VALUES (1, 9.5)")
        admin.execute("INSERT INTO secrets VALUES (2)")
        admin.execute("UPDATE users SET email = 'ada@example.org'; DELETE FROM orders; TRUNCATE users, orders")
        bridge.kill()
        bridge.start()
        admin.execute("INSERT INTO users (name) VALUES ('Grace')")
        events = [e for e in wait_for_events(nats.url, 7) if e.body["operation"] != "SCHEMA"]
        assert [(e.body["table"], e.body["operation"]) for e in events] == [
            ("users", "INSERT"), ("orders", "INSERT"), ("users", "UPDATE"), ("orders", "DELETE"), ("users", "TRUNCATE"),
            ("orders", "TRUNCATE"), ("users", "INSERT"),
        ]  # fmt: skip
        assert not [p for p in bridge.status()["problems"] if p["code"] != "WB120"], "and nothing is missing"
        assert bridge.stop() == 0
    with psycopg.connect(dsn, autocommit=True) as role:
        assert role.execute("SELECT name FROM users").fetchall() == [("Grace",)], "snapshots read the tables"
        for statement in FORBIDDEN_SQL:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                role.execute(statement.encode())
    with psycopg.connect(as_role(server, tmp_path, "walbridge_monitor", "postgres_monitor_password")) as monitor:
        assert monitor.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [("cdc_slot",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            monitor.execute("SELECT * FROM users")


# -- NATS: nats/


@pytest.mark.parametrize("name", ["nats.conf", "cluster.conf", "websocket.conf"])
def test_nats_server_accepts_the_configuration(name: str, tmp_path: Path) -> None:
    folder = with_secrets(tmp_path)
    tls = folder / "nats" / "websocket.conf"
    tls.write_text(tls.read_text().replace("/etc/nats-tls", str(tmp_path)))
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    make = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=nats -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    config = folder / "nats" / "nats.conf"
    config.write_text(config.read_text().replace('"/data"', f'"{tmp_path}/data"'))
    env = {"PATH": f"{find_nats_server().parent}:{os.environ['PATH']}", "NATS_SERVER_NAME": "n1",
           "SECRETS_DIR": str(folder / "secrets"), "NATS_CLUSTER_NODES": "127.0.0.1:6222 127.0.0.2:6222"}  # fmt: skip
    command = ["sh", str(folder / "nats/start.sh"), "-t", "-c", str(folder / "nats" / name)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config.write_text(config.read_text().replace("jetstream {", "jetstraem {"))
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode != 0


@pytest.fixture
def nats_of_compose(make_nats: MakeNats) -> NatsServer:
    """A server with the users of nats-permissions.conf."""
    return make_nats(extra_config=config_of_nats_users())


def test_three_servers_of_the_cluster_file_carry_a_bridge_with_three_copies(
    database: Database, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    """As compose.cluster.yaml starts them, with start.sh and the secrets' files; only hosts and ports are others."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    nodes = {name: (free_port(), free_port(), free_port()) for name in ("nats", "nats-2", "nats-3")}
    processes: list[subprocess.Popen[bytes]] = []
    secrets = with_secrets(tmp_path) / "secrets"
    services = {**MAIN["services"], **CLUSTER["services"]}
    try:
        for name, (port, monitor, route) in nodes.items():
            folder = tmp_path / name
            shutil.copytree(COMPOSE / "nats", folder)
            (folder / "nats.conf").write_text(
                (folder / "nats.conf").read_text().replace("0.0.0.0:4222", f"127.0.0.1:{port}")
                .replace("0.0.0.0:8222", f"127.0.0.1:{monitor}").replace('"/data"', f'"{folder}/data"')
            )  # fmt: skip
            (folder / "cluster.conf").write_text(
                (folder / "cluster.conf").read_text().replace("0.0.0.0:6222", f"127.0.0.1:{route}")
            )
            env = {"PATH": f"{find_nats_server().parent}:{os.environ['PATH']}", "SECRETS_DIR": str(secrets),
                   **services[name]["environment"]}  # fmt: skip
            for other, (_, _, at) in nodes.items():
                env["NATS_CLUSTER_NODES"] = env["NATS_CLUSTER_NODES"].replace(f"{other}:6222", f"127.0.0.1:{at}")
            command = [Path(word).name if word.startswith("/etc/nats/") else word for word in services[name]["command"]]
            with (folder / "log").open("wb") as log:
                processes.append(subprocess.Popen(["sh", "start.sh", *command], cwd=folder, env=env, stdout=log, stderr=log))
        deadline = time.monotonic() + HANG_S
        for name, (_, monitor, _) in nodes.items():
            while not healthy(monitor):
                assert time.monotonic() < deadline, (tmp_path / name / "log").read_text()[-3000:]
                time.sleep(0.1)
        passwords = {user: (secrets / f"nats_{user}_password").read_text() for user in NATS_USERS}
        urls = [f"nats://127.0.0.1:{port}" for port, *_ in nodes.values()]
        bridge_urls = ",".join(url.replace("//", f"//bridge:{passwords['bridge']}@") for url in urls)
        bridge = make_bridge(
            database, bridge_urls, env={"NATS_REPLICAS": CLUSTER["services"]["bridge"]["environment"]["NATS_REPLICAS"]}
        )
        database.execute("INSERT INTO users VALUES (1), (2)")
        assert len(wait_for_events(urls[1], 2, user="admin", password=passwords["admin"])) == 2

        async def replicas() -> list[int | None]:
            client = await nats_py.connect(urls[2], user="admin", password=passwords["admin"])
            try:
                streams = await client.jetstream().streams_info()
                return [stream.config.num_replicas for stream in streams]
            finally:
                await client.close()

        assert set(asyncio.run(replicas())) == {3}
        assert bridge.stop() == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()


def url_of(server: NatsServer, user: str) -> str:
    return as_nats_user(server.url, user)


def as_user(server: NatsServer, user: str, action: Callable[[Client, list[str]], Awaitable[Any]]) -> Any:
    """Do something as a user; the list holds what the server refused."""

    async def run() -> Any:
        refused: list[str] = []

        async def note(error: Exception) -> None:
            refused.append(str(error))

        client = await nats_py.connect(server.url, user=user, password=f"1e5{user}", error_cb=note, allow_reconnect=False)
        try:
            return await action(client, refused)
        finally:
            await client.close()

    return asyncio.run(run())


def refusals(server: NatsServer, user: str, subjects: list[str], reply: str = "") -> list[str]:
    """The subjects that a user may not publish to."""

    async def publish(client: Client, refused: list[str]) -> list[str]:
        for subject in subjects:
            await client.publish(subject, b"{}", reply=reply)
            await client.flush()
        await asyncio.sleep(0.3)  # the server refuses in order, before it answers the last flush; the client tells in tasks
        said = " ".join(refused).lower()
        return [subject for subject in subjects if f'publish to "{subject.lower()}"' in said]

    return list(as_user(server, user, publish))


@pytest.fixture
def running(database: Database, nats_of_compose: NatsServer, make_bridge: MakeBridge) -> Iterator[tuple[Database, NatsServer]]:
    """A bridge on the permissions of the file alone: it makes its streams and buckets itself, and has stored two events."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    server = nats_of_compose
    bridge = make_bridge(database, url_of(server, "bridge"))
    database.execute("INSERT INTO users VALUES (1), (2)")
    wait_for_events(server.url, 2, user="admin", password="1e5admin")
    yield database, server
    database.execute("INSERT INTO users VALUES (3)")
    events = wait_for_events(server.url, 3, user="admin", password="1e5admin")
    assert [event.body["data"]["id"] for event in events] == [1, 2, 3], "nobody came between"
    assert bridge.stop() == 0, bridge.log()
    assert "ermissions" not in bridge.log()


def test_the_bridges_user_carries_a_whole_run_and_may_do_nothing_else(running: tuple[Database, NatsServer]) -> None:
    _, server = running
    forbidden = [
        "$JS.API.STREAM.DELETE.CDC", "$JS.API.STREAM.PURGE.CDC", "$JS.API.STREAM.UPDATE.CDC", "$JS.API.STREAM.MSG.DELETE.CDC",
        "$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.DELETE.KV_bridges", "$JS.API.CONSUMER.CREATE.CDC.x",
        "$JS.API.CONSUMER.DELETE.CDC.x", "$JS.API.STREAM.SNAPSHOT.CDC", "$JS.API.ACCOUNT.PURGE.CDC", "$KV.bridges.CDC2",
        "$KV.other.x", "_CDC2.cdc.users.insert", "orders.new", "$SYS.REQ.SERVER.PING", "$JS.API.STREAM.PURGE.INIT",
    ]  # fmt: skip
    assert refusals(server, "bridge", forbidden) == forbidden

    async def listen(client: Client, refused: list[str]) -> int:
        for subject in (">", "cdc.>", "$JS.>", "$SYS.>", "orders.*"):
            await client.subscribe(subject)
        await client.flush()
        await asyncio.sleep(0.1)
        return len(refused)

    assert as_user(server, "bridge", listen) == 5


def test_a_mirrors_user_reads_and_asks_and_writes_nothing(running: tuple[Database, NatsServer]) -> None:
    _, server = running
    forbidden = [
        "cdc.users.insert", "cdc._bridge.gap", "init.start.users", "$KV.bridges.CDC", "$KV.schemas.users",
        "$KV.dictionaries.users_dict", "$JS.API.STREAM.DELETE.CDC", "$JS.API.STREAM.PURGE.CDC", "$JS.API.STREAM.UPDATE.CDC",
        "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.MSG.DELETE.CDC", "$JS.API.CONSUMER.DELETE.CDC.x", "_INBOX.somebody",
    ]  # fmt: skip
    assert refusals(server, "mirror", forbidden) == forbidden
    assert refusals(server, "mirror", ["snapshot.request.users"]) == []
    assert [e.body["data"]["id"] for e in read_stream(url_of(server, "mirror"))] == [1, 2]
    mirror = {"NATS_URL": url_of(server, "mirror")}
    done = run_here("tail", "--tables", "users", "--from", "1h", "--no-wait", env=mirror)
    assert re.findall(r"INSERT +users +id=(\d)$", done.stdout, re.MULTILINE) == ["1", "2"], done.stderr
    assert run_here("tail", "--stream", "CDC2", env=mirror).returncode == 2


def test_mirror_and_verify_run_as_the_files_users_and_what_they_find_is_shown(
    postgres_of_compose: PostgresServer, nats_of_compose: NatsServer, make_bridge: MakeBridge, tmp_path: Path
) -> None:
    """Commands and environment of the compose file; only hosts, ports, folders and NATS's passwords are others."""
    role = as_role(postgres_of_compose, tmp_path, "walbridge", "postgres_bridge_password")
    bridge = make_bridge(role, url_of(nats_of_compose, "bridge"))
    replica, port = tmp_path / "replica.db", str(free_port())
    secrets = with_secrets(tmp_path) / "secrets"
    (secrets / "nats_mirror_password").write_text("1e5mirror")
    (tmp_path / "walbridge").write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m actors.main "$@"\n')
    (tmp_path / "walbridge").chmod(0o755)
    here = {"/data/replica.db": str(replica), "9092": port, "0.0.0.0": "127.0.0.1", "/etc/walbridge": f"{COMPOSE}/verify",
            "/run/secrets": str(secrets), "nats://nats:4222": nats_of_compose.url}  # fmt: skip

    def run(name: str) -> subprocess.Popen[bytes]:
        service = MAIN["services"][name]
        words = [*service.get("entrypoint", [str(tmp_path / "walbridge")]), *service["command"]]
        given = {**service["environment"], "PG_HOST": "127.0.0.1", "PG_PORT": str(postgres_of_compose.port)}
        for there, to in here.items():
            words = [word.replace(there, to) for word in words]
            given = {variable: value.replace(there, to) for variable, value in given.items()}
        with (tmp_path / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **given}, stdout=log, stderr=log)

    def log(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + HANG_S
        while not holds():
            assert time.monotonic() < deadline, log("mirror") + log("verify")
            time.sleep(0.05)

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return float(re.search(rf"^{name} (.*)$", answer.read().decode(), re.MULTILINE)[1])  # type: ignore[index]

    processes: list[subprocess.Popen[bytes]] = []
    try:
        with psycopg.connect(postgres_of_compose.dsn("app"), autocommit=True) as admin:
            admin.execute("INSERT INTO users (name) VALUES ('Ada'), ('Grace')")
            (tmp_path / "verify.log").touch()
            processes.append(run("mirror"))
            health = [str(tmp_path / "walbridge"), "health", "--port", port]
            wait(
                lambda: (
                    subprocess.run(health, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False).returncode == 0
                )
            )
            admin.execute(
                "INSERT INTO orders (user_id, total) VALUES (1, 9.5); UPDATE users SET email = 'ada@example.org' WHERE id = 1"
            )
            processes.append(run("verify"))
            wait(lambda: "again in" in log("verify"))
            assert len(re.findall(r"^(?:users|orders) .* equal$", log("verify"), re.MULTILINE)) == 2, log("verify")
            wait(lambda: metric("mirror_verify_last_success_timestamp_seconds") > 0)
            with closing(sqlite3.connect(replica)) as somebody, somebody:
                somebody.execute("UPDATE users SET name = 'Eve' WHERE id = 2")
            processes[-1].terminate()
            processes[-1].wait()
            processes.append(run("verify"))
            wait(lambda: log("verify").count("again in") == 2)
            assert "id=2: differs in name" in log("verify")
            assert "exit code 1" in log("verify")
            wait(lambda: metric("mirror_verify_mismatched_keys") == 1)
            assert metric("mirror_connected") == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert "ermission" not in log("mirror") + bridge.log()


def test_a_consumer_reads_from_an_account_of_its_own_and_can_reach_nothing_else(running: tuple[Database, NatsServer]) -> None:
    _, server = running

    def stored() -> list[list[bytes | None]]:
        """All messages of the streams; of the bridge's records, which it writes when it likes, those that are none."""

        async def ask(client: Client, _: list[str]) -> list[list[bytes | None]]:
            js = client.jetstream()
            found = []
            for name in ("CDC", "INIT", "KV_schemas", "KV_bridges"):
                last = (await js.stream_info(name)).state.last_seq
                found.append([(await js.get_msg(name, seq)).data for seq in range(1, last + 1)])
            found[-1] = [data for data in found[-1] if not {"slot", "horizon"} & json.loads(data or b"{}").keys()]
            return found

        return list(as_user(server, "admin", ask))

    before = stored()
    assert before[-1] == []

    async def attack(client: Client, refused: list[str]) -> list[str]:
        reached: list[str] = []
        # a push consumer delivers only where somebody listens
        listener = await nats_py.connect(server.url, user="admin", password="1e5admin")
        for target in ("cdc.>", "init.>", "$KV.>"):
            await listener.subscribe(target)
        await listener.flush()
        for subject in ("cdc.users.insert", "init.start.users", "$KV.bridges.CDC", "$KV.schemas.users"):
            await client.publish(subject, b"{}")
        for api in ("$JS.API", "$JS.CDC.API"):
            for action in ("STREAM.DELETE.CDC", "STREAM.PURGE.CDC", "STREAM.UPDATE.CDC", "STREAM.MSG.DELETE.CDC",
                           "STREAM.CREATE.CDC9", "CONSUMER.DELETE.CDC.x", "CONSUMER.CREATE.CDC.x", "CONSUMER.CREATE.CDC", "CONSUMER.DURABLE.CREATE.CDC.x", "ACCOUNT.PURGE.CDC", "STREAM.SNAPSHOT.CDC"):  # fmt: skip
                try:
                    answer = await client.request(f"{api}.{action}", b"{}", timeout=1)
                except nats_py.errors.Error:
                    continue
                if b"JetStream not enabled for account" not in answer.data:
                    reached.append(f"{api}.{action}: {answer.data!r}")
        # an answer that goes to a subject of the stream would be stored there
        asks = (
            ("STREAM.INFO.CDC", b""), ("STREAM.MSG.GET.CDC", b'{"seq":1}'), ("INFO", b""), ("DIRECT.GET.CDC", b'{"seq":1}'),
            ("CONSUMER.MSG.NEXT.CDC.none", b'{"batch":1,"expires":100000000}'), ("CONSUMER.INFO.CDC.none", b""),
        )  # fmt: skip
        for target in ("cdc.users.insert", "init.start.users", "$KV.bridges.CDC"):
            for action, body in asks:
                await client.publish(f"$JS.CDC.API.{action}", body, reply=target)
            for source in ("CDC", "KV_schemas"):  # nor does a stream deliver into another one
                push = {"name": "p", "deliver_subject": target, "deliver_policy": "all", "ack_policy": "none"}
                wanted = json.dumps({"stream_name": source, "config": push}).encode()
                await client.publish(f"$JS.CDC.API.CONSUMER.CREATE.{source}.p", wanted)
        await client.flush()
        await asyncio.sleep(1)
        await listener.close()
        return reached

    assert as_user(server, "consumer", attack) == []
    assert as_user(server, "browser", attack) == []
    assert stored() == before
    forbidden = [
        "cdc.users.insert", "init.start.users", "$JS.ACK.x", "$JS.CDC.API.CONSUMER.CREATE.CDC.x", "$JS.CDC.API.CONSUMER.MSG.NEXT.CDC.x",
        "$JS.CDC.API.DIRECT.GET.CDC", "$JS.CDC.API.STREAM.NAMES", "$JS.API.STREAM.INFO.CDC", "$KV.bridges.CDC", "_INBOX.somebody",
    ]  # fmt: skip
    assert refusals(server, "browser", forbidden) == forbidden
    assert refusals(server, "browser", ["snapshot.request.users"]) == []

    async def prepare(client: Client, _: list[str]) -> None:
        await client.jetstream().add_consumer("CDC", ConsumerConfig(durable_name="reader", filter_subject="cdc.users.>"))

    as_user(server, "admin", prepare)

    async def read(client: Client, refused: list[str]) -> list[Any]:
        js = client.jetstream(domain="CDC")
        pulled = await js.pull_subscribe_bind("reader", stream="CDC")
        messages = await pulled.fetch(2, timeout=10)
        for message in messages:
            await message.ack_sync(timeout=5)
        entry = await (await js.key_value("schemas")).get("users")
        info = await js.stream_info("CDC")
        direct = await js.get_msg("CDC", 2, direct=True)
        assert direct.data == messages[1].data
        return [[m.subject for m in messages], msgpack.unpackb(entry.value or b"").get("table"), info.state.messages, refused]

    assert as_user(server, "consumer", read)[:3] == [["cdc.users.insert"] * 2, "users", 2]

    async def request(client: Client, _: list[str]) -> None:
        await client.publish("snapshot.request.users", b"")
        await client.flush()

    as_user(server, "consumer", request)

    async def snapshot(client: Client, _: list[str]) -> int:
        js = client.jetstream()
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            try:
                found = await js.get_msg("INIT", subject="init.meta.users", direct=False)
                return int(msgpack.unpackb(found.data or b"")["row_count"])
            except nats_py.js.errors.NotFoundError:
                await asyncio.sleep(0.05)
        return -1

    assert as_user(server, "admin", snapshot) == 2, "the bridge has heard it, though the consumer may write nothing itself"


def test_the_documents_say_as_which_user_each_of_their_programs_runs(
    running: tuple[Database, NatsServer], tmp_path: Path
) -> None:
    _, server = running
    consumers = (ROOT / "docs/consumers.md").read_text(encoding="utf-8")

    def program(title: str, which: int = 0) -> str:
        text = re.findall(r"^```python\n(.*?)^```$", section(consumers, title), re.MULTILINE | re.DOTALL)[which]
        path = tmp_path / f"{title.replace(' ', '_')}{which}.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def run(user: str, *command: str) -> subprocess.Popen[bytes]:
        """Begin a program as a user; what it prints is in a file with its name and the user's."""
        env = {**os.environ, "NATS_URL": url_of(server, user), "PYTHONPATH": str(ROOT)}
        with (tmp_path / f"{Path(command[0]).stem}.{user}").open("wb") as output:
            return subprocess.Popen([sys.executable, *command], env=env, stdout=output, stderr=output)

    def printed(user: str, program: str) -> str:
        return (tmp_path / f"{Path(program).stem}.{user}").read_text()

    def wait_for(words: str, user: str, program: str) -> None:
        deadline = time.monotonic() + HANG_S
        while words not in printed(user, program):
            assert time.monotonic() < deadline, printed(user, program)
            time.sleep(0.05)

    simple, copy = program("A consumer in 20 lines"), program("A live copy in Python")
    prepare, bound = program("As which user of NATS"), program("As which user of NATS", 1)
    processes = [run("mirror", simple), run("mirror", copy, "users"), run("consumer", simple)]
    try:
        wait_for("2 INSERT users {'id': 2}", "mirror", simple)
        wait_for('[{"id": 1}, {"id": 2}]', "mirror", copy)
        wait_for("JetStream not enabled for account", "consumer", simple)
        assert "`JetStream not enabled for account`" in " ".join(consumers.split())
        assert run("admin", prepare, "reader", "cdc.users.>").wait(HANG_S) == 0, printed("admin", prepare)
        processes.append(run("consumer", bound, "reader"))
        wait_for("2 INSERT users {'id': 2}\n", "consumer", bound)
        assert printed("consumer", bound) == "1 INSERT users {'id': 1}\n2 INSERT users {'id': 2}\n"
    finally:
        for process in processes:
            process.kill()
            process.wait()
