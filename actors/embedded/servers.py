"""PostgreSQL and NATS for `--embedded [DIR]`: two servers that start with the bridge, keep their data, and end with it.

The folder holds `postgresql-18/` and `nats/` (data), their logs beside them, `pgpass`, `nats.password` and `walbridge.env`
(secrets, mode 0600), `ports.json`, and `lock`, which is held as long as the servers are ours. Nothing is kept outside of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import SUPERUSER, PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import Account, free_port, port_is_free, unprivileged_account
from actors.errors import ConfigError

NATS_USER = "walbridge"
NATS_PASSWORD = "nats.password"
ENV_FILE = "walbridge.env"
PGPASS = "pgpass"
PORTS = "ports.json"
LOCK = "lock"
PUBLICATION = "cdc_pub"

# One transaction: where the publication is, everything is. Later DROPs and ALTERs of the user's are respected.
_SAMPLE = f"""
CREATE TABLE IF NOT EXISTS users (
  id bigserial PRIMARY KEY, name text NOT NULL, email text, age int, price numeric,
  created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS orders (
  id bigserial PRIMARY KEY, user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE, total numeric(12, 2) NOT NULL,
  status text NOT NULL DEFAULT 'new', created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS test_types (
  id bigserial PRIMARY KEY, uid uuid DEFAULT gen_random_uuid(), age int, temperature float8, price numeric(12, 4),
  is_true boolean, some_text text, tags text[], matrix int[][], metadata jsonb,
  created_at timestamptz NOT NULL DEFAULT now());
CREATE PUBLICATION {PUBLICATION} FOR TABLE users, orders, test_types;
"""


@dataclass(frozen=True, slots=True)
class EmbeddedServers:
    """Two running servers, both on 127.0.0.1 only. A context manager: leaving it stops them, NATS first.

    They also end when this process is killed, by whatever means.
    """

    directory: Path
    postgres: PostgresServer
    nats: NatsServer
    _open: ExitStack

    @property
    def database_url(self) -> str:
        """libpq URI of database `postgres` with its password: for the bridge, not for logs."""
        return self.postgres.dsn()

    @property
    def nats_url(self) -> str:
        """Address without credentials."""
        return self.nats.url

    @property
    def nats_user(self) -> str:
        """The only user of the NATS server."""
        return NATS_USER

    @property
    def nats_password(self) -> str:
        """Its password."""
        return self.nats.users[NATS_USER]

    @property
    def psql_line(self) -> str:
        """A shell line that inserts a row with psql, to copy and paste; the password stays in its file."""
        psql = shutil.which("psql") or str(self.postgres.bin_dir / "psql")
        insert = "INSERT INTO users (name, email) VALUES ('Ada', 'ada@example.org')"
        return (
            f"PGPASSFILE={shlex.quote(str(self.directory / PGPASS))} {shlex.quote(psql)} -h 127.0.0.1"
            f' -p {self.postgres.port} -U {SUPERUSER} -d postgres -c "{insert}"'
        )

    @property
    def env_file(self) -> Path:
        """For `--env-file` of every command: where both servers are, with their passwords."""
        return self.directory / ENV_FILE

    @property
    def tail_line(self) -> str:
        """A shell line that shows the changes, to copy and paste."""
        return f"walbridge tail --from first --env-file {shlex.quote(str(self.env_file))}"

    @property
    def mirror_line(self) -> str:
        """A shell line that keeps a replica of a sample table, to copy and paste."""
        return f"walbridge mirror --tables users --to sqlite:///users.db --env-file {shlex.quote(str(self.env_file))}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead the bridge to both servers."""
        return {"DATABASE_URL": self.database_url, "NATS_URL": self.nats_url, "NATS_BRIDGE_USER": self.nats_user,
                "NATS_BRIDGE_PASSWORD": self.nats_password}  # fmt: skip

    def write_env_file(self, bridge: Mapping[str, str] | None = None) -> None:
        """Write the file for `--env-file`, with variables of the bridge that runs on these servers, if it does."""
        lines = (f"{name}={value}\n" for name, value in {**self.environment, **(bridge or {})}.items())
        _write_atomically(self.env_file, "".join(lines))

    def describe(self) -> str:
        """Describe for a terminal what runs where: aligned lines without secrets."""
        rows = {
            "PostgreSQL": f"127.0.0.1:{self.postgres.port}   user postgres, database postgres",
            "NATS": f"127.0.0.1:{self.nats.port}   user {NATS_USER}",
            "For browsers": f"{self.nats.websocket_url}   the same user",
            "Data": f"{self.directory}   kept; logs and passwords are there too",
            "Change a row": self.psql_line,
            "See changes": self.tail_line,
            "Mirror it": self.mirror_line,
        }
        return "\n".join(f"{label + ':':<14}{text}" for label, text in rows.items())

    @property
    def ended(self) -> list[str]:
        """The servers whose process has ended by itself, or was killed."""
        return [name for name, server in (("PostgreSQL", self.postgres), ("NATS", self.nats)) if server.pid is None]

    def start_again(self, name: str) -> None:
        """Start a server that has ended, on its data and its port. Blocking. Raises Fatal when it does not start."""
        if name == "PostgreSQL":
            PostgresServer.stop_left_over(self.postgres.data_dir)
            self.postgres.start()
        else:
            self.nats.start()

    def stop(self) -> None:
        """Stop both servers and release the folder. Idempotent."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None,
                 _trace: TracebackType | None) -> None:  # fmt: skip
        self.stop()


def default_directory() -> Path:
    """/var/lib/walbridge for root; else walbridge in $XDG_DATA_HOME or ~/.local/share."""
    if os.geteuid() == 0:
        return Path("/var/lib/walbridge")
    # The XDG specification: a relative path is to be ignored.
    data_home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share") / "walbridge"


def start_embedded(directory: Path | None = None) -> EmbeddedServers:
    """Start PostgreSQL and NATS on the data in `directory`, made on first use with sample tables and a publication.

    Blocking, about a second: call it before trio runs, or in a thread. Passwords and ports are kept with the data, a
    port unless something else listens on it now. Raises ConfigError (extra missing, folder in use or out of reach of
    the user PostgreSQL runs as, password lost) and Fatal (a server that does not start, with its log's last lines).
    """
    postgres_bin_dir, nats_binary = find_postgres_bin_dir(), find_nats_server()
    directory = (directory or default_directory()).expanduser().absolute()
    data_dir, nats_dir = directory / "postgresql-18", directory / "nats"
    account = unprivileged_account(data_dir)
    _make_folder(directory, 0o700 if account is None else 0o755)
    _check_reachable(directory, account)
    with ExitStack() as starting:
        starting.enter_context(owned(directory))
        PostgresServer.stop_left_over(data_dir)
        NatsServer.stop_left_over(nats_dir)
        ports = _choose_ports(directory)
        postgres = PostgresServer(
            reachable_bin_dir(postgres_bin_dir, account, directory),
            data_dir,
            port=ports["postgres"],
            settings={"max_slot_wal_keep_size": "10GB"},
            password=_postgres_password(directory, data_dir, ports["postgres"]),
        )
        nats = NatsServer(nats_binary, nats_dir, port=ports["nats"], websocket_port=ports["websocket"],
                          users={NATS_USER: _nats_password(directory)})  # fmt: skip
        starting.callback(postgres.stop)
        starting.callback(nats.stop)
        if not postgres.initialized:
            postgres.initdb()
        postgres.start()
        nats.start()
        _make_sample_tables(postgres.dsn())
        servers = EmbeddedServers(directory, postgres, nats, starting.pop_all())
        servers.write_env_file()
        return servers


def is_embedded_folder(directory: Path) -> bool:
    """Whether a folder holds servers of ours."""
    return (directory / PORTS).is_file()


def _make_folder(folder: Path, mode: int) -> None:
    """Make the missing folders of a path, whatever the umask; existing folders keep their permissions."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        try:
            missing.mkdir()
        except OSError as error:
            raise ConfigError("WB401", f"--embedded {folder}: cannot make {missing}", said=str(error),
                              fix="--embedded with a folder that you may write to") from None  # fmt: skip
        missing.chmod(mode)


def _check_reachable(directory: Path, account: Account | None) -> None:
    if account is None or account.can_enter(directory):
        return
    closed = next(path for path in (*reversed(directory.parents), directory) if not account.can_enter(path))
    raise ConfigError("WB401", f"--embedded {directory}: user {account.name} may not enter {closed}",
                      means="PostgreSQL refuses to run as root and runs as that user",
                      fix=f"--embedded /var/lib/walbridge, or: chmod o+x {shlex.quote(str(closed))}")  # fmt: skip


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however we end."""
    with (directory / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError("WB402", f"--embedded {directory}: in use by process {lock.read().strip() or '?'}",
                              means="its servers end with that process",
                              fix="stop that process, or give this one a folder of its own") from None  # fmt: skip
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _choose_ports(directory: Path) -> dict[str, int]:
    """The ports of the last run, so that copied addresses keep working; new ports for those that are taken now."""
    path = directory / PORTS
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = {}
    ports = {
        name: kept[name] if name in kept and port_is_free(kept[name]) else free_port()
        for name in ("postgres", "nats", "websocket")
    }
    _write_atomically(path, json.dumps(ports))
    return ports


def _postgres_password(directory: Path, data_dir: Path, port: int) -> str:
    """The superuser's password, kept in the form that psql reads: host:port:database:user:password."""
    path = directory / PGPASS
    if path.exists():
        password = path.read_text(encoding="utf-8").strip().rpartition(":")[2]
    elif data_dir.exists():
        raise ConfigError("WB406", f"{path} is gone, and {data_dir} needs the password that it held",
                          fix=f"bring the file back, or start from nothing: rm -r {shlex.quote(str(directory))}")  # fmt: skip
    else:
        password = secrets.token_urlsafe(18)
    _write_atomically(path, f"127.0.0.1:{port}:*:{SUPERUSER}:{password}\n")
    return password


def _nats_password(directory: Path) -> str:
    path = directory / NATS_PASSWORD
    if not path.exists():
        _write_atomically(path, secrets.token_urlsafe(18))
    return path.read_text(encoding="utf-8").strip()


def _write_atomically(path: Path, text: str) -> None:
    """Write a file that only we may read, atomically: a kill leaves the old one or the new one."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def _make_sample_tables(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT FROM pg_publication WHERE pubname = %s", [PUBLICATION]).fetchone() is None:
            connection.execute(_SAMPLE)
