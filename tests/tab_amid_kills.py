"""The command: `python -m tests.tab_amid_kills [--rows 100000] [--seconds 60] [--rate 500] [--stores sqlite,pglite] [--seed 1]`.

Headless Chromium copies a table into a tab's own storage and follows changes, first undisturbed, for the figures, then while the
bridge, nats-server, the tab and the browser are killed at random moments and come back. The tab's rows must then be the source's,
by the hashes of `walbridge verify`, after every kill. Needs Node, Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import gzip
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from actors.embedded.nats import NatsServer, find_nats_server
from actors.embedded.postgres import PostgresServer, find_postgres_bin_dir, reachable_bin_dir
from actors.embedded.process import free_port, unprivileged_account
from tests.beside import beside
from tests.servers import Bridge, Database
from tests.tabs import KINDS, SCHEMA, build_page, chromium, count_in, is_equal, opened, served

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Playwright

WITHIN_S = 180.0
QUIET_S = 10.0
KILL_AFTER_S = (0.5, 3.0)
BURST_ROWS = 50_000
VICTIMS = ("bridge", "nats", "tab", "browser")


class Tab:
    """A tab in a browser whose profile outlasts both."""

    def __init__(self, playwright: Playwright, profile: Path, url: str, kind: str) -> None:
        self._playwright, self._profile, self._url, self._kind = playwright, profile, url, kind
        self._stack = ExitStack()
        self.page: Page
        self.context: BrowserContext
        self.open_browser()

    def open_browser(self) -> None:
        """Start the browser with one tab."""
        self.context = self._stack.enter_context(chromium(self._playwright, self._profile))
        self.open_tab()

    def open_tab(self) -> None:
        self.page = opened(self.context, self._url, self._kind)

    def close(self) -> None:
        """End the browser."""
        self._stack.close()

    def memory_mb(self) -> float:
        """Resident memory of the renderer that has the tab and its worker."""
        ours = [one for one in psutil.process_iter(["cmdline"]) if str(self._profile) in " ".join(one.info["cmdline"] or [])]
        children = {child for one in ours for child in [one, *one.children(recursive=True)]}
        renderers = [one for one in children if "--type=renderer" in " ".join(one.cmdline())]
        return max(one.memory_info().rss for one in renderers) / 1e6


@contextmanager
def changing(database: Database, rate: int) -> Iterator[None]:
    """Transactions of one change each, so many a second."""
    dice = random.Random(1)

    def write(done: threading.Event) -> None:
        began, made = time.monotonic(), 0
        with database.connect() as connection:
            while not done.is_set():
                key = dice.randint(1, 120_000)
                statement = dice.choice((
                    "UPDATE users SET price = price + 1, at = now() WHERE id = %s",
                    "UPDATE users SET name = 'changed', at = now() WHERE id = %s",
                    "DELETE FROM users WHERE id = %s",
                    "INSERT INTO users VALUES (%s, 'new', 1) ON CONFLICT (id) DO UPDATE SET at = now()",
                ))  # fmt: skip
                connection.execute(statement.encode(), [key])
                made += 1
                time.sleep(max(0.0, began + made / rate - time.monotonic()))

    with beside(write):
        yield


def until_equal(tab: Tab, database: Database) -> bool:
    """Whether the tab's rows become the source's."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        if is_equal(tab.page, database):
            return True
        time.sleep(0.1)
    return False


