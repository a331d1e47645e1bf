"""`walbridge demo`, as a newcomer runs it: it survives its own keys, ends with a verdict, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.cells import cell_len
from rich.console import Console

from actors.demo.run import _remove_left_over
from actors.demo.screen import Proof, Seen, TableRows, _frame
from tests.servers import HANG_S, ROOT

pytestmark = pytest.mark.servers  # the demo starts its own

COMMAND = [sys.executable, "-m", "actors.main", "demo"]


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_without_a_terminal_it_is_plain_lines_and_a_verdict() -> None:
    done = subprocess.run(
        [*COMMAND, "--seconds", "6", "--rate", "100", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/elsewhere", "NATS_URL": "nats://127.0.0.1:1"},
    )  # what is set for another bridge is not the demo's
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["equal"] is True
    assert outcome["events"] > 50
    assert set(outcome["rows"]) == {"users", "orders"}
    assert "\x1b" not in done.stderr, "no cursor moves in a log"
    assert re.search(r"^ +\d+ s  streaming  ", done.stderr, re.MULTILINE)
    assert "Page:        http://127.0.0.1:" in done.stderr
    assert "See changes: walbridge tail --env-file " in done.stderr
    assert re.search(r"ends in [0-6] s", done.stderr)


def test_it_survives_its_keys() -> None:
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen([*COMMAND, "--rate", "100"], cwd=ROOT, stdin=secondary, stdout=secondary, stderr=secondary)
    os.close(secondary)
    shown = bytearray()

    def read_until(words: bytes) -> None:
        deadline = time.monotonic() + HANG_S
        while words not in shown:
            assert time.monotonic() < deadline, shown[-3000:].decode(errors="replace")
            if select.select([primary], [], [], 0.2)[0]:
                try:
                    shown.extend(os.read(primary, 65536))
                    shown[:] = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)  # colours, and moves of the cursor
                except OSError as exc:
                    raise AssertionError(f"it ended: {shown[-3000:].decode(errors='replace')}") from exc

    try:
        read_until("✓ equal count".encode())
        started = children_of(process.pid)
        for key, answer in (
            (b"v", b"comparing both sides"), (b"d", b"ALTER TABLE waits until verify"), (b"", b"verify: equal at one LSN"),
            (b"", b"ADD COLUMN added_1"), (b"", b"0 lost, 0 doubled"), (b"k", b"bridge killed with -9"), (b"", b"streaming   bridge killed 1x"), (b"d", b"ADD COLUMN added_2"),
            (b"s", b"snapshot of users requested"), (b"+", b"250 changes per second"), (b"n", b"NATS killed; it comes back"),
            (b"k", b"bridge killed 2x"), (b"q", b"load stopped"),
        ):  # fmt: skip
            os.write(primary, key)
            read_until(answer)
        read_until(b"equal to the source")
        assert process.wait(HANG_S) == 0, shown[-3000:].decode(errors="replace")
        assert b"no change lost, none doubled" in shown
        assert b"[q]uit" not in shown[shown.index(b"load stopped") :], "keys that do nothing any more are not offered"
        assert not [child for child in started if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    finally:
        process.kill()
        process.wait()
        os.close(primary)


ADDRESS = "walbridge tail --env-file /var/tmp/walbridge-demo-abcdefgh/walbridge.env"


def seen(**more: Any) -> Seen:
    tables = [TableRows("users", 12, 30, 12), TableRows("orders", 7, 9, None)]
    return Seen(
        "streaming",
        39,
        0.0,
        1,
        2.0,
        9.0,
        tables,
        'cdc.users.insert  {"name": "Jörg Müller"}',
        addresses={"See changes": ADDRESS},
        **more,
    )


@pytest.mark.parametrize("width", [20, 60, 80, 110])
def test_a_frame_is_as_wide_as_the_terminal_whatever_is_in_it(width: int) -> None:
    """A line that wrapped would leave remains of earlier frames."""
    console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
    log = ((3.0, "bridge killed with -9 and started again, " * 5),)
    console.print(_frame(seen(log=log, proof=Proof(True, "0/1A", 1.0, 4), next_proof_s=7.0, left_s=42.0, seconds=2.0), "9/s"))
    file = console.file
    assert isinstance(file, StringIO)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-z]", "", line) for line in file.getvalue().splitlines()]
    assert {cell_len(line) for line in lines} == {width}
    text = "".join(line.strip("│ ") for line in lines)
    if width >= 80:
        for words in (
            "Jörg Müller",
            "0 lost, 0 doubled",
            "next in 7 s",
            "ends in 42 s",
            "[q]uit",
            "p99 9.0 ms",
            "WAL held 0.0 MB",
        ):
            assert words in text, lines
    if width >= 60:
        assert len(lines) < 24
        assert ADDRESS.replace(" ", "") in text.replace(" ", ""), "what is to be copied is whole"


def test_what_a_killed_demo_left_is_removed_and_what_a_running_one_holds_is_not(tmp_path: Path) -> None:
    killed, running, young = (tmp_path / f"walbridge-demo-{name}" for name in ("killed", "running", "young"))
    for folder in killed, running, young:
        folder.mkdir()
        (folder / "lock").touch()
    for folder in killed, running:
        os.utime(folder / "lock", (0, 0))
    with (running / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(running / "lock", (0, 0))
        _remove_left_over(tmp_path)
        assert (killed.exists(), running.exists(), young.exists()) == (False, True, True)
    target = tmp_path / "somebody's file"
    target.write_text("kept")
    linked = tmp_path / "walbridge-demo-linked"
    linked.mkdir()
    (linked / "lock").symlink_to(target)
    os.utime(target, (0, 0))
    _remove_left_over(tmp_path)
    assert target.read_text() == "kept", "a link is not followed"


def test_ctrl_c_ends_it_in_order_and_what_was_asked_for_is_kept(tmp_path: Path) -> None:
    folder = Path("/var/tmp") / f"walbridge-demo-test-{os.getpid()}" if os.geteuid() == 0 else tmp_path / "kept"
    process = subprocess.Popen(
        [*COMMAND, "--keep", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "streaming" in line and "orders" in line and "/-" not in line:
            break
    process.send_signal(signal.SIGINT)
    with process.stdout:
        rest = process.stdout.read()
    assert process.wait(HANG_S) == 0, rest
    assert "The replica is equal to the source" in rest
    assert (folder / "bridge.log").exists()
    assert f"Data and logs are in {folder}" in rest
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_bad_value_is_named() -> None:
    done = subprocess.run([*COMMAND, "--rate", "0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--rate" in done.stderr
