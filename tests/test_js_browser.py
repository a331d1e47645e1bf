"""The JavaScript client in headless Chromium: tables in the tab's own storage, over tabs that are closed and servers that are killed."""

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

import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from actors.values.canonical import canonical_for
from actors.verification.comparison import Side
from tests.conftest import MakeBridge, MakeNats
from tests.node_replicas import client
from tests.servers import Database, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Playwright

KINDS = ("sqlite", "pglite")
IN_MS = 120_000
SCHEMA = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, price numeric, at timestamptz NOT NULL DEFAULT now());
CREATE PUBLICATION cdc_pub FOR TABLE users"""


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's page and worker, bundled."""
    folder = tmp_path_factory.mktemp("page")
    done = subprocess.run(
        ["node", "demo/build.js", str(folder)], cwd=client(), capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def web_nats(make_nats: MakeNats) -> NatsServer:
    return make_nats(websocket_port=free_port())


@contextmanager
def served(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Serve the page with its configuration."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".wasm": "application/wasm"}  # noqa: RUF012

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
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


@contextmanager
def chromium(playwright: Playwright, profile: Path) -> Iterator[BrowserContext]:
    """Headless Chromium with a profile that outlasts it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_tab_keeps_its_tables(
    kind: str, playwright: Playwright, built: Path, database: Database, web_nats: NatsServer, make_bridge: MakeBridge,
    tmp_path: Path,
) -> None:  # fmt: skip
    database.execute(SCHEMA)
    database.execute("SET timezone = 'UTC'; ALTER ROLE CURRENT_USER SET timezone = 'UTC'")
    database.execute("INSERT INTO users SELECT g, 'user ' || g, g * 1.5 FROM generate_series(1, 20000) g")
    bridge = make_bridge(database, web_nats)
    config = {"servers": web_nats.websocket_url}
    with served(built, config) as url:
        with chromium(playwright, tmp_path / "profile") as context:
            page = opened(context, url, kind)
            wait_for(lambda: count_in(page) == 20000, lambda: (count_in(page), page.evaluate("window.failed")))
            database.execute("UPDATE users SET name = 'Ada' WHERE id <= 100; DELETE FROM users WHERE id > 19000")
            wait_for(lambda: is_equal(page, database))
            bridge.kill()
            web_nats.kill()
            database.execute("INSERT INTO users SELECT g, 'while all is down', g FROM generate_series(30001, 30100) g")
            web_nats.start()
            bridge.start()
            wait_for(lambda: is_equal(page, database))
            second = opened(context, url, kind)  # another tab: the first one writes
            wait_for(lambda: is_equal(second, database))
            database.execute("UPDATE users SET price = price + 1 WHERE id <= 50")
            wait_for(lambda: is_equal(second, database) and is_equal(page, database))
            print("two tabs are equal")
            page.close()  # the second one writes now
            database.execute("DELETE FROM users WHERE id <= 10")
            wait_for(lambda: is_equal(second, database))
            print("the second tab writes")
        database.execute("INSERT INTO users VALUES (40000, 'while the browser is closed', NULL)")
        log: list[str] = []
        with chromium(playwright, tmp_path / "profile") as context:
            page = context.new_page()
            page.on("console", lambda message: log.append(message.text))
            page.goto(f"{url}/?store={kind}")
            wait_for(lambda: is_equal(page, database))
        assert not [line for line in log if "asking for a snapshot" in line], "it resumes where it was"
