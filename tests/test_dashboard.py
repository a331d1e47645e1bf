"""The page at GET /, in a real browser: what it shows, what its buttons do, and that it talks to nobody else."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from actors.contract.bridge_record import NotedGap
from actors.contract.reader_note import ReaderNote
from actors.contract.table_token import table_token
from actors.embedded.nats import NatsServer
from actors.positions import Lsn
from actors.settings.config import HttpConfig
from actors.telemetry.history import History, percentile
from actors.telemetry.problems import gap_problem
from actors.telemetry.quantities import human_bytes
from actors.telemetry.telemetry import ConsumerHealth, Problem, SnapshotProgress, Telemetry
from actors.telemetry.verdict import verdict
from actors.web.feed import VIEWERS_MAX
from actors.web.page import load_page
from tests.conftest import MakeBridge
from tests.http_api import Server, streaming
from tests.servers import HANG_S, Database, wait_for
from tests.snapshots import wait_for_snapshots

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = ['<img src=x onerror="alert(1)">', "</script><script>alert(1)</script>", "${alert(1)}", "a\nb", "'; DROP TABLE x; --"]
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
--disable-sync""".split()


GONE = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
"""What the browser itself says when the server of a test ends."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium by Playwright; without either the test is skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        except api.Error as exc:
            pytest.skip(f"no Chromium that starts: apt-get install chromium, or playwright install chromium ({exc})")
        yield browser
        browser.close()


class Seen:
    """What a page did that a person does not see."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.asked: list[tuple[str, str]] = []


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def page(browser: Browser, seen: Seen, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of the size and colours that the test asks for; one that says anything on its console fails the test."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    context.set_default_timeout(HANG_S * 1000)
    page = context.new_page()
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: seen.said.append(f"alert: {dialog.message}"))
    page.on("request", lambda asked: seen.asked.append((asked.method, asked.url)))
    yield page
    context.close()
    assert [line for line in seen.said if not any(word in line for word in GONE)] == []


def store(telemetry: Telemetry, schema: str, table: str, operation: str = "insert", count: int = 1) -> None:
    key = (schema, table, operation)
    telemetry.table_events[key] = telemetry.table_events.get(key, 0) + count
    telemetry.event_latency_s.observe(0.004, count)
    telemetry.events_published += count


@pytest.fixture
def telemetry() -> Telemetry:
    return streaming(Telemetry())


