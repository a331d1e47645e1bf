"""`walbridge demo`: servers, bridge, load and a live replica in one terminal, with keys that do real harm.

The bridge and the mirror are processes of their own, so that they can be killed; PostgreSQL and NATS come from the
`embedded` extra. Nothing has a fixed port, and nothing is left behind unless `--keep` says where.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psycopg

from actors.config import SETTINGS
from actors.errors import Fatal
from actors.tools.demo_screen import Screen, Seen, open_screen
from actors.tools.demo_watch import Watcher
from actors.tools.embedded import EmbeddedServers, start_embedded
from actors.tools.keys import read_keys
from actors.tools.mixed_load import Counts, MixedLoad
from actors.tools.sample_rows import SampleRows
from actors.tools.server_process import ServerProcess, free_port, unprivileged_account

TABLES = ("users", "orders")
RATES = (10, 50, 100, 250, 500, 1_000, 2_000)
NATS_AWAY_S = 5.0
SETTLE_S = 30.0
TICK_S = 0.25


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


def run_demo(*, seconds: float | None, keep: Path | None, rate: int, as_json: bool) -> int:
    """Run until `q`, Ctrl-C or `seconds`; returns 0 when the replica is equal to the source in the end.

    Blocking; starts threads and child processes, and ends them all. Raises ConfigError without the `embedded` extra.
    """
    talk = sys.stderr if as_json else sys.stdout
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
        yield keep
        return
    # PostgreSQL does not run as root: another user must get in
    base = Path("/var/tmp") if unprivileged_account() else None
    path = Path(tempfile.mkdtemp(prefix="walbridge-demo-", dir=base))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Demo:
    """One demonstration. Owns the bridge's and the mirror's process and the load's thread while `run` runs."""

    def __init__(self, servers: EmbeddedServers, folder: Path, rate: int) -> None:
        self._env_file = folder / "demo.env"
        self._servers, self._folder = servers, folder
        self.rate = rate
        self.counts = Counts()
        self.bridge_killed = self.nats_stopped = 0
        self.last_words = ""
        self._port = free_port()
        self._replica = f"sqlite:///{folder / 'replica.db'}"
        self._bridge: ServerProcess | None = None
        self._mirror: ServerProcess | None = None
        self._ended = threading.Event()
        self._columns_added = 0
        self._load_fault: BaseException | None = None
        self._compared = False
        self._nats_back: threading.Timer | None = None

    def run(self, screen: Screen, seconds: float | None) -> Outcome:
        """Start everything, show it until the end, and prove that both sides are equal."""
        began = time.monotonic()
        self._write_environment()
        screen.say(self._addresses())
        with ExitStack() as ending:
            self._start_bridge()
            ending.callback(lambda: self._end(self._bridge))
            ending.callback(lambda: self._end(self._mirror))
            load = threading.Thread(target=self._load, name="load", daemon=True)
            load.start()
            ending.callback(self._ended.set)
            watcher = Watcher(self._servers, self._port, self._folder / "replica.db", TABLES)
            ending.callback(watcher.close)
            with suppress(KeyboardInterrupt), read_keys() as key:
                while seconds is None or time.monotonic() - began < seconds:
                    seen = watcher.look()
                    screen.show(self._seen(seen, began))
                    self._start_mirror(seen)
                    if self._load_fault is not None or not self._press(key(TICK_S), screen):
                        break
            self._ended.set()
            load.join(SETTLE_S)
            if self._nats_back is not None:
                self._nats_back.join()
            screen.say("load stopped; proving that both sides are equal ...")
            self._await_replica(watcher)
            equal = self._verify(screen)
            last = watcher.look()
        if self._load_fault is not None:
            raise Fatal("WB410", "the demo's load ended", said=repr(self._load_fault))
        return Outcome(
            equal, self._compared, round(time.monotonic() - began, 1), last.events, self.counts.transactions,
            self.bridge_killed, self.nats_stopped, {table.name: table.in_postgres for table in last.tables},
        )  # fmt: skip

    # -- what the keys do

    def _press(self, key: str, screen: Screen) -> bool:
        actions: dict[str, Callable[[], None]] = {
            "k": self._kill_bridge, "n": self._stop_nats, "d": self._alter, "s": self._snapshot,
            "+": lambda: self._change_rate(1), "-": lambda: self._change_rate(-1), "v": lambda: self._verify_now(screen),
        }  # fmt: skip
        if key in ("q", "\x03", "\x04"):
            return False
        if key in actions:
            actions[key]()
        return True

    def _kill_bridge(self) -> None:
        assert self._bridge is not None
        self._bridge.end()
        self.bridge_killed += 1
        self.last_words = "bridge killed with -9 and started again"
        self._start_bridge()

    def _stop_nats(self) -> None:
        if self._nats_back is not None and self._nats_back.is_alive():
            return
        self.nats_stopped += 1
        self.last_words = f"NATS killed; it comes back after {NATS_AWAY_S:g} s"
        self._servers.nats.kill()
        self._nats_back = threading.Timer(NATS_AWAY_S, self._servers.nats.start)
        self._nats_back.start()

    def _alter(self) -> None:
        self._columns_added += 1
        name = f"added_{self._columns_added}"
        with closing(psycopg.connect(self._servers.database_url, autocommit=True)) as connection:
            connection.execute(f"ALTER TABLE users ADD COLUMN IF NOT EXISTS {name} text DEFAULT 'new'".encode())
        self.last_words = f"ALTER TABLE users ADD COLUMN {name}"

    def _snapshot(self) -> None:
        self._post("/snapshot/users")
        self.last_words = "snapshot of users asked for"

    def _change_rate(self, step: int) -> None:
        place = min(range(len(RATES)), key=lambda i: abs(RATES[i] - self.rate))
        self.rate = RATES[max(0, min(len(RATES) - 1, place + step))]
        self.last_words = f"{self.rate:,} changes a second asked for"

    def _verify_now(self, screen: Screen) -> None:
        self.last_words = "verify: equal at one LSN, under load" if self._verify(screen) else "verify: NOT equal"

    # -- processes

    def _write_environment(self) -> None:
        """What leads the children to the servers, in a file that only we may read: a command line is for all to see."""
        self._env_file.touch(mode=0o600)
        self._env_file.write_text("".join(f"{name}={value}\n" for name, value in self._servers.environment.items()))

    def _child(self, name: str, *arguments: str) -> ServerProcess:
        argv = [sys.executable, "-m", "actors.main", *arguments, "--env-file", str(self._env_file)]
        return ServerProcess(argv, log_path=self._folder / f"{name}.log", account=None, orphan_signal=signal.SIGTERM)

    def _start_bridge(self) -> None:
        self._bridge = self._child("bridge", "run", "--port", str(self._port))

    def _start_mirror(self, seen: Seen) -> None:
        """Once the bridge has made the streams that it reads."""
        if self._mirror is None and seen.state == "streaming":
            self._mirror = self._child("mirror", "mirror", "--tables", ",".join(TABLES), "--to", self._replica)

    def _await_replica(self, watcher: Watcher) -> None:
        """A short demo may end before the first copy did."""
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            seen = watcher.look()
            if all(table.in_replica is not None for table in seen.tables):
                return
            self._start_mirror(seen)
            time.sleep(TICK_S)

    def _end(self, process: ServerProcess | None) -> None:
        if process is not None:
            process.end((signal.SIGTERM, SETTLE_S))

    def _post(self, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data=b"", method="POST")
        with suppress(OSError), urllib.request.urlopen(request, timeout=2):
            pass

    def _verify(self, screen: Screen) -> bool:
        """Run `walbridge verify` on both sides; its words go to the screen."""
        argv = [sys.executable, "-m", "actors.main", "verify", "--tables", ",".join(TABLES), "--to", self._replica]
        # what is set here for another bridge would beat the file
        ours = {f"{setting.variable}{suffix}" for setting in SETTINGS.values() for suffix in ("", "_FILE")}
        done = subprocess.run(
            [*argv, "--env-file", str(self._env_file)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env={name: value for name, value in os.environ.items() if name not in ours},
        )  # fmt: skip
        screen.say((done.stdout + done.stderr).strip())
        self._compared = "compared at LSN" in done.stdout
        return done.returncode == 0

    def _load(self) -> None:
        """Transactions at the wished rate, in a thread, until the end."""
        try:
            with closing(psycopg.connect(self._servers.database_url, autocommit=True)) as connection:
                load = MixedLoad(connection, SampleRows(), self.counts)
                due, before = time.monotonic(), 0
                while not self._ended.is_set():
                    load.transaction()
                    done = self.counts.changes + self.counts.undone
                    due = max(due + (done - before) / self.rate, time.monotonic() - 1)
                    before = done
                    self._ended.wait(max(0.0, due - time.monotonic()))
        except psycopg.Error as exc:
            self._load_fault = exc

    # -- what is seen

    def _seen(self, seen: Seen, began: float) -> Seen:
        return replace(
            seen, seconds=time.monotonic() - began, bridge_killed=self.bridge_killed, nats_stopped=self.nats_stopped,
            rate_wished=self.rate, said=self.last_words,
        )  # fmt: skip

    def _addresses(self) -> str:
        rows = {
            "PostgreSQL": f"127.0.0.1:{self._servers.postgres.port}   {self._servers.psql_line}",
            "NATS": f"127.0.0.1:{self._servers.nats.port}   {self._servers.nats_line}",
            "Page": f"http://127.0.0.1:{self._port}/",
            "Replica": str(self._folder / "replica.db"),
            "Logs": f"{self._folder / 'bridge.log'}, mirror.log",
        }
        return "\n".join(f"{label + ':':<12}{text}" for label, text in rows.items())


def _last_words(outcome: Outcome, keep: Path | None) -> str:
    harm = [
        f"{number} time{'s' if number > 1 else ''} {what}"
        for number, what in ((outcome.bridge_killed, "kill -9 of the bridge"), (outcome.nats_stopped, "kill -9 of NATS"))
        if number
    ]
    lines = [
        f"{outcome.events:,} events of {outcome.transactions:,} transactions in {outcome.seconds:g} s"
        + (f", {' and '.join(harm)}" if harm else ""),
        "The replica is equal to the source: no change lost, none doubled."
        if outcome.equal
        else "The replica is NOT equal to the source: please report this, with the logs (--keep DIR keeps them)."
        if outcome.compared
        else "The two sides could not be compared: see above.",
        "",
        "With your own database:",
        "  walbridge export sql-role | psql ...          # a role that may read changes, and a publication",
        "  DATABASE_URL=postgresql://... NATS_URL=nats://... walbridge run",
        "  walbridge mirror --tables users --to sqlite:///replica.db",
    ]
    if keep is not None:
        lines.append(f"Data and logs are in {keep}.")
    return "\n".join(lines)
