"""How long the supervisor waits between two runs."""

from __future__ import annotations

from actors.bridge import pause_before_retry_s
from actors.errors import HistoryDiverged, SinkUnavailable, SourceUnavailable


def test_pauses_double_up_to_that_of_the_server_that_is_away() -> None:
    assert [pause_before_retry_s(SinkUnavailable.retry_s, failed) for failed in range(6)] == [0.25, 0.5, 1, 2, 2, 2]
    assert [pause_before_retry_s(SourceUnavailable.retry_s, failed) for failed in range(7)] == [0.25, 0.5, 1, 2, 4, 5, 5]
    assert pause_before_retry_s(HistoryDiverged.retry_s, 0) == 0.1


def test_an_outage_of_months_does_not_overflow() -> None:
    assert pause_before_retry_s(SinkUnavailable.retry_s, 10**9) == 2