def run(kind: str, arguments: argparse.Namespace, playwright: Playwright, page: Path, folder: Path) -> bool:
    """One store: figures, kills, and whether all was equal."""
    dice = random.Random(f"{kind} {arguments.seed}")
    programs = reachable_bin_dir(find_postgres_bin_dir(), unprivileged_account(), folder)
    postgres = PostgresServer(programs, folder / "postgres", port=free_port(), settings={}, password="tabs")
    postgres.initdb()
    nats = NatsServer(find_nats_server(), folder / "nats", port=free_port(), websocket_port=free_port())
    with ExitStack() as stack:
        for server in (postgres, nats):
            server.start()
            stack.callback(server.stop)
        database = Database(postgres, "tabs")
        stack.callback(database.close)
        database.execute("ALTER DATABASE tabs SET timezone = 'UTC'; SET timezone = 'UTC'")
        database.execute(SCHEMA)
        database.execute(f"INSERT INTO users SELECT g, 'user ' || g, g * 1.5 FROM generate_series(1, {arguments.rows}) g")
        bridge = Bridge(database.dsn, nats, folder)
        bridge.start()
        stack.callback(bridge.kill)
        asked: set[str] = set()
        url = stack.enter_context(served(page, {"servers": nats.websocket_url}, asked))
        began = time.monotonic()
        tab = Tab(playwright, folder / "profile", url, kind)
        stack.callback(tab.close)
        while count_in(tab.page) != arguments.rows:
            assert time.monotonic() - began < WITHIN_S, tab.page.evaluate("window.failed")
            time.sleep(0.05)
        print(f"{kind}: {arguments.rows:,} rows copied {time.monotonic() - began:.1f} s after the browser was started")
        loaded = sum(len(gzip.compress((page / name).read_bytes(), 9)) for name in asked if (page / name).is_file())
        print(f"{kind}: loaded {loaded / 1e6:.2f} MB compressed; renderer {tab.memory_mb():.0f} MB")
        with changing(database, arguments.rate):
            tab.page.evaluate("window.commits.length = 0")
            time.sleep(QUIET_S)
            seen: list[float] = sorted(tab.page.evaluate("window.commits"))
        p50, p99 = statistics.median(seen), seen[int(len(seen) * 0.99)]
        print(f"{kind}: at {arguments.rate} transactions/s from commit to the tab p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        equal = until_equal(tab, database)
        held = count_in(tab.page)
        with database.connect() as connection:
            for first in range(0, BURST_ROWS, 100):
                many = "INSERT INTO users SELECT g, 'burst', 1 FROM generate_series(%s::int, %s) g"
                connection.execute(many.encode(), [1_000_000 + first, 1_000_000 + first + 99])
        began, before = time.monotonic(), count_in(tab.page)
        while count_in(tab.page) < held + BURST_ROWS and time.monotonic() - began < WITHIN_S:
            time.sleep(0.02)
        rate = (held + BURST_ROWS - before) / (time.monotonic() - began)
        print(f"{kind}: a backlog of {held + BURST_ROWS - before:,} changes applied at {rate:,.0f}/s")
        kills, wrong = Counter[str](), 0
        loaded_s = 0.0
        while loaded_s < arguments.seconds:
            began = time.monotonic()
            with changing(database, arguments.rate):
                time.sleep(dice.uniform(*KILL_AFTER_S))
                victim = dice.choice(VICTIMS)
                kills[victim] += 1
                _kill(victim, tab, bridge, nats, dice.uniform(0, 2))
                time.sleep(dice.uniform(*KILL_AFTER_S))
            loaded_s += time.monotonic() - began
            wrong += not until_equal(tab, database)
        words = ", ".join(f"{count} of {name}" for name, count in sorted(kills.items()))
        print(f"{kind}: kills: {words}; compared after each: {wrong} differed", flush=True)
        return equal and not wrong


def _kill(victim: str, tab: Tab, bridge: Bridge, nats: NatsServer, away_s: float) -> None:
    match victim:
        case "bridge":
            bridge.kill()
            time.sleep(away_s)
            bridge.start(ready=False)
        case "nats":
            nats.kill()
            time.sleep(away_s)
            nats.start()
        case "tab":
            with suppress(Exception):
                tab.page.close()
            time.sleep(away_s)
            tab.open_tab()
        case "browser":
            tab.close()
            time.sleep(away_s)
            tab.open_browser()


def main() -> int:
    """Exit 0 when every tab was equal."""
    parser = argparse.ArgumentParser(prog="python -m tests.tab_amid_kills", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load amid kills")
    parser.add_argument("--rate", type=int, default=500, help="transactions per second")
    parser.add_argument("--stores", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (only this command and the browser's tests need it)

    folder = Path(tempfile.mkdtemp(prefix="walbridge-tabs-", dir="/var/tmp"))
    folder.chmod(0o711)
    results: list[Any] = []
    try:
        build_page(folder / "page")
        with sync_playwright() as playwright:
            for kind in arguments.stores.split(","):
                own = folder / kind
                own.mkdir(mode=0o711)
                results.append(run(kind, arguments, playwright, folder / "page", own))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
