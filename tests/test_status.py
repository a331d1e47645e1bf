"""`walbridge status`, against bridges and against what is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from actors.commands.status import describe, printable, wal_words
from actors.demo import run
from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.settings.resolve import resolve
from actors.telemetry.history import History
from actors.telemetry.quantities import counted, span
from actors.telemetry.telemetry import Problem, SnapshotProgress, Telemetry
from actors.web.status import status_document
from tests.command_line import run_here
from tests.conftest import MakeBridge
from tests.http_api import streaming
from tests.servers import HANG_S, ROOT, Database, wait_for_events


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "actors.main", "status", *arguments]


def status(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, text=True, capture_output=True, check=False, timeout=HANG_S)


def test_it_tells_what_a_running_bridge_does(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    database.execute("INSERT INTO t SELECT generate_series(1, 7)")
    wait_for_events(nats.url, 7)
    url = f"http://127.0.0.1:{bridge.port}"
    deadline = time.monotonic() + HANG_S
    while "7 stored since the start" not in (done := status("--url", url)).stdout:
        assert time.monotonic() < deadline, done
    assert done.returncode == 0
    assert done.stdout.startswith("Walbridge ")
    for words in ("Streaming. ", "confirmed", "WAL held", "tables     1"):
        assert words in done.stdout, done.stdout
    assert "\x1b" not in done.stdout, "no colours on a pipe"
    as_json = json.loads(status("--url", url, "--json").stdout)
    assert as_json["cdc_events_published"] == 7
    assert as_json["verdict"]["level"] in ("ok", "warn")
    nats.kill()
    while status("--url", url).returncode == 0:
        assert time.monotonic() < deadline
    waiting = status("--url", url).stdout
    assert "Waiting for NATS" in waiting
    assert "fix:" in waiting, "the fault comes with its fix"


def test_watching_prints_a_line_a_second_until_told_to_stop(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    env = {**os.environ, "BRIDGE_PORT": str(bridge.port)}
    with subprocess.Popen(command("--watch", "--json"), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline())["uptime_seconds"] for _ in range(3)]
        process.terminate()
    assert looks == sorted(looks)
    assert looks[-1] > looks[0]


def test_nobody_there_is_one_line_and_exit_1() -> None:
    done = status("--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no bridge answers at http://127.0.0.1:" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_port_that_run_was_given_will_do(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    bridge = make_bridge(database, nats)
    assert status("--port", str(bridge.port)).returncode == 0
    for arguments, words in ((("--port", "x"), "'x' is not a port"), (("--port", "9091", "--url", "http://x"), "--url")):
        done = status(*arguments)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://"])
def test_an_address_that_is_none_is_exit_2(url: str) -> None:
    done = status("--url", url)
    assert done.returncode == 2
    assert "--url" in done.stderr


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 seconds"), (1, "1 second"), (300, "5 minutes"), (7300, "2 hours"), (33 * 86400, "33 days")],
)
def test_how_long_the_wal_lasts_is_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words
    slot = {"held_bytes": 48 << 20, "budget_bytes": 10 << 30, "seconds_to_loss": seconds, "limited": True, "looked_at": 0}
    said = f"48 MB of 10 GB: room for {words} at the present rate"
    assert wal_words({"wal": slot, "wal_status": "reserved", "state": "streaming"}, 0) == said


def test_one_is_not_many() -> None:
    assert [counted(n, "message") for n in (0, 1, 2000)] == ["0 messages", "1 message", "2,000 messages"]


def test_every_part_is_shown_and_no_name_steers_the_terminal() -> None:
    telemetry = streaming(Telemetry())
    telemetry.problems["x"] = Problem("WB117", "no right to read \x1b[2J", "said so", "means it", "GRANT\nSELECT")
    telemetry.suspended_tables["a\x07b"] = Problem("WB301", "table suspended")
    telemetry.snapshots = {
        "a": SnapshotProgress("a", "running", "snap-1-a", 250, 1000, 3, 4096, time.time(), 0),
        "b": SnapshotProgress("b", "failed", error="gone"),
        "c": SnapshotProgress("c"),
    }
    telemetry.last_received_at = 0.0
    config = resolve({}, {"POSTGRES_BRIDGE_USER": "x"})
    history = History(telemetry)
    history.sample(time.time())
    document = json.loads(json.dumps(status_document(config, telemetry, history)))
    text = "\n".join(describe(document, time.time()))
    for words in ("WB117: no right to read ?[2J", "said:  said so", "GRANT\n           SELECT", "a?b", "a running: 250 rows (25 %)",
                  "b failed: gone", "1 waiting", "48 MB of 10 GB", "1,000 messages, 5 MB of 10 GB, oldest message 24 h old; looked at "):  # fmt: skip
        assert words in text, words
    assert "\x1b" not in text
    assert "\x1b[33m" in "\n".join(describe(document, time.time(), colour=True))
    assert printable("é\u202e\n") == "é?\n"


def test_what_is_not_a_bridge_is_called_so_and_not_taken_for_a_bug(nats: NatsServer) -> None:
    for arguments in (["status", "--url", f"http://127.0.0.1:{nats.port}"], ["health", "--port", str(nats.port)]):
        done = run_here(*arguments)
        assert done.returncode == 1
        assert "is not a bridge" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_demo_may_be_kept_in_a_folder_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with run._folder(Path("kept")) as folder:
        assert folder == tmp_path / "kept"
