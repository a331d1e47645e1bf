"""Which error of a group a person reads."""

from __future__ import annotations

import trio

from actors.errors import ConfigError, SinkUnavailable
from actors.process import causes, leaves_of, most_telling

DOWN, WRONG, BUG = SinkUnavailable("WB200", "away"), ConfigError("WB005", "taken"), KeyError("x")
FOLLOWS = trio.BrokenResourceError("its receiver is closed")


def test_groups_are_taken_apart_however_deep_they_are() -> None:
    group = BaseExceptionGroup("", [DOWN, BaseExceptionGroup("", [BaseExceptionGroup("", [WRONG]), BUG])])
    assert list(leaves_of(group)) == [DOWN, WRONG, BUG]
    assert list(leaves_of(BUG)) == [BUG]


def test_what_only_follows_is_no_cause() -> None:
    assert causes(BaseExceptionGroup("", [FOLLOWS, DOWN])) == [DOWN]
    assert causes(BaseExceptionGroup("", [FOLLOWS])) == [FOLLOWS], "unless it is all there is"


def test_a_bug_is_read_first_then_a_fatal_error_then_any() -> None:
    assert most_telling(BaseExceptionGroup("", [DOWN, WRONG])) is WRONG
    assert most_telling(BaseExceptionGroup("", [DOWN, WRONG, FOLLOWS, BUG])) is BUG
    assert most_telling(BaseExceptionGroup("", [DOWN, FOLLOWS])) is DOWN
    assert most_telling(DOWN) is DOWN
