"""`walbridge export kubernetes`: by Kubernetes' own schemas, by what the objects say of each other, and by a bridge that runs so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from actors import __version__
from actors.commands.export import DEFAULT, Setup, make_setup, render
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.pipeline import DRAIN_S
from tests.command_line import run_here
from tests.conftest import MakeNats
from tests.servers import HANG_S, ROOT, Database, wait_for_events

VERSIONS = ("1.27", kubernetes_validate.latest_version())
"""The oldest that the objects are made for, and the newest that is known."""
OTHER = Setup("s_1", "p", "ORDERS", 9191, "r", "shop", "writer", (("sales", "o"),))


def objects(setup: Setup = DEFAULT) -> dict[str, dict[str, Any]]:
    """Kind -> object."""
    found = [yaml.safe_load(text) for text in render("kubernetes", setup).values()]
    return {one["kind"]: one for one in found}


def container(setup: Setup = DEFAULT) -> dict[str, Any]:
    (found,) = objects(setup)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["Deployment", "Secret", "Service", "NetworkPolicy", "PodDisruptionBudget"])
def test_an_object_keeps_to_the_schema_of_kubernetes(kind: str, version: str) -> None:
    for setup in (DEFAULT, OTHER):
        kubernetes_validate.validate(objects(setup)[kind], version, strict=True)
    wrong = objects()[kind]
    wrong["metadata"]["nam"] = wrong["metadata"].pop("name")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_the_service_monitor_finds_the_service() -> None:
    """Its kind is Prometheus's, so Kubernetes has no schema of it: what it names must be there."""
    for setup in (DEFAULT, OTHER):
        made = objects(setup)
        monitor, service = made["ServiceMonitor"], made["Service"]
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert monitor["spec"].keys() == {"jobLabel", "selector", "endpoints"}
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint == {"port": service["spec"]["ports"][0]["name"], "path": "/metrics", "interval": "15s"}
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "walbridge", "the alerts' job"
    assert 'job="walbridge"' in (ROOT / "compose/prometheus/walbridge-alerts.yml").read_text()


