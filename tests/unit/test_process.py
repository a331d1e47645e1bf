"""Which error of a group a person reads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
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


PINNED = """
import os, resource
from actors.process import bound_free_memory

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

if {bounded}:
    bound_free_memory()
large = bytearray(os.urandom(1)) * (20 << 20)
del large
before, blocks, pins = resident(), [], []
for _ in range(20):
    blocks.append(b"x" * (3 << 20))
    pins += [b"y" * 600 for _ in range(500)]
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_large_blocks_that_were_freed_do_not_stay_in_the_heap() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept = [
        int(subprocess.run([sys.executable, "-c", PINNED.format(bounded=bounded)], env=environment, check=True,
                           capture_output=True, text=True).stdout)
        for bounded in (False, True)
    ]  # fmt: skip
    assert kept[1] < 12 << 20 < kept[0]


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    limited = """
import resource
from actors.process import allow_many_files
allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, allowed), allowed))
allow_many_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, allowed)
"""
    subprocess.run([sys.executable, "-c", limited], check=True)
