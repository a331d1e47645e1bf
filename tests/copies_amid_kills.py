"""The command: `python -m tests.copies_amid_kills --runs 200 [--minutes 60] [--seed 1]`.

In each run a mirror copies a table in rounds while eight writers change it, and bridge, PostgreSQL, nats-server and mirror are
killed at random moments until the copy is complete. `walbridge verify` must then call the replica equal.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nats.js.errors
import psycopg

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from tests.beside import beside
from tests.mirrors import MirrorProcess
from tests.row_writers import Hand, Written, writers
from tests.servers import Bridge, Database, with_nats

ROWS = 120_000
"""More than PostgreSQL's statistics must say for a table to be copied in rounds."""
OPEN_S = (0.0, 0.03, 0.03, 0.3, 0.3, 2.0, 10.0, 10.0)
"""How long each of the eight writers leaves some of its transactions open."""
KILLS_MAX = 5
LIVE_S = 900.0
"""Each round waits for transactions that were open when it began: on a busy machine a copy takes minutes."""
FILL = (
    "INSERT INTO items SELECT 't' || g % 3, g, 0, CASE WHEN g % 400 = 0 THEN repeat('x', 3000) ELSE repeat('s', 60) END"
    f" FROM generate_series({{first}}, {{first}} + {ROWS} - 1) g"
)


@dataclass
class Tally:
    """What all runs came to."""

    runs: int = 0
    wrong: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    amid: Counter[str] = field(default_factory=Counter)
    """Kills while a snapshot had begun and had not ended."""
    others: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """For the documents."""
        kills = ", ".join(
            f"{count} of {name} ({self.amid[name]} of them amid rounds)" for name, count in sorted(self.kills.items())
        )
        others = ", ".join(f"{count:,} {name}" for name, count in sorted(self.others.items()))
        return f"{self.runs} runs, {self.wrong} wrong; kills: {kills}; {others}"


