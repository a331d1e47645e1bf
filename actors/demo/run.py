"""`walbridge demo`: servers, bridge, load and a live replica in one terminal, with keys that do real harm.

The bridge and the mirror are processes of their own, so that they can be killed; PostgreSQL and NATS come from the
`embedded` extra. Nothing has a fixed port, and nothing is left behind unless `--keep` says where.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psycopg

from actors.demo.keys import read_keys
from actors.demo.screen import LOG_LINES, Proof, Screen, Seen, open_screen
from actors.demo.watch import Watcher
from actors.embedded.process import ServerProcess, free_port, unprivileged_account
from actors.embedded.servers import LOCK, EmbeddedServers, owned, start_embedded
from actors.errors import Fatal
from actors.sample.mixed_load import Counts, MixedLoad
from actors.sample.rows import SampleRows
from actors.settings.config import SETTINGS

TABLES = ("users", "orders")
RATES = (10, 50, 100, 250, 500, 1_000, 2_000)
NATS_AWAY_S = 5.0
SETTLE_S = 30.0
PROVE_EVERY_S = 10.0
TICK_S = 0.25
PREFIX = "walbridge-demo-"
LEFT_OVER_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a demo ended."""

    equal: bool
    compared: bool
    """Both sides could be compared at all."""
    seconds: float
    events: int
    transactions: int
    bridge_killed: int
    nats_stopped: int
    rows: dict[str, int]
    proofs: int = 0
    """How often both sides were compared while changes came."""


