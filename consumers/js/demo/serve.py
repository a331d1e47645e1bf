"""Servers, a bridge, load and the page for `npm run demo`: `python demo/serve.py FOLDER`. Needs walbridge[embedded]."""

from __future__ import annotations

import functools
import http.server
import json
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from actors.embedded.bridge import Bridge
from actors.embedded.servers import EmbeddedServers, start_embedded
from actors.values.canonical import canonical_for
from actors.verification.comparison import Side

NAMES = "Ada Grace Edsger Barbara Donald Margaret Tony Radia Leslie Frances".split()
STATUSES = ("new", "paid", "packed", "sent", "returned")
ROWS = 20_000
PER_S = 40
DOWN_S = 3.0
COMPARED_WITHIN_S = 15.0
TABLES = {"users": (20, 25, 25, 23, 1700, 1184), "orders": (20, 20, 1700, 25, 1184)}
"""The compared tables with the OIDs of their columns' types."""


class Demo:
    """The servers, the bridge and the load, and what the page's buttons do with them."""

    def __init__(self, servers: EmbeddedServers) -> None:
        self._servers = servers
        self._bridge = Bridge(servers.database_url, servers.nats, servers.directory)
        self._load = threading.Event()
        self._quiet = threading.Lock()

    def start(self) -> None:
        """Fill the tables once, start the bridge and the load."""
        with psycopg.connect(self._servers.database_url, autocommit=True) as source:
            source.execute("ALTER ROLE CURRENT_USER SET timezone = 'UTC'")
            if source.execute("SELECT count(*) FROM users").fetchone() == (0,):
                source.execute(
                    "INSERT INTO users (name, email, age, price) SELECT (%s::text[])[1 + g %% 10] || ' ' || g,"
                    " 'user' || g || '@example.org', 18 + g %% 60, round((random() * 100)::numeric, 2)"
                    " FROM generate_series(1, %s) g",
                    [NAMES, ROWS],
                )
        self._bridge.start()
        threading.Thread(target=self._run_load, daemon=True).start()
        self._load.set()

    def stop(self) -> None:
        """End the bridge."""
        self._bridge.kill()

    def kill(self, _: bytes) -> dict[str, Any]:
        """kill -9 the bridge, and start it again a little later."""
        self._bridge.kill()
        threading.Timer(DOWN_S, lambda: self._bridge.start(ready=False)).start()
        return {"ok": True, "said": f"The bridge is dead. It starts again in {DOWN_S:g} s; nothing is lost."}

    def load(self, _: bytes) -> dict[str, Any]:
        """Start or end the load."""
        (self._load.clear if self._load.is_set() else self._load.set)()
        is_on = self._load.is_set()
        return {"ok": True, "on": is_on, "said": f"{PER_S} transactions a second." if is_on else "The load has ended."}

    def hold(self, _: bytes) -> dict[str, Any]:
        """Let the load be still for a moment, so that both sides can be read at one place."""
        self._quiet.acquire(timeout=COMPARED_WITHIN_S)
        threading.Timer(COMPARED_WITHIN_S, self._release).start()
        return {"ok": True, "said": ""}

    def verify(self, body: bytes) -> dict[str, Any]:
        """Compare the tab's rows with the source's, by the hashes of `walbridge verify`."""
        held: dict[str, list[list[str | None]]] = json.loads(body)
        said = []
        is_equal = True
        with psycopg.connect(self._servers.database_url) as source:
            for table, oids in TABLES.items():
                cursor = source.execute(f"SELECT * FROM {table}".encode())
                names = [column.name for column in cursor.description or []]
                texts = ", ".join(f"{name}::text" for name in names)
                canonical = [canonical_for(oid, {}) for oid in oids]
                mine, theirs = Side(canonical, [0]), Side(canonical, [0])
                mine.add(source.execute(f"SELECT {texts} FROM {table}".encode()))
                theirs.add(held.get(table, []))
                same = (mine.rows, mine.hash()) == (theirs.rows, theirs.hash())
                is_equal &= same
                said.append(f"{table}: {mine.rows:,} rows, {'equal' if same else f'not equal, {theirs.rows:,} here'}")
        self._release()
        return {"ok": is_equal, "equal": is_equal, "said": "; ".join(said)}

    def _release(self) -> None:
        try:
            self._quiet.release()
        except RuntimeError:  # released already
            pass

    def _run_load(self) -> None:
        with psycopg.connect(self._servers.database_url, autocommit=True) as source:
            while True:
                self._load.wait()
                with self._quiet:
                    self._change(source)
                time.sleep(random.expovariate(PER_S))

    @staticmethod
    def _change(source: psycopg.Connection[Any]) -> None:
        user = random.randint(1, ROWS)
        if random.random() < 0.6:
            source.execute(
                "INSERT INTO orders (user_id, total) SELECT id, %s FROM users WHERE id = %s",
                [round(random.uniform(5, 400), 2), user],
            )
        elif random.random() < 0.7:
            source.execute(
                "UPDATE orders SET status = %s WHERE id = (SELECT max(id) - %s FROM orders)",
                [random.choice(STATUSES), random.randint(0, 15)],
            )
        else:
            source.execute("UPDATE users SET age = age + 1, price = price + 0.5 WHERE id = %s", [user])


def handler_of(demo: Demo, folder: Path, config: dict[str, Any]) -> type[http.server.SimpleHTTPRequestHandler]:
    """Serve the page, its configuration and its buttons."""
    buttons = {"/kill": demo.kill, "/load": demo.load, "/hold": demo.hold, "/verify": demo.verify}

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm"}  # noqa: RUF012

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: object) -> None:
            encoded = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def do_GET(self) -> None:
            if self.path == "/config.json":
                self._answer(config)
            else:
                super().do_GET()

        def do_POST(self) -> None:
            # a page of another origin may send requests here, but none with this header
            if self.path not in buttons or self.headers.get("X-Walbridge-Demo") != "1":
                self.send_error(404)
                return
            self._answer(buttons[self.path](self.rfile.read(int(self.headers.get("Content-Length") or 0))))

    return functools.partial(Handler, directory=str(folder))  # type: ignore[return-value]


def main(folder: str, port: str = "8090") -> None:
    """Run until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in its background without it
    with tempfile.TemporaryDirectory(prefix="walbridge-demo-") as place:
        Path(place).chmod(0o755)
        with start_embedded(Path(place) / "servers") as servers:
            demo = Demo(servers)
            config = {
                "servers": servers.nats.websocket_url, "user": servers.nats_user, "pass": servers.nats_password,
                "tables": ",".join(TABLES), "controls": True, "name": f"demo-{servers.nats.port}",
            }  # fmt: skip
            try:
                demo.start()
                handler = handler_of(demo, Path(folder), config)
                with http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler) as server:
                    print(f"open http://127.0.0.1:{server.server_port}/   (Ctrl-C ends everything)", flush=True)
                    server.serve_forever()
            except KeyboardInterrupt:
                pass
            finally:
                demo.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
