"""Runs the command that prints PostgreSQL's password, for tokens that last for minutes and for stores of secrets.

What the command prints on stdout is a secret: it is masked in the log, and never part of an error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE

import trio

from actors.settings.sources import SECRET_LENGTH_MIN
from actors.telemetry.log import mask

TIMEOUT_S = 20.0
OUTPUT_BYTES_MAX = 64 * 1024
SAID_MAX = 300
_LAST_WORDS_S = 0.2
"""How long after its end the command's stderr is read: a process that it has left behind may hold that open."""


class CommandFailed(Exception):
    """The command gave no password: `what` it did instead, and what it `said` on stderr."""

    def __init__(self, what: str, said: str = "") -> None:
        super().__init__(what)
        self.what, self.said = what, said


async def read_password(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> str:
    """Run the program, without a shell, and return what it prints, without the end of its line.

    The command has ended when this returns; if it is late or this is cancelled, it is killed with all of its process group.
    Raises CommandFailed.
    """
    try:
        process = await trio.lowlevel.open_process(list(argv), stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True)
    except (OSError, ValueError) as exc:
        raise CommandFailed("cannot be started", getattr(exc, "strerror", None) or "not a command") from None
    out, err = bytearray(), bytearray()
    try:
        with trio.move_on_after(timeout_s) as deadline:
            await _read_to_end(process, out, err)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()
    password = bytes(out).rstrip(b"\r\n").decode("utf-8", "replace")
    said = _last_line(err, password)
    if deadline.cancelled_caught:
        raise CommandFailed(f"did not end within {timeout_s:g} s", said)
    if len(out) > OUTPUT_BYTES_MAX:
        raise CommandFailed(f"printed more than {OUTPUT_BYTES_MAX // 1024} KiB", said)
    if process.returncode:
        ending = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise CommandFailed(f"ended with {ending}", said)
    if not password:
        raise CommandFailed("printed nothing", said)
    if "\n" in password:
        raise CommandFailed(f"printed {password.count(chr(10)) + 1} lines, and a password is one", said)
    if "\0" in password or "\N{REPLACEMENT CHARACTER}" in password:
        raise CommandFailed("printed what is not text", said)
    if len(password) >= SECRET_LENGTH_MIN:
        mask((password,))
    return password


async def _read_to_end(process: trio.Process, out: bytearray, err: bytearray) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    async with trio.open_nursery() as nursery:
        said_all = trio.Event()
        nursery.start_soon(_keep_last, process.stderr, err, said_all)
        async for piece in process.stdout:
            out += piece
            if len(out) > OUTPUT_BYTES_MAX:
                break
        else:
            await process.wait()
            with trio.move_on_after(_LAST_WORDS_S):
                await said_all.wait()
        nursery.cancel_scope.cancel()


async def _keep_last(stream: trio.abc.ReceiveStream, kept: bytearray, ended: trio.Event) -> None:
    async for piece in stream:
        kept += piece
        del kept[:-OUTPUT_BYTES_MAX]
    ended.set()


def _last_line(err: bytearray, password: str) -> str:
    """The last line that the command wrote to stderr; a shell's trace may show there what was printed."""
    lines = err.decode("utf-8", "replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    for secret in {password, *password.split()}:
        line = line.replace(secret, "********") if len(secret) >= SECRET_LENGTH_MIN else line
    return line[:SAID_MAX]