@pytest.fixture
def server(telemetry: Telemetry) -> Iterator[Server]:
    with Server(telemetry) as server:
        yield server


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true. Asked from outside: the page's policy forbids Playwright's own way, which is eval."""
    wait_for(lambda: bool(page.evaluate(expression)))


def show(page: Page, server: Server) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("#live.on")


def first_frame(server: Server) -> dict[str, Any]:
    """The first server-sent event."""
    with server.connected() as client:
        client.sendall(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        found = b""
        while b"\n\n" not in found.partition(b"\r\n\r\n")[2]:
            more = client.recv(65536)
            assert more, found
            found += more
    document: dict[str, Any] = json.loads(found.partition(b"data: ")[2].partition(b"\n\n")[0])
    return document


# -- what a person sees


def test_the_streams_figures_are_of_one_look_with_its_age(page: Page, server: Server, telemetry: Telemetry) -> None:
    telemetry.stored_seq = 20_697  # what has been acknowledged since the look would look like loss beside the look's count
    telemetry.stream = replace(telemetry.stream, messages=18_637, first_seq=1, last_seq=18_637, looked_at=time.time() - 9)
    show(page, server)
    words = page.inner_text("#stream")
    assert re.search(r"Messages\s+18,637\s+Last sequence\s+18,637\s", words), words
    assert re.search(r"Looked at\s+(9\.\d|\d\d) s ago", words), words


def test_the_page_tells_how_it_goes(page: Page, server: Server, telemetry: Telemetry) -> None:
    show(page, server)
    assert page.inner_text("#identity") == "db:5432/shop, slot cdc_slot, publication cdc_pub → nats:4222, stream CDC"
    assert "PostgreSQL holds 48 MB of WAL for this slot of a limit of 10 GB" in page.inner_text("#verdict-text")
    assert page.get_attribute("#verdict", "class") == "verdict ok"
    assert page.locator(".stage.stuck").count() == 0
    assert page.locator("#charts svg[role=img]").count() == 4
    store(telemetry, "public", "table_0001", count=7)
    until(page, "document.querySelector('#table-rows td.name').innerText.trim() === 'table_0001'")  # what changes comes first
    assert page.inner_text("#tiles .tile:nth-child(5) b") == "7"
    until(page, "/[1-9]/.test(document.querySelector('#verdict-text').innerText.split('changes/s')[0])")


def test_the_stage_that_stands_still_is_named(page: Page, server: Server, telemetry: Telemetry) -> None:
    show(page, server)
    telemetry.decoded_lsn = telemetry.received_lsn = Lsn(telemetry.received_lsn + 1_000_000)
    page.wait_for_selector(".stage.stuck")
    assert [text.split("\n")[0] for text in page.locator(".stage.stuck").all_inner_texts()] == ["Publisher"]
    assert page.get_attribute("#verdict", "class") == "verdict bad"
    assert "Stage published has not moved" in page.inner_text("#verdict-text")
    telemetry.published_lsn = telemetry.durable_lsn = telemetry.confirmed_lsn = telemetry.received_lsn
    page.wait_for_selector("#verdict.ok")


def test_problems_show_their_fix_and_it_can_be_copied(page: Page, server: Server, telemetry: Telemetry) -> None:
    telemetry.problems["x"] = Problem(
        "WB117", "no right to read t", "said so", "snapshots fail", "GRANT SELECT ON t TO bridge;"
    )
    telemetry.note_fault(Problem("WB200", "cannot connect to NATS at n:4222", fix="start it"), from_source=False)
    telemetry.fault = None
    show(page, server)
    assert page.locator("#problems li").count() == 1
    for words in ("WB117", "no right to read t", "said so", "snapshots fail"):
        assert words in page.inner_text("#problems")
    assert "cannot connect to NATS" in page.inner_text("#faults"), "what is over is shown apart"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#problems button")
    page.wait_for_selector("#toast.shown")
    assert page.evaluate("navigator.clipboard.readText()") == "GRANT SELECT ON t TO bridge;"
    telemetry.problems.clear()
    page.wait_for_selector("#problems-section", state="hidden")


def test_snapshots_show_their_progress(page: Page, server: Server, telemetry: Telemetry) -> None:
    telemetry.snapshots = {
        "a": SnapshotProgress("a", "running", "snap-1-a", 250, 1000, 3, 4096, time.time(), 0),
        "b": SnapshotProgress("b", "failed", error="table b is gone"),
        "c": SnapshotProgress("c", "done", "snap-2-b", 12345, 12000, 2, 2048, time.time(), 3.0),
        "d": SnapshotProgress("d"),
    }
    show(page, server)
    page.wait_for_selector("#snapshots li")
    assert page.get_attribute("#snapshots [role=progressbar]", "aria-valuenow") == "25"
    words = page.inner_text("#snapshots")
    for expected in ("running", "waiting", "failed", "table b is gone", "12,345 rows", "250 of about 1,000 rows"):
        assert expected in words
    telemetry.snapshots["a"].rows = 900
    page.wait_for_selector("[aria-valuenow='90']")


def test_a_snapshot_in_rounds_is_throttled_and_cancelled_from_the_page(
    page: Page, server: Server, telemetry: Telemetry
) -> None:
    now = time.time()
    telemetry.snapshots["table_0001+ranges"] = SnapshotProgress(
        "table_0001+ranges", "running", "snap-1-ab12", 250, 1000, 3, 4096, now - 10, 0, rounds=4, transaction_since=now - 3
    )
    show(page, server)
    page.wait_for_selector("#snapshots .running-line")
    words = page.inner_text("#snapshots .running-line")
    assert "round 4" in words
    assert "holds back VACUUM for" in words
    assert "left" in words
    page.fill("#snapshot-rate", "7")
    page.click("#snapshot-rate-submit")
    wait_for(lambda: telemetry.snapshot_rate_mb_s == 7)
    page.fill("#snapshot-rate", "")
    page.click("#snapshot-rate-submit")
    wait_for(lambda: telemetry.snapshot_rate_mb_s == 0)
    page.click("#snapshots .running-line button")
    wait_for(lambda: server.snapshots_asked == ["table_0001+cancel-snap-1-ab12"])
    page.fill("#snapshot-table", "table_0002")
    page.check("#snapshot-rounds")
    page.click("#snapshot-submit")
    wait_for(lambda: server.snapshots_asked[1:] == ["table_0002+ranges"])
    telemetry.snapshots["table_0001+ranges"].transaction_since = 0.0
    page.wait_for_selector("#snapshots >> text=holds back no VACUUM now")


def test_a_thousand_tables_are_searched_sorted_and_shown_in_parts(page: Page, telemetry: Telemetry) -> None:
    streaming(telemetry, tables=1000)
    for i in range(1000):
        store(telemetry, "public", f"table_{i:04d}", "update", i)
    with Server(telemetry) as server:
        show(page, server)
        page.wait_for_selector("#table-rows tr")
        assert page.inner_text("#tables-count") == "1,000"
        assert page.locator("#table-rows tr").count() == 25
        page.click("#more")
        assert page.locator("#table-rows tr").count() == 50
        page.click("[data-sort=update]")
        assert page.inner_text("#table-rows tr:first-child td.name").strip() == "table_0999"
        assert page.locator("th[aria-sort=descending]").inner_text() == "Updates"
        page.click("[data-sort=update]")
        assert page.inner_text("#table-rows tr:first-child td.name").strip() == "table_0000"
        page.locator("body").press("/")
        page.keyboard.type("0777")
        until(page, "document.querySelectorAll('#table-rows tr').length === 1")
        assert page.inner_text("#tables-count") == "1 of 1,000"
        page.fill("#search", "no such table")
        assert page.inner_text("#tables-none") == "No matching table."
        store(telemetry, "public", "table_0777")
        page.fill("#search", "table_0777")
        until(page, "document.querySelector('#table-rows').innerText.includes('778')")


def test_names_and_words_from_servers_stay_text(page: Page, server: Server, telemetry: Telemetry) -> None:
    for name in HOSTILE:
        store(telemetry, "evil<b>", name)
        telemetry.problems[name] = Problem("WB100", name, name, name, name)
        telemetry.snapshots[table_token("evil<b>", name)] = SnapshotProgress(table_token("evil<b>", name), "failed", error=name)
    store(telemetry, "sql_ascii", "caf\udce9")  # a name that is not UTF-8
    show(page, server)
    until(page, f"document.querySelectorAll('#table-rows tr').length >= {len(HOSTILE) + 1}")
    words = "".join(page.locator("#table-rows td.name").all_text_contents())
    for name in HOSTILE:
        assert f"evil<b>.{name}" in words
    assert page.locator("#main img, #main script, #main b b").count() == 0
    page.locator("#table-rows tr", has_text="DROP TABLE").get_by_role("button").click()
    page.wait_for_selector("#toast.shown")
    assert server.snapshots_asked == [table_token("evil<b>", "'; DROP TABLE x; --")]


def test_the_charts_answer_to_pointer_and_keyboard(page: Page, server: Server) -> None:
    show(page, server)
    chart = page.locator("svg[role=img]").first
    until(page, "document.querySelectorAll('.chart svg text').length > 8")
    page.wait_for_timeout(2500)
    chart.focus()
    assert ", now:" in (chart.get_attribute("aria-label") or "")
    chart.press("ArrowLeft")
    assert re.search(r", \d\d:\d\d:\d\d: insert", chart.get_attribute("aria-label") or "")
    assert page.locator(".cursor[visibility=visible]").count() == 4, "one cursor for all of them"
    chart.press("Escape")
    assert page.locator(".cursor[visibility=visible]").count() == 0
    chart.hover()
    assert page.locator(".cursor[visibility=visible]").count() == 4
    page.click("[data-seconds='900']")
    assert page.get_attribute("[data-seconds='900']", "aria-pressed") == "true"


def test_a_range_of_the_charts_is_enlarged_by_dragging_and_by_keys(page: Page, server: Server) -> None:
    show(page, server)
    page.wait_for_timeout(1500)
    chart = page.locator("svg[role=img]").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 60)
    assert page.locator(".chosen[visibility=visible]").count() == 4
    page.mouse.up()
    page.wait_for_selector("#zoom-reset")
    shown = page.inner_text("#zoom-reset")
    assert re.fullmatch(r"\d\d:\d\d:\d\d to \d\d:\d\d:\d\d: show all", shown)
    page.click("#zoom-reset")
    assert page.locator("#zoom-reset").is_hidden()
    chart.focus()
    for _ in range(3):
        chart.press("+")
    page.wait_for_selector("#zoom-reset")
    chart.press("0")
    assert page.locator("#zoom-reset").is_hidden()


def test_a_log_scale_shows_small_beside_large(page: Page, server: Server, telemetry: Telemetry) -> None:
    show(page, server)
    ticks = """() => [...document.querySelectorAll('#charts figure:first-child svg text[text-anchor=end]')].map((t) => t.textContent)"""
    for count in (3, 50_000):
        before = telemetry.events_published
        store(telemetry, "public", "table_0001", count=count)
        total = f"{before + count:,}"
        until(page, f"document.querySelector('#tiles .tile:nth-child(5) b').innerText === '{total}'")
    page.click("#log-scale")
    assert page.get_attribute("#log-scale", "aria-pressed") == "true"
    shown = page.evaluate(ticks)
    assert {"10", "100", "1,000"} <= set(shown), shown
    page.click("#log-scale")
    assert "10" not in page.evaluate(ticks)


def test_colours_and_time_zone_are_chosen_and_kept(browser: Browser, server: Server, telemetry: Telemetry) -> None:
    telemetry.note_fault(Problem("WB200", "cannot connect to NATS at n:4222", since_unix_s=1_790_000_000))
    telemetry.fault = None
    context = browser.new_context(timezone_id="Asia/Kolkata", color_scheme="light")
    page = context.new_page()
    show(page, server)
    background = "getComputedStyle(document.body).backgroundColor"
    title = "document.querySelector('#faults time').title"
    page.wait_for_selector("#faults time")
    assert page.evaluate(background) == "rgb(245, 246, 248)"
    assert page.evaluate(title) == "21 Sept 2026, 19:43:20.000"
    page.select_option("#theme", "dark")
    page.select_option("#zone", "utc")
    for _ in range(2):
        page.wait_for_selector("#faults time")
        assert page.evaluate(background) == "rgb(15, 19, 24)"
        assert page.evaluate(title) == "21 Sept 2026, 14:13:20.000"
        page.reload()
        page.wait_for_selector("#live.on")
    page.select_option("#theme", "system")
    page.select_option("#zone", "local")
    assert page.evaluate("localStorage.length") == 0
    context.close()


@pytest.mark.parametrize(
    "page",
    [
        {
            "viewport": {"width": width, "height": 800},
            "color_scheme": scheme,
            "has_touch": width < 500,
            "is_mobile": width < 500,
        }
        for width, scheme in (
            (360, "light"),
            (390, "dark"),
            (768, "dark"),
            (1024, "light"),
            (1301, "dark"),
            (1366, "light"),
            (1920, "light"),
        )
    ],
    indirect=True,
    ids=lambda options: f"{options['viewport']['width']}-{options['color_scheme']}",
)
def test_nothing_is_cut_off_and_all_of_it_can_be_read(page: Page, server: Server, telemetry: Telemetry) -> None:
    store(telemetry, "a_schema_with_a_long_name", "x" * 63, count=123_456_789)
    telemetry.problems["x"] = Problem("WB117", "y" * 200, fix="z" * 300)
    telemetry.suspended_tables["table_0001"] = Problem("WB301", "table table_0001 is suspended")
    show(page, server)
    page.wait_for_selector("#table-rows tr")
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("document.documentElement.clientWidth")
    assert (
        page.evaluate("""[...document.querySelectorAll('.stage, .stage > *, .tile, .link, .bar > :not(.hidden-label), .legend > *')]
        .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)""")
        == []
    )
    assert page.evaluate(CONTRASTS) == []


# text against the first opaque background behind it: WCAG AA wants 4.5
CONTRASTS = """() => {
  const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgb = (color, under) => {
    context.fillStyle = under; context.fillRect(0, 0, 1, 1);
    context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return 'white';
  };
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.disabled || !element.checkVisibility() || element.closest('.skip, .toast, script, style')) continue;
    const svg = element instanceof SVGElement, back = behind(element), style = getComputedStyle(element);
    const [a, b] = [light(rgb(svg ? style.fill : style.color, back)), light(rgb(back, 'white'))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${element.tagName} ${element.textContent.slice(0, 30)} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return poor;
}"""


# what an audit of a page looks for, as one list of complaints
COMPLAINTS = """() => {
  const found = [], all = (selector) => [...document.querySelectorAll(selector)];
  const say = (what, element) => found.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
  if (!document.title.trim()) found.push('no title');
  if (!/^[a-z]{2}/.test(document.documentElement.lang)) found.push('no language');
  const viewport = document.querySelector('meta[name=viewport]');
  if (!viewport || /user-scalable *= *no|maximum-scale/.test(viewport.content)) found.push('cannot be zoomed');
  if (!document.querySelector('meta[name=description]')?.content) found.push('no description');
  const ids = all('[id]').map((e) => e.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => found.push(`two elements are #${id}`));
  for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for', 'list'])
    for (const e of all(`[${name}]`))
      for (const id of e.getAttribute(name).split(/ +/)) if (!document.getElementById(id)) say(`${name} of nothing`, e);
  const named = (e) => (e.getAttribute('aria-label') || e.getAttribute('title') || e.innerText || '').trim()
    || [...(e.labels || [])].some((l) => l.textContent.trim())
    || (e.getAttribute('aria-labelledby') || '').split(/ +/).some((id) => id && document.getElementById(id)?.textContent.trim());
  for (const e of all('button, a[href], input, select, textarea, [role=button], [role=img], section'))
    if (e.checkVisibility() && !named(e)) say('no name', e);
  for (const e of all('[tabindex]')) if (Number(e.getAttribute('tabindex')) > 0) say('jumps the order of the keyboard', e);
  for (const e of all('img:not([alt])')) say('no alternative', e);
  for (const e of all('svg:not([aria-hidden=true])')) if (!named(e) && !e.querySelector('title') && !e.closest('[aria-hidden=true]')) say('no name', e);
  if (all('main').length !== 1) found.push('not one main part');
  let level = 0;
  for (const e of all('h1, h2, h3, h4')) {
    if (!e.checkVisibility()) continue;
    if (Number(e.tagName[1]) > level + 1) say('skips a level', e);
    level = Number(e.tagName[1]);
  }
  if (all('h1').length !== 1) found.push('not one first heading');
  for (const e of all('table')) if (!e.querySelector('th[scope]')) say('columns without names', e);
  if (all('*').length > 1400) found.push(`${all('*').length} elements`);
  return found;
}"""


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 390, "height": 844}}], indirect=True
)
def test_an_audit_finds_nothing_with_a_thousand_tables(page: Page, telemetry: Telemetry, seen: Seen) -> None:
    streaming(telemetry, tables=1000)
    for i in range(1000):
        store(telemetry, "public", f"table_{i:04d}")
    telemetry.problems["x"] = Problem("WB117", "something", fix="mend it")
    telemetry.snapshots["table_0001"] = SnapshotProgress("table_0001", "running", "snap-1-abcd", 10, 100)
    telemetry.consumers = (ConsumerHealth("reader", 5, 0, 0.5),)
    with Server(telemetry) as server:
        show(page, server)
        page.wait_for_selector("#table-rows tr")
        assert page.evaluate(COMPLAINTS) == []
        assert {url.split("/")[2] for _, url in seen.asked} == {f"127.0.0.1:{server.port}"}
        page.evaluate("document.querySelector('h1').remove(); document.querySelector('#search').id = 'more'")
        assert len(page.evaluate(COMPLAINTS)) >= 3, "it does find things"


@pytest.mark.parametrize(
    "page",
    [
        {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"},
        {"viewport": {"width": 1000, "height": 800}},
    ],
    indirect=True,
    ids=["phone-dark", "1000-light"],
)
def test_an_audit_finds_nothing_in_the_other_views(page: Page, telemetry: Telemetry) -> None:
    streaming(telemetry, tables=1000)
    telemetry.consumers = (reader("m" * 60, 5, kind="mirror", replica="postgresql db:5432/" + "x" * 60, applied_seq=4),)
    for i in range(300):
        telemetry.journal.note("snapshot", f"snapshot of table_{i:04d} begins", table=f"table_{i:04d}")
    with Server(telemetry) as server:
        server.lookup.answer["messages"] = [message(seq, data={"id": seq, "name": "y" * 300}) for seq in range(50, 0, -1)]
        server.lookup.schemas["table_0001"] = {"columns": [{"name": "z" * 63, "data_type": "integer", "pk": True}]}
        for view in ("messages", "table/table_0001", f"consumer/{'m' * 60}", "log"):
            page.goto(f"http://127.0.0.1:{server.port}/#/{view}")
            page.wait_for_selector("#live.on")
            if view == "messages" or view.startswith("table"):
                page.locator(".view:not([hidden]) details.message > summary").nth(1).click()
                page.wait_for_selector(".view:not([hidden]) .way li")
            assert page.evaluate(COMPLAINTS) == [], view
            assert page.evaluate(CONTRASTS) == [], view
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, view


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}, {"reduced_motion": "no-preference"}], indirect=True)
def test_nothing_moves_for_who_does_not_want_it(page: Page, server: Server, telemetry: Telemetry) -> None:
    show(page, server)
    store(telemetry, "public", "table_0001", count=50)
    until(page, "document.querySelector('#tiles .tile:nth-child(5) b').innerText === '50'")
    moving = page.evaluate("document.getAnimations().filter((a) => a instanceof CSSAnimation).length")
    reduced = page.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
    assert not (reduced and moving)
    name = page.evaluate("""() => {
        const link = document.querySelector('.link'); link.classList.add('flowing');
        return getComputedStyle(link.querySelector('.wire'), '::after').animationName }""")
    assert name in (("none",) if reduced else ("flow", "flow-down"))


# -- its other views


def message(seq: int, operation: str = "UPDATE", table: str = "users", **more: Any) -> dict[str, Any]:
    subject, msg_id = f"cdc.{table}.{operation.lower()}", f"{seq:x}-0-{table}-{operation.lower()}"
    event = {
        "subject": subject, "table": table, "schema": "public", "operation": operation, "key": ["id"], "lsn": 1 << 33 | seq,
        "seq": 0, "xid": 7, "commit_ts": 1_790_000_000_000_000, "msg_id": msg_id, "data": {"id": seq, "name": "Ada"}, "last": True,
    }  # fmt: skip
    stored = {
        "seq": seq,
        "subject": subject,
        "stored_at": 1_790_000_000.004,
        "bytes": 300,
        "is_compressed": True,
        "problem": "",
    }
    return {**stored, "headers": {"Nats-Msg-Id": msg_id}, "events": [event | more]}


def reader(name: str, delivered: int, filters: tuple[str, ...] = (), **note: Any) -> ConsumerHealth:
    return ConsumerHealth(
        name, 5, 0, 0.5, filters=filters, acknowledges=False, delivered_seq=delivered, note=ReaderNote(**note)
    )  # fmt: skip


def test_a_change_is_shown_and_followed_from_commit_to_its_readers(page: Page, server: Server, telemetry: Telemetry) -> None:
    server.lookup.answer["messages"] = [message(12, old={"id": 12, "name": HOSTILE[0]}), message(11)]
    server.lookup.answer |= {"last_seq": 12, "more": {"before": 11}}
    telemetry.consumers = (
        reader("m", 12, kind="mirror", replica="sqlite copy.db", applied_seq=11),
        reader("other", 12, filters=("cdc.orders.>",)),
        reader("tail", 10, kind="tail"),
    )
    show(page, server)
    page.click("nav >> text=Messages")
    page.wait_for_selector("details.message")
    assert page.locator("details.message summary").first.inner_text().split()[-4:] == ["UPDATE", "users", "id=12", "name=Ada"]
    page.locator("details.message summary").first.click()
    page.wait_for_selector(".way li")  # a toggle is told of after the click
    way = page.locator(".way li")
    assert [" ".join(text.split()) for text in way.all_inner_texts()] == [
        *way.all_inner_texts()[:2],
        "Waiting mirror sqlite copy.db: delivered, not yet reported as applied",
        "Waiting walbridge tail: not yet delivered",
    ]
    assert "4 ms later, as message 12" in way.nth(1).inner_text()
    words = page.inner_text("details.message[open] .inside")
    for expected in ("LSN 2/C", "c-0-users-update", "300 B, compressed", f"{HOSTILE[0]} → Ada"):
        assert expected in words
    telemetry.consumers = (reader("m", 12, kind="mirror", replica="sqlite copy.db", applied_seq=12),)
    until(page, "document.querySelector('.way li:nth-child(3)').innerText === 'Read mirror sqlite copy.db: applied'")
    page.click("#messages-more")
    wait_for(lambda: server.lookup.asked[-1].before == 11)
    page.fill("#messages-table", "table_0001")
    page.fill("#messages-key", "id=7")
    page.fill("#messages-from", "2/C")
    page.keyboard.press("Enter")
    wait_for(lambda: server.lookup.asked[-1][:3] == ("table_0001", ("id=7",), "2/C"))
    page.reload()
    page.wait_for_selector("details.message[open]")
    assert page.input_value("#messages-key") == "id=7", "the address has the question"
    assert page.locator("#main img, #main script").count() == 0


def test_rows_need_the_token_and_may_be_off(page: Page, telemetry: Telemetry, seen: Seen) -> None:
    with Server(telemetry, token="correct-horse") as server:
        server.lookup.answer["messages"] = [message(1)]
        page.goto(f"http://127.0.0.1:{server.port}/#/messages")
        page.wait_for_selector("#live.on")
        until(page, "document.querySelector('#messages-state').innerText.includes('token')")
        assert server.lookup.asked == []
        page.click("#messages-form button")
        page.fill("#token-input", "correct-horse")
        page.keyboard.press("Enter")
        page.wait_for_selector("details.message")
    with Server(telemetry, messages="no") as server:
        page.goto(f"http://127.0.0.1:{server.port}/#/messages")
        until(page, "document.querySelector('#messages-state').innerText.includes('BRIDGE_HTTP_MESSAGES')")
        assert page.locator("#messages-form button").is_disabled()
        assert server.lookup.asked == []


def test_a_table_and_its_reader_have_a_view_each(page: Page, server: Server, telemetry: Telemetry) -> None:
    server.lookup.answer["messages"] = [message(12, table="table_0001")]
    columns = [
        {"name": "id", "data_type": "integer", "pk": True, "is_nullable": False},
        {"name": HOSTILE[0], "data_type": "text"},
    ]
    server.lookup.schemas["table_0001"] = {"columns": columns}
    note = {"kind": "mirror", "replica": "sqlite copy.db", "applied_seq": 10, "verified_at": int(time.time()) - 120}
    telemetry.consumers = (reader("m", 12, filters=("cdc.table_0001.>", "cdc._bridge.>"), **note),)
    telemetry.suspended_tables["table_0001"] = Problem("WB301", "table table_0001 is suspended")
    telemetry.journal.note("suspended", "table table_0001 is suspended", "bad", table="table_0001")
    telemetry.journal.note("snapshot", "snapshot of table_0002 begins", table="table_0002")
    show(page, server)
    store(telemetry, "public", "table_0001", count=7)
    page.click("#table-rows >> text=table_0001")
    until(page, "document.querySelector('#table-tiles .tile:nth-child(2) b')?.innerText === '7'")
    assert page.inner_text("#table-title") == "table_0001"
    page.wait_for_selector("#table-messages details")
    assert page.inner_text("#table-columns tr:first-child").split() == ["id", "key", "integer", "not", "null"]
    assert "WB301" in page.inner_text("#table-problems")
    assert page.locator("#table-log li").count() == 1
    assert "table_0001" in page.title()
    page.click("#table-snapshot")
    wait_for(lambda: server.snapshots_asked == ["table_0001"])
    page.click("#table-readers a")
    page.wait_for_selector("#consumer-verdict.ok")
    assert page.inner_text("#consumer-verdict").startswith("Equal to its source: walbridge verify compared all tables 2")
    assert "message 10" in page.inner_text("#consumer-facts")
    assert page.locator("#consumer-tables a").all_inner_texts() == ["table_0001"]
    telemetry.consumers = (reader("m", 12, **{**note, "mismatched_keys": 3}),)
    page.wait_for_selector("#consumer-verdict.bad")
    telemetry.consumers = (reader("m2", 13, **note),)  # after an interruption
    page.wait_for_selector("#consumer-verdict.ok")
    assert "m2" in page.inner_text("#consumer-facts")
    telemetry.consumers = ()
    page.wait_for_selector("#consumer-missing")
    page.go_back()
    assert page.inner_text("#table-title") == "table_0001"


def test_what_has_happened_is_listed_and_drawn_into_the_plots(page: Page, server: Server, telemetry: Telemetry) -> None:
    telemetry.journal.note("started", "Walbridge has started")
    show(page, server)
    page.wait_for_timeout(1500)
    telemetry.journal.note("outage", f"NATS is away {HOSTILE[0]}", "bad")
    until(
        page,
        "document.querySelectorAll('#charts .mark.bad').length === 4 && document.querySelectorAll('#charts .band').length === 4",
    )
    telemetry.journal.note("streaming", "streaming after 1.0 s", "ok")
    page.wait_for_selector("#charts .flag.ok", state="attached")
    chart = page.locator("#charts svg").first
    chart.scroll_into_view_if_needed()
    chart.focus()
    chart.press("ArrowLeft")
    until(page, "document.querySelector('#marks-note').innerText.includes('NATS is away')")
    assert "streaming after 1.0 s" in (chart.get_attribute("aria-label") or "")
    page.click("nav >> text=Log")
    assert page.locator("#log-list .badge").all_inner_texts() == ["streaming", "outage", "start"]
    page.select_option("#log-kind", "outage")
    assert page.locator("#log-list li").count() == 1
    page.locator("body").press("/")
    page.keyboard.type("nothing of this")
    assert page.inner_text("#log-none") == "Nothing of this kind."


# -- what its buttons do


def test_stop_asks_first_and_then_stops(page: Page, server: Server, seen: Seen) -> None:
    show(page, server)
    page.click("#stop-button")
    assert page.evaluate("document.activeElement.id") == "stop-cancel", "Enter keeps it running"
    page.keyboard.press("Escape")
    assert not page.locator("#stop-dialog").is_visible()
    page.click("#stop-button")
    page.click("#stop-cancel")
    assert not server.stop_asked
    page.click("#stop-button")
    page.click("#stop-confirm")
    page.wait_for_selector("#toast.shown")
    wait_for(lambda: server.stop_asked)
    server.end()
    page.wait_for_selector("#live.off")
    assert page.inner_text("#verdict-text").startswith("The bridge has stopped.")
    assert {url.split("/")[2] for _, url in seen.asked} == {f"127.0.0.1:{server.port}"}


def test_a_snapshot_is_requested_by_name_and_by_row(page: Page, server: Server) -> None:
    show(page, server)
    page.fill("#snapshot-table", "not.yet/published")
    page.keyboard.press("Enter")
    wait_for(lambda: len(server.snapshots_asked) == 1)
    page.get_by_role("button", name="Request a snapshot of table_0002").click()
    wait_for(lambda: len(server.snapshots_asked) == 2)
    assert server.snapshots_asked == ["not=2Eyet=2Fpublished", "table_0002"]


def test_the_token_is_asked_for_kept_in_the_tab_and_asked_again_when_wrong(
    page: Page, telemetry: Telemetry, seen: Seen
) -> None:
    with Server(telemetry, token="correct-horse") as server:
        show(page, server)
        page.fill("#snapshot-table", "users")
        page.click("#snapshot-submit")
        page.fill("#token-input", "wrong")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#token-words').innerText.includes('rejected')")
        page.fill("#token-input", "correct-horse")
        page.keyboard.press("Enter")
        wait_for(lambda: server.snapshots_asked == ["users"])
        page.get_by_role("button", name="Request a snapshot of table_0001").click()
        wait_for(lambda: server.snapshots_asked == ["users", "table_0001"])
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
        assert not any("horse" in url for _, url in seen.asked)
        page.reload()
        page.wait_for_selector("#live.on")
        page.get_by_role("button", name="Request a snapshot of table_0000").click()
        wait_for(lambda: len(server.snapshots_asked) == 3)
    seen.said = [line for line in seen.said if "401" not in line]


def test_beyond_loopback_without_a_token_the_buttons_are_off(page: Page, telemetry: Telemetry) -> None:
    with Server(telemetry, bind="0.0.0.0") as server:
        show(page, server)
        page.wait_for_selector("#table-rows tr")
        assert page.locator("#stop-button").is_disabled()
        assert "BRIDGE_HTTP_TOKEN" in (page.get_attribute("#stop-button", "title") or "")
        assert page.locator("#table-rows button:enabled, #snapshot-submit:enabled").count() == 0


def test_beyond_loopback_the_page_itself_may_post_and_another_may_not(telemetry: Telemetry) -> None:
    with Server(telemetry, bind="0.0.0.0", token="correct-horse") as server:
        opened = {"Host": "bridge.example:9090", "Authorization": "Bearer correct-horse"}
        for origin in ("http://evil.example", "http://bridge.example", "http://bridge.example:9091", "null"):
            assert server.ask("POST", "/snapshot/x", Origin=origin, **opened)[0] == 403, origin
        assert server.ask("POST", "/snapshot/table_0001", Origin="http://bridge.example:9090", **opened)[0] == 202


# -- whom it talks to


def test_no_request_leaves_the_host_and_the_console_stays_empty(
    page: Page, seen: Seen, database: Database, nats: NatsServer, make_bridge: MakeBridge
) -> None:
    database.execute("""
        CREATE TABLE users (id int PRIMARY KEY, name text); CREATE SCHEMA "my shop";
        CREATE TABLE "my shop"."Order Lines" (id int PRIMARY KEY);
        CREATE PUBLICATION cdc_pub FOR TABLE users, "my shop"."Order Lines" """)
    bridge = make_bridge(database, nats)
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    page.wait_for_selector("#live.on")
    until(page, "document.querySelectorAll('#table-rows tr').length === 2")
    assert sorted(name.strip() for name in page.locator("#table-rows td.name").all_inner_texts()) == [
        "my shop.Order Lines",
        "users",
    ]
    database.execute(
        """INSERT INTO users SELECT g, 'x' FROM generate_series(1, 500) g; INSERT INTO "my shop"."Order Lines" VALUES (1)"""
    )
    until(page, "document.querySelector('#tiles .tile:nth-child(5) b').innerText === '501'")
    page.get_by_role("button", name="Request a snapshot of my shop.Order Lines").click()
    with ThreadPoolExecutor() as elsewhere:  # Playwright has an event loop in this thread
        (snapshot,) = elsewhere.submit(wait_for_snapshots, nats.url, table_token("my shop", "Order Lines")).result()
    assert snapshot.meta is not None
    assert (snapshot.meta["table"], snapshot.meta["row_count"]) == ("Order Lines", 1)
    page.wait_for_selector("#snapshots .badge.done")
    assert {url.split("/")[2] for _, url in seen.asked} == {f"127.0.0.1:{bridge.port}"}
    assert {(method, path) for method, url in seen.asked if not (path := url.split("/", 3)[3]).startswith("page/")} == {
        ("GET", ""), ("GET", "events"), ("POST", "snapshot/my%20shop/Order%20Lines".replace("%20", "%3D20"))}  # fmt: skip
    page.click("#stop-button")
    page.click("#stop-confirm")
    assert bridge.wait() == 0
    page.wait_for_selector("#live.off")


def test_the_policy_allows_nothing_but_the_page_itself(page: Page, server: Server, seen: Seen) -> None:
    show(page, server)
    answered = page.evaluate("""async () => {
        const found = [];
        try { document.body.innerHTML = '<p>x</p>'; found.push('markup'); } catch { }
        try { await fetch('http://127.0.0.2:1/'); found.push('fetch'); } catch { }
        const script = document.createElement('script');
        try { script.text = 'window.ran = 1'; document.body.append(script); } catch { }
        if (window.ran) found.push('script');
        const p = document.createElement('p'); p.setAttribute('style', 'color: red'); document.body.append(p);
        if (getComputedStyle(p).color === 'rgb(255, 0, 0)') found.push('style');
        return found; }""")
    assert answered == []
    assert len(seen.said) >= 4, "the browser reported each of them"
    seen.said.clear()


def test_the_page_refuses_what_is_refused_everywhere(server: Server) -> None:
    status, headers, body = server.ask("GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.encode() == load_page().html
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", body)
    for path in ("/", "/events"):
        assert server.ask("GET", path, Host="evil.example")[0] == 403
        assert server.ask("GET", path, Origin="http://evil.example")[0] == 403


# -- the stream of data


def test_viewers_are_limited_and_a_place_is_free_again(server: Server) -> None:
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=HANG_S) for _ in range(VIEWERS_MAX)]
    for client in clients:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        while b"data: " not in client.recv(65536):
            pass
    status, _, body = server.ask("GET", "/events")
    assert status == 503
    assert str(VIEWERS_MAX) in body
    for client in clients:
        client.close()
    wait_for(lambda: _opens(server))


def _opens(server: Server) -> bool:
    with server.connected() as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.1 200")


def test_a_frame_has_everything_first_and_then_what_changed(server: Server, telemetry: Telemetry) -> None:
    wait_for(lambda: len(first_frame(server)["tables"]) == 3)
    with server.connected() as client:
        client.sendall(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        found = b""
        store(telemetry, "public", "table_0002", "delete", 5)
        while not any(frame["tables"] and not frame["whole"] for frame in _frames(found)):
            more = client.recv(65536)
            assert more
            found += more
    whole, *later = _frames(found)
    assert whole["whole"]
    assert {row[0] for row in whole["tables"]} >= {"table_0000", "table_0001", "table_0002"}
    assert [row[:7] for frame in later for row in frame["tables"]] == [["table_0002", "public", "table_0002", 0, 0, 5, 0]]
    assert all(len(frame["points"]) >= 1 for frame in later)


def _frames(found: bytes) -> list[dict[str, Any]]:
    lines = found.partition(b"\r\n\r\n")[2].split(b"\n\n")[:-1]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def test_viewers_do_not_keep_the_server_from_ending(telemetry: Telemetry) -> None:
    with Server(telemetry) as server, server.connected() as reading, server.connected() as silent:
        for client in (reading, silent):
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reading.recv(100)
        server.end()


# -- the history behind it


def test_rates_and_percentiles_are_of_the_second_that_they_stand_for() -> None:
    telemetry = Telemetry()
    history = History(telemetry)
    store(telemetry, "public", "before", count=1_000_000)
    history.sample(100.0)
    assert history.points[-1].events == 0, "what was there before the first look is no rate"
    store(telemetry, "public", "t", count=30)
    store(telemetry, "public", "t", "truncate", 4)
    history.sample(102.0)
    point = history.points[-1]
    assert (point.inserts, point.others, point.events) == (15, 2, 17)
    assert point.latency_p50_ms is not None
    assert 2 <= point.latency_p50_ms <= 5
    history.sample(103.0)
    assert history.points[-1].events == 0
    assert history.points[-1].latency_p50_ms is None
    assert [len(history.points_after(tick)) for tick in (0, 1, 3)] == [3, 2, 0]
    assert [t.table for t in history.tables_after(1)] == ["t"]


def test_the_history_ends_after_fifteen_minutes() -> None:
    history = History(Telemetry())
    for second in range(1000):
        history.sample(float(second + 1))
    assert len(history.points_after(0)) == 900
    assert history.points_after(998)[0].unix_s == 999.0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 0, 0, 0], 0.5, 0.5),
        ([10, 10, 0, 0], 0.75, 1.5),
        ([0, 0, 0, 5], 0.99, 4.0),
        ([1, 0, 99, 0], 0.5, 2 + 2 * 49 / 99),
    ],
)
def test_percentile(counts: list[int], share: float, expected: float | None) -> None:
    assert percentile((1.0, 2.0, 4.0), counts, share) == (None if expected is None else pytest.approx(expected))


def test_the_verdict_is_as_bad_as_the_worst_thing() -> None:
    telemetry = streaming(Telemetry())
    history = History(telemetry)
    history.sample(time.time())
    assert verdict(telemetry, history, time.time()).level == "ok"
    telemetry.problems["x"] = Problem("WB120", "no limit")
    assert verdict(telemetry, history, time.time()).level == "warn"
    telemetry.gap_problems = (gap_problem(NotedGap(5, time.time(), "", Lsn(1), Lsn(2), ("users",), 1), "CDC", HttpConfig()),)
    assert verdict(telemetry, history, time.time()).level == "bad"
    assert "Changes were lost permanently: 1 gap to acknowledge" in verdict(telemetry, history, time.time()).text
    telemetry.gap_problems = ()
    telemetry.slot.seconds_to_loss = 600
    assert verdict(telemetry, history, time.time()).level == "bad"
    telemetry.slot.wal_limited, telemetry.slot.safe_wal_bytes = False, None
    assert "without a limit" in verdict(telemetry, history, time.time()).text
    telemetry.state = "waiting_nats"
    telemetry.backlog.told([(Lsn(telemetry.durable_lsn + 1), time.time() - 300)], time.time())
    history.sample(time.time())
    said = verdict(telemetry, history, time.time())
    assert (said.level, said.text.split(".")[0]) == ("bad", "Waiting for NATS")
    assert "5 min old" in said.text
    assert [stage.name for stage in history.stages if stage.stuck] == ["durable"]


def test_a_stage_that_had_nothing_to_do_does_not_stand_still() -> None:
    telemetry = streaming(Telemetry())
    history = History(telemetry)
    telemetry.received_lsn = telemetry.decoded_lsn = telemetry.published_lsn = telemetry.durable_lsn = Lsn(1000)
    telemetry.confirmed_lsn, began = Lsn(1000), time.time()
    telemetry.last_received_at = began + 200
    history.sample(began)
    history.sample(began + 100)  # idle all the while
    telemetry.durable_lsn = Lsn(2000)
    history.sample(began + 100.1)
    assert not [stage.name for stage in history.stages if stage.stuck], "it is behind for the blink of an eye"
    history.sample(began + 110)
    assert [stage.name for stage in history.stages if stage.stuck] == ["confirmed"]


def test_bytes_read_as_people_write_them() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 48 << 20, 200 << 30, 3 << 50)] == [
        "0 B", "1023 B", "1.5 kB", "48 MB", "200 GB", "3072 TB"]  # fmt: skip


def test_a_gap_is_a_card_with_range_tables_and_time_until_it_is_acknowledged(
    page: Page, server: Server, telemetry: Telemetry
) -> None:
    telemetry.gap_problems = (
        gap_problem(
            NotedGap(5, time.time() - 7200, "slot was dropped", Lsn(0x100), Lsn(0x200), ("users", "s/o"), 2),
            "CDC",
            HttpConfig(),
        ),
    )
    show(page, server)
    card = page.locator("#problems li")
    words = card.inner_text()
    for part in (
        "WB152",
        "from 0/100 to 0/200",
        "2 tables (public.users, s.o)",
        "slot was dropped",
        "2 h ago",
        "walbridge snapshot users",
    ):
        assert part in words, words
    assert page.title().startswith("✗")
    card.get_by_role("button", name="Acknowledge").click()
    page.wait_for_selector("#toast.shown")
    until(page, "document.querySelector('#problems-section').hidden")


def test_pause_and_resume_are_what_the_buttons_say(
    page: Page, database: Database, nats: NatsServer, make_bridge: MakeBridge, seen: Seen
) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE PUBLICATION cdc_pub FOR TABLE users")
    bridge = make_bridge(database, nats, env={"BRIDGE_HTTP_TOKEN": "correct-horse"})
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    page.wait_for_selector("#live.on")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.fill("#token-input", "correct-horse")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#verdict-text').innerText.startsWith('Paused for ')")
    status = bridge.status()
    assert (status["state"], status["slot_active"], status["paused"]["recorded"]) == ("paused", False, True)
    database.execute("INSERT INTO users VALUES (1)")
    page.reload()
    page.wait_for_selector("#live.on")
    page.get_by_role("button", name="Resume", exact=True).click()
    until(page, "document.querySelector('#verdict-text').innerText.startsWith('Streaming')")
    wait_for(lambda: bridge.status()["cdc_events_published"] == 1)
    assert page.get_by_role("button", name="Pause", exact=True).is_enabled()
    seen.said = [line for line in seen.said if "401" not in line]