def run_demo(*, seconds: float | None, keep: Path | None, rate: int, as_json: bool) -> int:
    """Run until `q`, Ctrl-C or `seconds`; returns 0 when the replica is equal to the source in the end.

    Blocking; starts threads and child processes, and ends them all. Raises ConfigError without the `embedded` extra.
    """
    talk = sys.stderr if as_json else sys.stdout
    print("Starting PostgreSQL and NATS ...", file=talk, flush=True)
    with _folder(keep) as folder, start_embedded(folder) as servers:
        demo = Demo(servers, folder, rate)
        with open_screen(talk) as screen:
            outcome = demo.run(screen, seconds)
        if as_json:
            print(json.dumps(asdict(outcome)))
        else:
            print(_last_words(outcome, keep), flush=True)
        return 0 if outcome.equal else 1


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep.absolute()  # the demo's processes run in other folders
        return
    # PostgreSQL does not run as root: another user must get in
    base = Path("/var/tmp") if unprivileged_account() else None
    base = base or Path(tempfile.gettempdir())
    _remove_left_over(base)
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_left_over(base: Path) -> None:
    """Remove the folders of our demos that were killed: their servers ended with them, so nobody holds their locks."""
    for lock in base.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError, Fatal):
            folder, file = lock.parent.lstat(), lock.lstat()
            # another user's folder may hold a link to anything
            is_ours = stat.S_ISDIR(folder.st_mode) and folder.st_uid == os.geteuid() and stat.S_ISREG(file.st_mode)
            if is_ours and time.time() - file.st_mtime > LEFT_OVER_S:  # a younger one may be about to be held
                with owned(lock.parent):
                    shutil.rmtree(lock.parent, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `walbridge verify` found."""

    equal: bool
    compared: bool
    words: str


class Demo:
    """One demonstration. Owns the bridge's and the mirror's process and its threads while `run` runs.

    What takes longer than a moment runs in a thread, so that the screen stays responsive.
    """

    def __init__(self, servers: EmbeddedServers, folder: Path, rate: int) -> None:
        self._servers, self._folder = servers, folder
        self.rate = rate
        self.counts = Counts()
        self.bridge_killed = self.nats_stopped = 0
        self._port = free_port()
        self._replica = f"sqlite:///{folder / 'replica.db'}"
        self._bridge: ServerProcess | None = None
        self._mirror: ServerProcess | None = None
        self._log: deque[tuple[float, str]] = deque(maxlen=LOG_LINES)
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._state = ""
        self._columns_added = 0
        self._alter_wanted = False
        self._load_ended = threading.Event()
        self._copied = threading.Event()
        self._nats_back: Future[None] | None = None
        self._verifying: Future[Verdict] | None = None
        self._is_asked_for = False
        self._proof: Proof | None = None
        self._prove_at = math.inf
        self._verify_process: subprocess.Popen[str] | None = None

    def run(self, screen: Screen, seconds: float | None) -> Outcome:
        """Start everything, show it until the end, and prove that both sides are equal."""
        began = self._began = time.monotonic()
        self._seconds = seconds
        with ThreadPoolExecutor() as threads, ExitStack() as ending:
            self._threads = threads
            self._start_bridge()
            ending.callback(lambda: self._end(self._bridge))
            ending.callback(lambda: self._end(self._mirror))
            load = threads.submit(self._load)
            ending.callback(self._load_ended.set)
            ending.callback(self._kill_verify)
            watcher = Watcher(self._servers, self._port, self._folder / "replica.db", TABLES)
            ending.callback(watcher.close)
            with suppress(KeyboardInterrupt), read_keys() as key:
                while seconds is None or time.monotonic() - began < seconds:
                    self._show(screen, watcher)
                    if load.done() or not self._press(key(TICK_S)):
                        break
            self._load_ended.set()
            verdict = threads.submit(self._prove, load)
            while not verdict.done():
                self._show(screen, watcher, ending="load stopped; proving that both sides are equal ...")
                time.sleep(TICK_S)
            screen.say(verdict.result().words)
            last = self._show(screen, watcher, ending="stopped")
        if (fault := load.exception()) is not None:
            raise Fatal("WB410", "the demo's load ended", said=repr(fault)) from fault
        return Outcome(
            verdict.result().equal, verdict.result().compared, round(time.monotonic() - began, 1), last.events,
            self.counts.transactions, self.bridge_killed, self.nats_stopped,
            {table.name: table.in_postgres for table in last.tables}, self._proof.number if self._proof is not None else 0,
        )  # fmt: skip

    # -- what the keys do

    def _press(self, key: str) -> bool:
        actions: dict[str, Callable[[], None]] = {
            "k": self._kill_bridge, "n": self._stop_nats, "d": self._alter, "s": self._snapshot, "v": self._verify_now,
            "+": lambda: self._change_rate(1), "-": lambda: self._change_rate(-1),
        }  # fmt: skip
        if key in ("q", "\x03", "\x04"):
            return False
        if key in actions:
            actions[key]()
        return True

    def _say(self, words: str) -> None:
        """Write words into the log."""
        self._log.append((time.monotonic() - self._began, words))

    def _kill_bridge(self) -> None:
        assert self._bridge is not None
        self._bridge.end()
        self.bridge_killed += 1
        self._say("bridge killed with -9 and started again")
        self._start_bridge()

    def _stop_nats(self) -> None:
        if self._nats_back is not None and not self._nats_back.done():
            return
        self.nats_stopped += 1
        self._say(f"NATS killed; it comes back after {NATS_AWAY_S:g} s")
        self._servers.nats.kill()
        self._nats_back = self._threads.submit(self._bring_nats_back)

    def _bring_nats_back(self) -> None:
        self._load_ended.wait(NATS_AWAY_S)  # at the end of the demo NATS need not stay away
        self._servers.nats.start()
        self._say("NATS is back")

    def _alter(self) -> None:
        if self._verifying is not None:
            self._say("ALTER TABLE waits until verify has read the tables: all writers would wait behind it")
            self._alter_wanted = True
            return
        self._alter_wanted = False
        self._columns_added += 1
        name = f"added_{self._columns_added}"
        with closing(psycopg.connect(self._servers.database_url, autocommit=True)) as connection:
            connection.execute(f"ALTER TABLE users ADD COLUMN IF NOT EXISTS {name} text DEFAULT 'new'".encode())
        self._say(f"ALTER TABLE users ADD COLUMN {name}")

    def _snapshot(self) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/snapshot/users", data=b"", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=2):
                self._say("snapshot of users requested")
        except OSError:
            self._say("no snapshot: the bridge does not answer")

    def _change_rate(self, step: int) -> None:
        place = min(range(len(RATES)), key=lambda i: abs(RATES[i] - self.rate))
        self.rate = RATES[max(0, min(len(RATES) - 1, place + step))]
        self._say(f"rate set to {self.rate:,} changes per second")

    def _verify_now(self) -> None:
        self._is_asked_for = True
        self._say("verify: comparing both sides at one LSN ...")
        if self._verifying is None:
            self._verifying = self._threads.submit(self._verify)

    # -- processes

    def _child(self, name: str, *arguments: str) -> ServerProcess:
        argv = [sys.executable, "-m", "walbridge", *arguments, "--env-file", str(self._servers.env_file)]
        return ServerProcess(argv, log_path=self._folder / f"{name}.log", account=None, orphan_signal=signal.SIGTERM)

    def _start_bridge(self) -> None:
        self._bridge = self._child("bridge", "run", "--port", str(self._port))

    def _start_mirror(self, seen: Seen) -> None:
        """Start the mirror once the bridge has made the streams that the mirror reads."""
        if self._mirror is None and seen.state == "streaming":
            self._mirror = self._child("mirror", "mirror", "--tables", ",".join(TABLES), "--to", self._replica)

    def _end(self, process: ServerProcess | None) -> None:
        if process is not None:
            process.end((signal.SIGTERM, SETTLE_S))

    def _prove(self, load: Future[None]) -> Verdict:
        """Compare both sides after the load and the servers have settled. Blocking."""
        wait([load])
        if self._verifying is not None:
            self._verifying.result()
        if self._nats_back is not None:
            self._nats_back.result()
        self._copied.wait(SETTLE_S)  # a short demo may end before the first copy did
        return self._verify()

    def _verify(self) -> Verdict:
        """Run `walbridge verify` on both sides. Blocking."""
        argv = [sys.executable, "-m", "walbridge", "verify", "--tables", ",".join(TABLES), "--to", self._replica]
        # what is set here for another bridge would beat the file
        ours = {f"{setting.variable}{suffix}" for setting in SETTINGS.values() for suffix in ("", "_FILE")}
        process = self._verify_process = subprocess.Popen(
            [*argv, "--env-file", str(self._servers.env_file)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ours},
        )  # fmt: skip
        words, _ = process.communicate()
        return Verdict(process.returncode == 0, "compared at LSN" in words, words.strip())

    def _kill_verify(self) -> None:
        """End a running verify: it has its own session, so that the Ctrl-C which asks for the verdict does not reach it."""
        if self._verify_process is not None:
            self._verify_process.kill()

    def _load(self) -> None:
        """Run transactions at the chosen rate, in a thread, until the end."""
        with closing(psycopg.connect(self._servers.database_url, autocommit=True)) as connection:
            load = MixedLoad(connection, SampleRows(), self.counts)
            due, before = time.monotonic(), 0
            while not self._load_ended.is_set():
                load.transaction()
                done = self.counts.changes + self.counts.undone
                due = max(due + (done - before) / self.rate, time.monotonic() - 1)
                before = done
                self._load_ended.wait(max(0.0, due - time.monotonic()))

    # -- what is seen

    def _show(self, screen: Screen, watcher: Watcher, *, ending: str = "") -> Seen:
        """Look at both sides, start the mirror once it can start, and show everything."""
        seen = watcher.look()
        self._start_mirror(seen)
        now = time.monotonic() - self._began
        if not self._copied.is_set() and all(table.in_replica is not None for table in seen.tables):
            self._copied.set()
            self._say("the first copy is complete: the replica follows")
            self._prove_at = now + 2
        if seen.state != self._state:
            if self._state:
                self._say(f"the bridge: {seen.state}")
            self._state = seen.state
        self._look_at_verify(screen, now, may_begin=not ending and seen.state == "streaming")
        if self._alter_wanted and self._verifying is None:
            self._alter()
        if self._mirror is not None and not self._mirror.running and not ending:
            self._say(f"the mirror has ended: see {self._mirror.log_path}")
        seen = replace(
            seen, seconds=now, bridge_killed=self.bridge_killed, nats_stopped=self.nats_stopped, log=tuple(self._log),
            proof=self._proof, next_proof_s=None if ending or self._prove_at == math.inf else max(0.0, self._prove_at - now),
            left_s=None if self._seconds is None or ending else self._seconds - now,
            addresses={} if ending else self._addresses(), ending=ending,
        )  # fmt: skip
        screen.show(seen)
        return seen

    def _look_at_verify(self, screen: Screen, now: float, *, may_begin: bool) -> None:
        """Take the verdict of a verify that has ended, and begin the next in its time."""
        if self._verifying is not None and self._verifying.done():
            verdict, self._verifying = self._verifying.result(), None
            self._prove_at = now + PROVE_EVERY_S
            found = re.search(r"compared at LSN (\S+)", verdict.words)
            if found is not None:
                number = self._proof.number if self._proof is not None else 0
                self._proof = Proof(verdict.equal, found[1], now, number + 1)
            if self._is_asked_for or not verdict.equal:
                unproved = "verify: both sides could not be compared meanwhile; again in a moment"
                words = "verify: equal at one LSN, under load" if verdict.equal else "verify: NOT EQUAL" if found else unproved
                self._say(words)
            if found is not None and not verdict.equal:
                screen.say(verdict.words)
            self._is_asked_for = False
        elif self._verifying is None and may_begin and now >= self._prove_at:
            self._verifying = self._threads.submit(self._verify)

    def _addresses(self) -> dict[str, str]:
        return {
            "PostgreSQL": f"127.0.0.1:{self._servers.postgres.port}   user postgres, password in {self._folder / 'pgpass'}",
            "NATS": f"127.0.0.1:{self._servers.nats.port}",
            "Page": f"http://127.0.0.1:{self._port}/",
            "See changes": f"walbridge tail --env-file {shlex.quote(str(self._servers.env_file))}",
            "Replica": str(self._folder / "replica.db"),
            "Logs": f"{self._folder / 'bridge.log'}, mirror.log",
        }


def _last_words(outcome: Outcome, keep: Path | None) -> str:
    harm = [
        f"{whom} was killed {'once' if number == 1 else f'{number} times'}"
        for whom, number in (("the bridge", outcome.bridge_killed), ("NATS", outcome.nats_stopped))
        if number
    ]
    lines = [
        f"{outcome.transactions:,} transactions, {outcome.events:,} events stored, in {outcome.seconds:g} s"
        + (f"; {' and '.join(harm)}" if harm else ""),
        "The replica is equal to the source: no change lost, none doubled."
        if outcome.equal
        else "The replica is NOT equal to the source: please report this, with the logs (--keep DIR keeps them)."
        if outcome.compared
        else "The two sides could not be compared: see above.",
        "",
        "With your own database:",
        "  walbridge init                                # asks, writes the settings, and says what comes next",
    ]
    if keep is not None:
        lines.append(f"Data and logs are in {keep}.")
    return "\n".join(lines)
