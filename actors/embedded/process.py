"""One server program as a child process that never outlives us: the part that PostgreSQL and NATS have in common.

Used by the embedded servers, the tests and the benchmark. Plain blocking code: run it before trio, or in a thread.
"""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from actors.errors import ConfigError, Fatal

with suppress(ModuleNotFoundError):  # it comes with the `embedded` extra, whose absence is reported before any use
    import psutil

# Waits for the end of its standard input, which is ours to close: also kill -9 closes it. A process that got the
# server's id since then has another start time and is left alone. CONT lets a stopped server take the signal.
_WATCHDOG = """
pid=$1 signal=$2 started=$3
read -r _
if [ -n "$started" ]; then
  read -r stat < "/proc/$pid/stat" || exit 0
  set -- ${stat##*) }
  [ "${20}" = "$started" ] || exit 0
fi
kill -s "$signal" "$pid"; kill -s CONT "$pid"
"""

# Below the range from which Linux and macOS take the ports of outgoing connections: a client that keeps trying to
# reach a stopped server would otherwise one day get the server's port as its own, and connect to itself.
PORTS = range(15_000, 30_000)
_given_ports: set[int] = set()


def port_is_free(port: int) -> bool:
    """Whether a server can listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free TCP port of 127.0.0.1; never the same twice in one process."""
    for port in random.sample(PORTS, len(PORTS)):
        if port not in _given_ports and port_is_free(port):
            _given_ports.add(port)
            return port
    raise OSError(f"no free port in {PORTS.start}-{PORTS.stop} of 127.0.0.1")


class Account(NamedTuple):
    """A user of the system that a server runs as in place of root."""

    name: str
    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Whether this user can reach what is in a folder."""
        entered = run_as(self, ["/bin/sh", "-c", 'cd "$1"', "sh", str(folder)])
        return entered.returncode == 0


def unprivileged_account(owner_of: Path | None = None) -> Account | None:
    """Who a server that refuses root runs as: None (ourselves) unless we are root.

    The owner of the folder `owner_of` where it exists and is not root's, else `postgres`, else `nobody`.
    """
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    if owner_of is not None and owner_of.exists() and (uid := owner_of.stat().st_uid) != 0:
        owners = [entry for entry in accounts.values() if entry.pw_uid == uid]
        gid = owners[0].pw_gid if owners else owner_of.stat().st_gid
        return Account(owners[0].pw_name if owners else str(uid), uid, gid)
    for name in ("postgres", "nobody"):
        if name in accounts:
            return Account(name, accounts[name].pw_uid, accounts[name].pw_gid)
    raise ConfigError("WB403", "no user postgres or nobody: PostgreSQL refuses to run as root",
                      fix="useradd --system postgres")  # fmt: skip


def run_as(account: Account | None, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a short command as `account` (None: as ourselves) and return what it said, standard error included.

    Raises OSError when the account cannot reach the program.
    """
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        cwd="/", env=_environment(), check=False, user=account and account.uid, group=account and account.gid,
        extra_groups=account and ())  # fmt: skip


class ServerProcess:
    """A running server: its process, its log file, and a watchdog that ends it should we be killed.

    Owns both processes until `end`; the watchdog (one `/bin/sh`) sends `orphan_signal` to the server when our end of
    its pipe closes, so that even `kill -9` leaves no server running. The server has a session of its
    own: a Ctrl-C in our terminal does not reach it before we are done with it.
    """

    def __init__(self, argv: Sequence[str], *, log_path: Path, account: Account | None, orphan_signal: signal.Signals) -> None:
        """Start the program. Raises OSError when `account` cannot run it."""
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._log_start = log.tell()
            self._server = _spawn(argv, account, stdin=subprocess.DEVNULL, output=log)
        watchdog = ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self.pid), orphan_signal.name.removeprefix("SIG"),
                    _start_time(self.pid)]  # fmt: skip
        self._watchdog = _spawn(watchdog, account, stdin=subprocess.PIPE, output=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """The server's own process id."""
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the server has not ended yet."""
        return self._server.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The server's exit code: negative for a signal, None while it runs."""
        return self._server.poll()

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that the server logged since this start."""
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, log.tell() - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def send(self, sig: signal.Signals) -> None:
        """Send a signal to the server, if it still runs."""
        self._server.send_signal(sig)

    def freeze(self) -> None:
        """Send SIGSTOP and return once every thread has stopped."""
        self.send(signal.SIGSTOP)
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(self.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)

    def end(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal and wait so many seconds for the server's end; then kill the server. Idempotent."""
        for sig, wait_s in (*steps, (signal.SIGKILL, None)):
            self._server.send_signal(sig)
            try:
                self._server.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
            break
        self._watchdog.kill()
        self._watchdog.wait()
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()


def descendants(pid: int) -> list[Any]:
    """The descendants (psutil's) of a process; none when it is gone."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def wait_until_gone(processes: Sequence[Any], patience_s: float = 10.0) -> None:
    """Wait for processes that are about to end, and kill those that take longer than `patience_s`.

    A zombie counts as gone, since a process whose parent was killed may have no parent to reap it; but only without
    other threads: until they end, files and ports are not closed.
    """
    deadline = time.monotonic() + patience_s
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1):
                if time.monotonic() > deadline:
                    process.kill()
                time.sleep(0.01)


def end_left_over(pid_path: Path, argument: Path, sig: signal.Signals) -> None:
    """End a server, and its children, that still runs after its owner is gone; the caller knows that it is gone.

    The process id in the first line of `pid_path` counts only when `argument` stands in that process's command line:
    ids are used again.
    """
    with suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(pid_path.read_text(encoding="utf-8").partition("\n")[0]))
        if str(argument) in process.cmdline():
            family = [process, *descendants(process.pid)]
            process.send_signal(sig)
            wait_until_gone(family)


def did_not_start(name: str, process: ServerProcess) -> Fatal:
    """The error for a server that ended, or stayed silent, instead of becoming ready; quotes its log."""
    ended = process.exit_code
    return Fatal("WB404", f"{name} did not start" + ("" if ended is None else f": it ended with exit code {ended}"),
                 said=process.log_tail(), fix=f"less {process.log_path}")  # fmt: skip


def _spawn(argv: Sequence[str], account: Account | None, *, stdin: int, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, cwd="/", env=_environment(),
        start_new_session=True, user=account and account.uid, group=account and account.gid,
        extra_groups=account and ())  # fmt: skip


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT and their like are meant for the user's other servers.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat, which distinguishes a process from a later one with the same id; empty without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()[19]
    except OSError:
        return ""
