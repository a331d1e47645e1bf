"""`walbridge status`: what a running bridge is doing, from its /status, for a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from actors.commands.as_typed import carried
from actors.commands.running_bridge import NoAnswer, RunningBridge, Url, find_bridge
from actors.settings.flags import EnvFile, Flags, option, takes_settings
from actors.settings.setting import OTHER
from actors.telemetry.quantities import age, counted, human_bytes, span

EVERY_S = 1.0
OLD_S = 5.0
"""A figure that was looked up longer ago than this is shown with its age."""
COLOURS = {"ok": "32", "warn": "33", "bad": "31"}


@takes_settings(port="of the running bridge")
def status(
    flags: Flags,
    *,
    url: Url = "",
    json: Annotated[bool, option(OTHER, "as JSON; with --watch one line per second")] = False,
    watch: Annotated[bool, option(OTHER, "look every second until Ctrl-C")] = False,
    env_file: EnvFile = None,
) -> int:
    """Ask a bridge what it is doing."""
    return show_status(find_bridge(flags, url, env_file), as_json=json, watch=watch)


def show_status(bridge: RunningBridge, *, as_json: bool, watch: bool) -> int:
    """Print the status once, or every second until Ctrl-C. 0 while the bridge streams, 1 when not, or when none answers."""
    code = 1
    screen = watch and not as_json and sys.stdout.isatty()
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    while True:
        try:
            status = bridge.status()
            code = 0 if status["state"] == "streaming" else 1
            if as_json:
                text = json.dumps(status, indent=None if watch else 2)
            elif watch and not screen:
                text = carried(status["verdict"]["text"])
            else:
                text = carried("\n".join(describe(status, time.time(), colour=colour)))
        except NoAnswer as exc:
            code, text = 1, ""
            print(f"walbridge: {exc}", file=sys.stderr)
        if screen:
            sys.stdout.write("\x1b[H\x1b[2J")  # home, and clear
        if text:
            print(text, flush=True)
        if not watch:
            return code
        try:
            time.sleep(EVERY_S)
        except KeyboardInterrupt:
            return code


def describe(status: Mapping[str, Any], now_unix_s: float, *, colour: bool = False) -> Iterator[str]:
    """The lines of the report, about 100 columns wide."""
    verdict, stream = status["verdict"], status["jetstream"]
    yield (
        f"Walbridge {status['version']}   slot {status['slot']}, publication {status['publication']} -> "
        f"stream {status['stream']}   up {age(status['uptime_seconds'])}"
    )
    text = printable(verdict["text"])
    yield f"\x1b[{COLOURS[verdict['level']]}m{text}\x1b[0m" if colour else text
    yield ""
    yield f"  {'stage':<10} {'position':<18} moved"
    for stage in status["stages"]:
        moved = f"{age(now_unix_s - stage['moved_at'])} ago" if stage["moved_at"] else "not yet"
        more = ", keepalives included" if stage["stage"] == "received" and stage["moved_at"] else ""
        yield f"  {stage['stage']:<10} {stage['lsn']:<18} {moved}{more}{'   STUCK' if stage['stuck'] else ''}"
    yield ""
    latency = status["latency_ms"]
    rows = [
        ("changes", f"{status['events_per_second']:,} /s, {status['cdc_events_published']:,} stored since the start"),
        ("latency", f"median {_ms(latency['p50'])}, p99 {_ms(latency['p99'])} from commit to stored, last minute"),
        ("lag", _lag(status)),
        ("WAL held", wal_words(status, now_unix_s)),
    ]
    if stream["looked_at"]:
        limit = f" of {human_bytes(stream['bytes_max'])}" if stream["bytes_max"] else ""
        back = f", oldest message {age(now_unix_s - stream['oldest_unix_s'])} old" if stream["oldest_unix_s"] else ""
        seen = f"; looked at {age(now_unix_s - stream['looked_at'])} ago"
        words = f"{counted(stream['messages'], 'message')}, {human_bytes(stream['bytes'])}{limit}{back}{seen}"
        rows.append(("stream", words))
    late = [c for c in status["consumers"] if c["at_risk"]]
    warning = "{name} has yet to read {history_used:.0%} of the stream, which discards its oldest messages: it may lose changes"
    rows += [("consumer", warning.format(**one)) for one in late]
    suspended = status["suspended_tables"]
    rows.append(("tables", f"{status['tables']:,}" + (f", suspended: {', '.join(sorted(suspended))}" if suspended else "")))
    rows += [("snapshot", line) for line in _snapshots(status["snapshots"])]
    for label, words in rows:
        yield f"  {label:<10} {printable(words)}"
    for problem in status["problems"]:
        yield ""
        yield f"  {problem['code']}: {printable(problem['what'])}"
        for label in ("said", "means", "fix"):
            if problem[label]:
                yield f"    {label + ':':<7}" + printable(problem[label]).replace("\n", "\n" + " " * 11)


def _lag(status: Mapping[str, Any]) -> str:
    wal = status["wal"]
    unread = f", {human_bytes(wal['unread_bytes'])} not yet read" if wal["unread_bytes"] else ""
    return f"{status['lag_seconds']:g} s; {human_bytes(wal['unconfirmed_bytes'])} of WAL not yet confirmed{unread}"


def wal_words(status: Mapping[str, Any], now_unix_s: float) -> str:
    """Say how much WAL PostgreSQL holds for the slot, of how much, and how long that lasts."""
    wal = status["wal"]
    held = human_bytes(wal["held_bytes"])
    looked_s = now_unix_s - wal["looked_at"]
    seen = f"; looked at {age(looked_s)} ago" if wal["looked_at"] and looked_s > OLD_S else ""
    if status["wal_status"] == "lost":
        return f"{held}; the slot is lost{seen}"
    if wal["budget_bytes"] is None:
        return held + seen if wal["limited"] else f"{held}, without a limit{seen}"
    left_s = None if status["state"] == "waiting_postgres" else wal["seconds_to_loss"]
    lasts = f": room for {span(left_s)} at the present rate" if left_s is not None else ""
    return f"{held} of {human_bytes(wal['budget_bytes'])}{lasts}{seen}"


def _snapshots(snapshots: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in snapshots:
        if one["state"] == "running":
            share = f" ({min(99, 100 * one['rows'] // one['rows_expected'])} %)" if one["rows_expected"] else ""
            since = one.get("transaction_since", 0)
            held = f", holds back VACUUM for {max(0.0, time.time() - since):.0f} s" if since else ""
            yield f"{one['table']} running: {counted(one['rows'], 'row')}{share}{held}"
        elif one["state"] == "failed":
            yield f"{one['table']} failed: {one['error']}" + "".join(f"\n{'':13}{line}" for line in one["fix"].splitlines())
    waiting = sum(one["state"] == "waiting" for one in snapshots)
    if waiting:
        yield f"{waiting} waiting"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:g} ms"


def printable(text: str) -> str:
    """Replace what would steer the terminal: names come from databases."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
