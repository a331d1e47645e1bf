"""What people see of snapshots in rounds, and do to them: the list, the bar, the rate and the end."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from typing import Any

from actors.commands.snapshot_progress import ProgressBar
from actors.contract.records import RangesChunk
from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.rounds import ask, rounds, wait_for_rounds
from tests.servers import HANG_S, ROOT, Bridge, Database, wait_for
from tests.snapshots import ask as ask_whole
from tests.snapshots import take


def listed(bridge: Bridge, *flags: str) -> str:
    command = [sys.executable, "-m", "actors.main", "snapshot", "--list", *flags]
    done = subprocess.run(command, cwd=ROOT, env=bridge.env, capture_output=True, text=True, timeout=HANG_S, check=True)
    return done.stdout


def entries(bridge: Bridge) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(listed(bridge, "--json"))
    return found


def test_snapshots_are_listed_throttled_and_cancelled(database: Database, nats: NatsServer, make_bridge: MakeBridge) -> None:
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)")
    database.execute("INSERT INTO items SELECT g, repeat('x', 200) FROM generate_series(1, 100000) g")
    database.execute("CREATE PUBLICATION cdc_pub FOR ALL TABLES; ANALYZE items")
    bridge = make_bridge(database, nats, "--snapshot-rate-mb-s", "1", "--snapshot-round-s", "1", "--snapshot-parallel", "1")
    assert listed(bridge).startswith("no snapshots")
    take(nats.url, "other")
    ask(nats.url, "items+ranges")
    wait_for(lambda: any(one.chunks for one in rounds(nats.url, "items+ranges")))
    ask_whole(nats.url, "items")
    wait_for(lambda: len(entries(bridge)) == 3)
    running, waiting, done = entries(bridge)
    assert (running["table"], running["state"]) == ("items+ranges", "running")
    assert 0 < running["rows"] < running["rows_expected"]
    assert (waiting["table"], waiting["state"]) == ("items", "waiting")
    assert (done["table"], done["state"], done["rows"]) == ("other", "done", 0)
    words = listed(bridge)
    assert re.search(r"^items \(in rounds\) +running +[\d,]+ rows of about 100,000 \(\d+ %\), for \d+ s, snap-", words)
    wait_for(lambda: any(one["transaction_since"] for one in bridge.status()["snapshots"]))
    assert "bridge_snapshot_transaction_seconds{" in bridge.get("/metrics")[1]
    assert bridge.post(f"/snapshot-cancel/{running['snapshot_id']}")[0] == 202
    (cancelled,) = wait_for_rounds(nats.url, "items+ranges")
    assert cancelled.error is not None
    assert cancelled.error.error_type == "cancelled"
    assert bridge.post(f"/snapshot-cancel/{running['snapshot_id']}")[0] == 404
    assert bridge.post("/snapshot-rate/1000000")[0] == 400
    assert bridge.post("/snapshot-rate/0")[0] == 200, "what is behind by the old rate goes on at once"
    wait_for(lambda: sorted(one["state"] for one in entries(bridge)) == ["done", "done", "failed"])
    assert "cancelled: somebody has cancelled this snapshot" in listed(bridge)
    assert bridge.post("/snapshot/items?rounds=yes")[0] == 202
    assert wait_for_rounds(nats.url, "items+ranges", 2)[-1].meta is not None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def chunk(rows: int, lsn: int = 1, snapshot_id: str = "snap-1-ab") -> RangesChunk:
    return RangesChunk("items+ranges", snapshot_id, 0, lsn, 1, [], rows, ())


def test_a_terminal_has_a_bar_and_a_file_has_lines() -> None:
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        bar = ProgressBar(out)
        for second in range(41):
            bar.show("items", chunk(second * 20, lsn=second // 21), 1000, float(second))
        bar.end()
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("items: [###################     ] 800 rows of about 1,000 (80 %)")
    assert ", 10 s left, 20 rows/s, VACUUM held back for about 19 s, 2 rounds seen, snap-1-ab" in last
    assert terminal.getvalue().count("\n") == 1
    assert file.getvalue().count("\n") == 41
    assert "#" not in file.getvalue()