class Run:
    """One copy. Owns servers, bridge, mirror and their folder; `close` ends them."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._dice = dice = random.Random(f"copies {seed}")
        self.folder = Path(tempfile.mkdtemp(prefix="walbridge-copies-"))
        self.folder.chmod(0o711)
        # a slow commit: long between its place in the WAL and its being seen
        settings = {"commit_delay": "3000", "commit_siblings": "1"} if dice.random() < 0.5 else {"fsync": "off"}
        programs = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), self.folder)
        self.postgres = PostgresServer(
            programs,
            self.folder / "postgres",
            port=free_port(),
            settings={"shared_buffers": "32MB", **settings},
            password="copies",
        )
        self.postgres.initdb()
        self.postgres.start()
        self.nats = NatsServer(find_nats_server(), self.folder / "nats", port=free_port())
        self.nats.start()
        self.database = Database(self.postgres, "copies")
        key, where = dice.choice(("id", "tenant, id", "id, tenant")), dice.choice(("", " WHERE (id > 0)"))
        full = " ALTER TABLE items REPLICA IDENTITY FULL;" if dice.random() < 0.25 else ""
        self.database.execute(
            f"CREATE TABLE items (tenant text, id bigint, v int, big text, PRIMARY KEY ({key}));{full}"
            f" ALTER TABLE items ALTER big SET STORAGE EXTERNAL; {FILL.format(first=1)};"
            f" CREATE PUBLICATION cdc_pub FOR TABLE items{where}; ANALYZE items"
        )
        flags = ["--snapshot-round-s", dice.choice(("1", "2")), "--snapshot-rate-mb-s", "1"]
        flags += ["--snapshot-parallel", dice.choice("124"), "--publish", dice.choice(("auto", "plain"))]
        flags += dice.choice(([], ["--json"], ["--zstd"], ["--pack", "50"]))
        self.bridge = Bridge(self.database.dsn, self.nats, self.folder, *flags)
        self.mirror = MirrorProcess(self.nats, self._replica(), self.folder, "--rounds-from", str(1 << 16))
        self.shape = f"key {key}{where}{' FULL' if full else ''}, {' '.join(flags)}, {self.mirror.to.partition(':')[0]}"
        self.kills, self.amid = Counter[str](), Counter[str]()
        self.truncated = 0

    def _replica(self) -> str:
        if self._dice.random() < 0.5:
            return f"sqlite:///{self.folder}/replica.db"
        replica = Database(self.postgres, "replica")
        replica.close()
        return replica.dsn

    def go(self) -> tuple[str, Written]:
        """Copy amid kills; return what is wrong, if anything, and what was written."""
        self.bridge.start()
        with writers(self.database, _change, open_s=OPEN_S, open_often=0.05, seed=self._seed) as written, self._truncating():
            self.mirror.start()
            if self._dice.random() < 0.9:
                self._wait_until(lambda state: bool(state.get("begun")))
            for _ in range(self._dice.randint(2, KILLS_MAX)):
                self._wait_for_chunks()
                time.sleep(self._dice.uniform(0, 1.2))
                self._kill(self._dice.choice(("bridge", "postgres", "nats", "mirror")))
            wrong = self._wait_live()
        return wrong or self._compare(), written

    def _wait_for_chunks(self) -> None:
        """Until some more chunks are stored, or the snapshot ends."""
        wanted = self._state().get("chunks", 0) + self._dice.randint(0, 3)
        self._wait_until(lambda state: state.get("chunks", 0) >= wanted or 0 < state.get("begun", 0) == state.get("ended"))

    def _wait_until(self, condition: Callable[[dict[str, int]], bool]) -> None:
        """Until it is so, or for a while."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not condition(self._state()):
            time.sleep(0.05)

    def _kill(self, name: str) -> None:
        state = self._state()
        self.kills[name] += 1
        self.amid[name] += state.get("begun", 0) > state.get("ended", 0)
        pause_s = self._dice.choice((0.0, self._dice.uniform(0, 2)))
        match name:
            case "bridge":
                self.bridge.kill()
                time.sleep(pause_s)
                self.bridge.start(ready=False)
            case "postgres":
                self.postgres.kill()
                time.sleep(pause_s)
                self.postgres.start()
            case "nats":
                self.nats.kill()
                time.sleep(pause_s)
                self.nats.start()
            case _:
                self.mirror.kill()
                time.sleep(pause_s)
                self.mirror.start()

    def _keep_alive(self) -> None:
        """Start again what ended by itself, as a supervisor would."""
        if self.bridge.exit_code is not None:
            self.bridge.start(ready=False)
        if self.mirror.process is None or self.mirror.process.poll() is not None:
            self.mirror.start()

    def _state(self) -> dict[str, int]:
        """How many snapshots have begun and ended, and how many chunks there are; empty while NATS is away."""
        with suppress(OSError, nats.errors.Error, nats.js.errors.Error):
            return with_nats(self.nats.url, _state_of_init)
        return {}

    def _wait_live(self) -> str:
        deadline = time.monotonic() + LIVE_S
        while time.monotonic() < deadline:
            self._keep_alive()
            with suppress(psycopg.Error, sqlite3.Error):
                if self.mirror.query(f"SELECT count(*) FROM {self.mirror.own('tables')} WHERE state = 'live'") == [(1,)]:
                    return ""
            time.sleep(0.2)
        return f"the mirror does not become live: {self.mirror.log()[-4000:]}"

    def _compare(self) -> str:
        done = self.mirror.verify(self.database.dsn, "--timeout", "120")
        return (
            "" if done.returncode == 0 else f"exit {done.returncode}: {done.stdout}\n{done.stderr}\n{self.mirror.log()[-3000:]}"
        )

    def counts(self) -> Counter[str]:
        """What the snapshots came to."""
        state = self._state()
        return Counter({"chunks": state.get("chunks", 0), "snapshots": state.get("begun", 0), "TRUNCATEs": self.truncated})

    @contextmanager
    def _truncating(self) -> Iterator[None]:
        """In a third of the runs, empty the table and fill it again, once or twice, while others write."""
        dice = random.Random(f"truncate {self._seed}")
        times = dice.choice((0, 0, 1, 2))

        def truncate(done: threading.Event) -> None:
            for number in range(1, times + 1):
                done.wait(dice.uniform(2, 15))
                while not done.is_set():
                    with suppress(psycopg.OperationalError), self.database.connect(autocommit=False) as connection:
                        connection.execute("SET lock_timeout = '11s'")  # longer than the longest transaction of a writer
                        connection.execute("TRUNCATE items")
                        connection.execute(FILL.format(first=1 + number * ROWS).encode())
                        connection.commit()
                        self.truncated += 1
                        break

        with beside(truncate):
            yield

    def close(self, *, keep: bool) -> None:
        """End all processes; `keep` the folder with the logs."""
        self.bridge.kill()
        self.mirror.kill()
        self.nats.kill()
        self.database.close()
        self.postgres.stop("immediate")
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def _change(hand: Hand) -> None:
    """Rows come, go, change their keys and large values, and move into the row filter and out of it."""
    pick, fresh, some = hand.chance.random(), next(hand.fresh), hand.chance.randint(1, ROWS)
    if hand.chance.random() < 0.3:
        some = some // 400 * 400  # one with a large value
    own = "AND pg_try_advisory_xact_lock(id)"
    if pick < 0.2:
        hand.run("INSERT INTO items VALUES ('new', %s, 1, 'new')", fresh)
    elif pick < 0.45:
        hand.run(f"UPDATE items SET v = v + 1 WHERE id = %s {own}", some)
    elif pick < 0.55:
        hand.run(f"UPDATE items SET big = repeat('y', v %% 3000) WHERE id = %s {own}", some)
    elif pick < 0.65:
        hand.run(f"DELETE FROM items WHERE id = %s {own}", some)
    elif pick < 0.75:
        hand.run(f"UPDATE items SET id = %s WHERE id = %s {own}", fresh if pick < 0.7 else -fresh, some)
    elif pick < 0.85:
        hand.run(f"UPDATE items SET tenant = tenant || '''x' WHERE id = %s AND length(tenant) < 20 {own}", some)
    elif pick < 0.95:
        hand.run(f"UPDATE items SET id = -id WHERE id IN (%s, %s) {own}", some, -some)
    else:
        hand.run(f"DELETE FROM items WHERE id BETWEEN %s AND %s {own}", some, some + 20)


