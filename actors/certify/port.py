"""A consumer under test: a process that is started, killed, and asked over NATS for its tables."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from actors.certify.history import Held
from actors.clients.nats.connection import NatsConnection
from actors.errors import SinkUnavailable

SUBJECT = "walbridge.certify"
"""Requests on this subject a consumer answers with its tables."""
ANSWER_WITHIN_S = 1.0
LOG_LINES = 12


class Answer(NamedTuple):
    """What a consumer says of itself."""

    place: int | None
    """The stream's sequence up to which its tables are complete; None while it does not know, or copies a table."""
    tables: dict[str, Held]


class Consumer:
    """The process. For one task at a time."""

    def __init__(self, command: Sequence[str], folder: Path, url: str, tables: Sequence[str]) -> None:
        """`folder` is the consumer's own, for whatever it keeps over a kill."""
        self._command = list(command)
        self._env = {
            **os.environ, "NATS_URL": url, "WALBRIDGE_TABLES": ",".join(tables), "WALBRIDGE_STREAM": "CDC",
            "WALBRIDGE_STATE": str(folder), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the consumer
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises OSError when the command cannot be run."""
        self._process = subprocess.Popen(
            self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def kill(self) -> None:
        """Kill it and what it has started, if it runs."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, 9)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it, and forget what it has printed."""
        self.kill()
        self._log.close()

    @property
    def exit_code(self) -> int | None:
        """With what it has ended by itself; None while it runs."""
        return None if self._process is None else self._process.poll()

    def log_tail(self) -> str:
        """The last lines that it has printed."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:])


class MalformedAnswer(Exception):
    """A consumer's answer that is not as docs/certify.md says."""


async def ask(connection: NatsConnection) -> Answer | None:
    """Ask the consumer for its tables; None when it does not answer. Raises MalformedAnswer."""
    try:
        reply = await connection.request(SUBJECT, timeout_s=ANSWER_WITHIN_S)
    except SinkUnavailable:
        return None
    return None if reply.status else read_answer(reply.payload)


def read_answer(payload: bytes) -> Answer:
    """Read an answer. Raises MalformedAnswer."""
    try:
        body = orjson.loads(payload)
        place = body.get("place")
        if place is not None and type(place) is not int:
            raise MalformedAnswer(f"the answer's place is not an integer: {place!r}")
        return Answer(place, {str(name): _held(rows) for name, rows in body["tables"].items() if rows is not None})
    except (LookupError, TypeError, AttributeError, ValueError) as exc:
        raise MalformedAnswer(f"the answer is not an object with tables: {payload[:200]!r} ({exc!r})") from exc


def _held(rows: Any) -> Held:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Held(names, [[row.get(name) for name in names] for row in rows])