def test_the_objects_speak_of_the_same_pod() -> None:
    for setup, name in ((DEFAULT, "walbridge"), (OTHER, "walbridge-s-1")):
        made = objects(setup)
        labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
        selectors = [made["Deployment"]["spec"]["selector"]["matchLabels"], made["Service"]["spec"]["selector"],
                     made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
                     made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]]  # fmt: skip
        assert all(selector == labels for selector in selectors)
        assert {one["metadata"]["name"] for one in made.values()} == {name} == {labels["app.kubernetes.io/instance"]}
        (port,) = container(setup)["ports"]
        assert port == {"name": "http", "containerPort": setup.port}
        assert made["Service"]["spec"]["ports"][0]["targetPort"] == made["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == "http"  # fmt: skip
        pod = made["Deployment"]["spec"]["template"]["spec"]
        (secrets,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert secrets["secretName"] == made["Secret"]["metadata"]["name"]
        (mount,) = [one["mountPath"] for one in container(setup)["volumeMounts"] if one["name"] == "secrets"]
        named = {Path(one["value"]) for one in container(setup)["env"] if one["name"].endswith("_FILE")}
        assert named == {Path(mount, key) for key in made["Secret"]["stringData"]}


def test_the_pod_is_as_closed_as_it_can_be_and_ends_in_order() -> None:
    deployment = objects()["Deployment"]["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    pod = deployment["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= DRAIN_S + 10
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert f"USER {65532}:{65532}" in (ROOT / "compose/Dockerfile").read_text()
    own = container()
    assert own["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    assert own["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert own["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert own["image"] == f"walbridge:{__version__}"
    assert own["resources"]["limits"].keys() == {"memory"}, "a limit of CPU delays what waits for nothing else"


def expanded(value: str) -> str:
    """What Kubernetes makes of an argument or a variable's value."""
    assert not re.search(r"(?<!\$)(?:\$\$)*\$\(", value), "a variable would be filled in"
    return value.replace("$$", "$")


def environment(setup: Setup) -> dict[str, str]:
    return {one["name"]: expanded(one["value"]) for one in container(setup)["env"]}


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=30)


@settings(max_examples=30)
@given(
    publication=names,
    role=names,
    database=names,
    user=names,
    image=names,
    host=names.filter(str.strip),
    slot=st.from_regex(r"[a-z0-9_]{1,63}", fullmatch=True),
)
def test_no_name_breaks_out_of_its_place(publication: str, role: str, database: str, user: str, image: str, host: str, slot: str) -> None:  # fmt: skip
    setup = replace(DEFAULT, slot=slot, publication=publication, role=role, database=database, nats_user=user, image=image,
                    postgres=(("host", host), ("port", "5433")))  # fmt: skip
    own = container(setup)
    assert own["image"] == image
    arguments = [expanded(word) for word in own["args"]]
    assert arguments == ["run", "--slot", slot, "--pub", publication, "--stream", "CDC", "--port", "9090", "--bind", "0.0.0.0"]
    env = environment(setup)
    assert env["NATS_BRIDGE_USER"] == user
    assert conninfo_to_dict(env["DATABASE_URL"]) == {"host": host, "port": "5433", "dbname": database, "user": role}
    for one in objects(setup).values():
        name = one["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name), name


def test_two_slots_have_two_names() -> None:
    slots = ("s" * 62 + "a", "s" * 62 + "b", "s", "s_", "s__")
    found = {objects(replace(DEFAULT, slot=slot))["Service"]["metadata"]["name"] for slot in slots}
    assert len(found) == len(slots)
    assert all(len(name) <= 63 for name in found)


def test_servers_come_from_the_bridges_own_settings_without_their_secrets(tmp_path: Path) -> None:
    secret = "hunter2-do-not-show"
    env = {
        "DATABASE_URL": f"postgresql://reader:{secret}@db1:5433,db2:5434/shop?sslmode=verify-full&sslpassword={secret}",
        "NATS_URL": f"tls://n%40:{secret}@nats1:4443,nats2", "NATS_REPLICAS": "3",
    }  # fmt: skip
    done = run_here("export", "kubernetes", "--dir", str(tmp_path), "--image", "registry.example.org/walbridge:1", env=env)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.iterdir() if secret in path.read_text()]
    setup = make_setup({}, env, None, "users")
    given = environment(setup)
    assert conninfo_to_dict(given["DATABASE_URL"]) == {"host": "db1,db2", "port": "5433,5434", "dbname": "shop", "user": "reader", "sslmode": "verify-full"}  # fmt: skip
    assert (given["NATS_URL"], given["NATS_BRIDGE_USER"], given["NATS_REPLICAS"]) == (
        "tls://nats1:4443,nats://nats2",
        "n@",
        "3",
    )
    _, postgres, nats = objects(setup)["NetworkPolicy"]["spec"]["egress"]
    assert [one["port"] for one in postgres["ports"]] == [5433, 5434]
    assert [one["port"] for one in nats["ports"]] == [4443, 4222]
    assert yaml.safe_load((tmp_path / "deployment.yaml").read_text())["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example.org/walbridge:1"  # fmt: skip
    (tmp_path / "secret.yaml").write_text("mine")
    again = run_here("export", "kubernetes", "--dir", str(tmp_path), env=env)
    assert again.returncode == 2
    assert "secret.yaml" in again.stderr or "deployment.yaml" in again.stderr
    assert (tmp_path / "secret.yaml").read_text() == "mine"


@pytest.mark.own_servers("a role and NATS users with passwords of this test")
def test_a_bridge_runs_as_the_pod_says_and_its_probes_are_answered(
    database: Database, make_nats: MakeNats, tmp_path: Path
) -> None:
    nats: NatsServer = make_nats(users={"bridge": "from-the-secret"})
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    setup = make_setup({"port": str(free_port()), "slot": f"pod_{database.name}"[:63]},
                       {"DATABASE_URL": database.dsn, "NATS_URL": f"nats://127.0.0.1:{nats.port}"}, None, "users")  # fmt: skip
    own, made = container(setup), objects(setup)
    password = str(psycopg.conninfo.conninfo_to_dict(database.dsn)["password"])
    for key in made["Secret"]["stringData"]:
        (tmp_path / key).write_text({"postgres-password": password, "nats-password": "from-the-secret"}.get(key, "token"))
    env = {name: value.replace("/run/secrets/walbridge", str(tmp_path)) for name, value in environment(setup).items()}
    probes = {probe: f"http://127.0.0.1:{setup.port}{own[probe]['httpGet']['path']}" for probe in ("livenessProbe", "readinessProbe")}  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "actors.main", *map(expanded, own["args"])], cwd=ROOT, stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"], **env})  # fmt: skip
    try:
        deadline = time.monotonic() + HANG_S
        for url in probes.values():
            while True:
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        assert answer.status == 200
                        break
                except OSError:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.05)
        database.execute("INSERT INTO users VALUES (1)")
        assert len(wait_for_events(nats.url, 1, user="bridge", password="from-the-secret")) == 1
        process.terminate()
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.wait()
    assert json.dumps(password) not in (tmp_path / "log").read_text()
