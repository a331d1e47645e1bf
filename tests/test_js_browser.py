"""The JavaScript client in headless Chromium: tables in the tab's own storage, over tabs that are closed and servers that are killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from actors.embedded.nats import NatsServer
from actors.embedded.process import free_port
from tests.conftest import MakeBridge, MakeNats
from tests.servers import Database, wait_for
from tests.tabs import KINDS, SCHEMA, build_page, chromium, chromium_path, count_in, is_equal, opened, served

if TYPE_CHECKING:
    from playwright.sync_api import Playwright


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's page and worker, bundled."""
    if chromium_path() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("page")
    build_page(folder)
    return folder


@pytest.fixture
def web_nats(make_nats: MakeNats) -> NatsServer:
    return make_nats(websocket_port=free_port())


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_tab_without_room_says_so_keeps_whole_transactions_and_goes_on(
    kind: str, playwright: Playwright, built: Path, database: Database, web_nats: NatsServer, make_bridge: MakeBridge,
    tmp_path: Path,
) -> None:  # fmt: skip
    database.execute(SCHEMA)
    database.execute("SET timezone = 'UTC'; ALTER ROLE CURRENT_USER SET timezone = 'UTC'")
    database.execute("INSERT INTO users SELECT g, 'user ' || g, g FROM generate_series(1, 100) g")
    make_bridge(database, web_nats)
    with served(built, {"servers": web_nats.websocket_url}) as url, chromium(playwright, tmp_path / "profile") as context:
        page = opened(context, url, kind)
        wait_for(lambda: is_equal(page, database))
        used = int(page.evaluate("navigator.storage.estimate().then(({ usage }) => usage)"))
        browser = context.new_cdp_session(page)
        browser.send("Storage.overrideQuotaForOrigin", {"origin": url, "quotaSize": used + 1_000_000})
        database.execute("INSERT INTO users SELECT g, repeat('x', 1000), g FROM generate_series(1000, 9999) g")
        wait_for(
            lambda: "WB503" in page.evaluate("JSON.stringify(window.replica.status)"),
            lambda: page.evaluate("JSON.stringify(window.replica.status)"),
        )
        assert count_in(page) == 100
        browser.send("Storage.overrideQuotaForOrigin", {"origin": url})
        wait_for(lambda: is_equal(page, database))
