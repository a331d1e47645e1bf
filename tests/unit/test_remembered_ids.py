"""Of how many messages the ids are hidden from JetStream, from one fault to the next."""

from __future__ import annotations

import sys

from actors.errors import SinkFenced, SinkUnavailable, TakenForDuplicate
from actors.startup.remembered_ids import RememberedIds


def fenced(stored_seq: int) -> SinkFenced:
    fault = SinkFenced("WB220", "elsewhere")
    fault.stored_seq = stored_seq
    return fault


def test_ids_are_hidden_only_after_a_message_was_dropped() -> None:
    remembered = RememberedIds()
    assert remembered.messages(10, 3) == 0
    remembered.note(SinkUnavailable("WB221", "refused"))
    assert remembered.messages(10, 3) == 0
    remembered.note(fenced(8))
    assert remembered.messages(10, 3) == 0, "another writer has published"
    remembered.note(TakenForDuplicate("WB225", "dropped"))
    assert remembered.messages(10, 3) == 3
    assert remembered.messages(13, 0) == 0, "each fault counts once"


def test_a_fence_without_another_writer_is_a_dropped_message_too() -> None:
    remembered = RememberedIds()
    remembered.note(fenced(10))
    assert remembered.messages(10, 2) == 2


def test_a_run_that_got_no_further_hides_all() -> None:
    remembered = RememberedIds()
    for last_seq, hidden in ((10, 1), (10, sys.maxsize), (10, sys.maxsize), (11, 1), (12, 1)):
        remembered.note(TakenForDuplicate("WB225", "dropped"))
        assert remembered.messages(last_seq, 0) == hidden