async def _state_of_init(client: Any) -> dict[str, int]:
    subjects = (await client.jetstream().stream_info("INIT", subjects_filter="init.>")).state.subjects or {}
    kinds = Counter[str]()
    for subject, count in subjects.items():
        _, kind, part, *_ = subject.split(".")
        if part == "items+ranges":
            kinds[kind] += count
    return {"begun": kinds["start"], "ended": kinds["meta"] + kinds["error"], "chunks": kinds["snap"]}


def main() -> int:
    """Run, and print what came of it; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.copies_amid_kills", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10_000, help="begin no run after these")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the next ones count up")
    parser.add_argument("--keep", action="store_true", help="keep logs and data even if nothing was wrong")
    options = parser.parse_args()
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # servers are killed all the time
    deadline = time.monotonic() + options.minutes * 60
    tally = Tally()
    for number in range(options.seed, options.seed + options.runs):
        if time.monotonic() > deadline:
            break
        began = time.monotonic()
        run = Run(str(number))
        wrong = "did not end"
        try:
            wrong, written = run.go()
            counts = run.counts()
            if not wrong and not counts["chunks"]:
                wrong = "the table was not copied in rounds"
        except AssertionError as exc:
            wrong, written, counts = f"{exc}", Written(), Counter()
        finally:
            run.close(keep=options.keep or bool(wrong))
        tally.runs += 1
        tally.wrong += bool(wrong)
        tally.kills += run.kills
        tally.amid += run.amid
        tally.others += counts + Counter({"transactions": written.committed, "held open": written.held_open})
        _say(f"seed {number}: {run.shape}: kills {dict(run.kills)}, amid {dict(run.amid)}, {dict(counts)},"
             f" {written.committed} transactions, {time.monotonic() - began:.0f} s")  # fmt: skip
        if wrong:
            _say(f"WRONG with seed {number}, logs in {run.folder}: {wrong}")
    _say(tally.line())
    return 1 if tally.wrong else 0


def _say(words: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
