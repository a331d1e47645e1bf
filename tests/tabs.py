"""Tabs of headless Chromium that keep tables: the page of consumers/js/demo, and whether its rows are the source's."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.values.canonical import canonical_for
from actors.verification.comparison import Side
from tests.node_replicas import client
from tests.servers import Database

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Playwright

KINDS = ("sqlite", "pglite")
SCHEMA = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, price numeric, at timestamptz NOT NULL DEFAULT now());
CREATE PUBLICATION cdc_pub FOR TABLE users"""


def build_page(folder: Path) -> None:
    """Bundle the page and its worker."""
    done = subprocess.run(
        ["node", "demo/build.js", str(folder)], cwd=client(), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@contextmanager
def served(folder: Path, config: dict[str, Any], asked: set[str] | None = None) -> Iterator[str]:
    """Serve the page with its configuration; `asked` takes the names of the files that were asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm"}  # noqa: RUF012

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if asked is not None:
                asked.add(self.path.split("?")[0].strip("/") or "index.html")
            if not self.path.startswith("/config.json"):
                super().do_GET()
                return
            body = json.dumps(config).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def chromium_path() -> str | None:
    """Where a Chromium is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium(playwright: Playwright, profile: Path) -> Iterator[BrowserContext]:
    """Headless Chromium with a profile that outlasts it."""
    path = chromium_path()
    assert path is not None, "no Chromium: apt-get install chromium"
    context = playwright.chromium.launch_persistent_context(
        str(profile), executable_path=path, args=["--no-sandbox", "--disable-gpu"]
    )
    try:
        yield context
    finally:
        context.close()


def opened(context: BrowserContext, url: str, kind: str) -> Page:
    page = context.new_page()
    page.on("console", lambda message: print("page:", message.text))
    page.on("worker", lambda worker: worker.on("console", lambda message: print("worker:", message.text)))
    page.goto(f"{url}/?store={kind}")
    page.wait_for_function("window.replica !== undefined")
    return page


def rows_in(page: Page, sql: str) -> list[dict[str, Any]]:
    ask = """(sql) => Promise.race([window.replica.query(sql),
        new Promise((_, refuse) => setTimeout(() => refuse(new Error("nobody answers")), 5000))])"""
    found: list[dict[str, Any]] = page.evaluate(ask, sql)
    return found


def count_in(page: Page) -> int:
    try:
        return int(rows_in(page, "SELECT count(*) AS n FROM users")[0]["n"])
    except Exception:  # no copy yet
        return -1


def is_equal(page: Page, database: Database) -> bool:
    """Whether the tab's rows are the source's, by the hashes of `walbridge verify`."""
    sides = []
    sql = "SELECT CAST(id AS text) AS id, name, CAST(price AS text) AS price, CAST(at AS text) AS at FROM users"
    try:
        held = rows_in(page, sql)
    except Exception as exc:  # another tab takes over
        print(exc)
        return False
    source = database.execute("SELECT id::text, name, price::text, at::text FROM users")
    for rows in (source, [tuple(row[name] for name in ("id", "name", "price", "at")) for row in held]):
        side = Side([canonical_for(oid, {}) for oid in (20, 25, 1700, 1184)], [0])
        side.add(rows)
        sides.append((side.rows, side.hash()))
    return sides[0] == sides[1]
