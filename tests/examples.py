"""How many examples a property is tried with, where hypothesis's own 100 are too few or too many."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> int:
    """`count` in a complete run, a tenth of it in the fast loop: see `conftest.py` beside the packages."""
    return max(1, count * settings().max_examples // 100)
