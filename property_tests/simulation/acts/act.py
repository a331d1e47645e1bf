"""The type of an act: what happens, and how often it is drawn."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from property_tests.simulation.world import World

Do = Callable[["World", random.Random], Awaitable[None]]


class Act(NamedTuple):
    """A kind of act and how often it comes."""

    do: Do
    weight: int

    @property
    def name(self) -> str:
        return self.do.__name__
