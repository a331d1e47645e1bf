"""A part of the faults on real servers: one run of some scenarios, and the table in docs/reliability.md."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from actors.embedded.nats import NatsServer
from tests.conftest import MakeBridge
from tests.evidence import judge
from tests.faults.scenarios import SCENARIOS
from tests.faults.tally import BEGIN, END, HEAD, Tally, put_into
from tests.faults.witness import OwnSession, Witness
from tests.servers import CLEAN, ROOT, Database, wait_for_events

PARTS = ("network,rivals,random", "power-cut-held,full-nats", "failover-lagging,cluster")


@pytest.mark.servers
@pytest.mark.own_servers("starts its own")
@pytest.mark.parametrize("names", PARTS)
def test_faults_on_real_servers_lose_and_double_nothing(names: str) -> None:
    command = [sys.executable, "-m", "tests.faults", "--minutes", "0", "--runs", "1", "--acts-per-run", "2", "--only", names]
    done = subprocess.run(command, cwd=ROOT, env=CLEAN, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if "not run: no small disk" in done.stdout:
        pytest.skip("full-nats was not run: no small disk can be mounted here")


def test_what_the_witness_had_not_seen_when_the_stream_was_cut_is_not_taken_for_seen(
    database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE t")
    witness = Witness(OwnSession(database), nats.url)
    with witness.held_still():
        make_bridge(database, nats)
        for i in range(3):
            database.execute(f"INSERT INTO t VALUES ({i})")
        wait_for_events(nats.url, 3)
        with witness.cut_short():
            pass  # the copy held everything
    evidence = witness.finish()
    assert (judge(evidence).faults, len(evidence.expected)) == ((), 3)


def test_the_table_in_the_documents_has_every_scenario_in_its_words() -> None:
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    shown = text.split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^(\| .*? \| .*? \| `[a-z-]+` \|)", shown.split(HEAD)[1], re.MULTILINE)
    cells = [Tally(scenario).row.split(" | ") for scenario in SCENARIOS]
    assert rows == [" | ".join(row[:3]) + " |" for row in cells]


def test_a_table_replaces_the_one_between_the_marks_and_nothing_else() -> None:
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore\n"
    assert put_into(text, "new\n") == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nmore\n"
    assert put_into("", "new\n") == "new\n"
