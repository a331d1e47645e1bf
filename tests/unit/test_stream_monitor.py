"""The stream_monitor reports deleted messages once."""

from __future__ import annotations

import pytest

from actors import stream_monitor
from actors.stream_monitor import DELETED, note_deleted
from actors.telemetry.telemetry import StreamHealth, Telemetry


def test_deleted_messages_are_a_problem_that_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry, logged = Telemetry(), list[str]()
    monkeypatch.setattr(stream_monitor.log, "warning", lambda what, **_: logged.append(what))

    def look(count: int) -> None:
        before, telemetry.stream = telemetry.stream.deleted, StreamHealth(deleted=count)
        note_deleted(telemetry, "CDC", before)

    for count in (0, 1, 1, 2_000, 2_000, 1_500, 1_500):
        look(count)
    assert logged == [f"{words} deleted in the middle of stream CDC" for words in ("1 message was", "2,000 messages were")]
    problem = telemetry.problems[DELETED]
    assert (problem.code, problem.what) == ("WB224", "1,500 messages were deleted in the middle of stream CDC")
    look(0)
    assert telemetry.problems == {}
