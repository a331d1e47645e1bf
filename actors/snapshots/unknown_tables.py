"""How often requests for tables that are not published are answered. No I/O."""

from __future__ import annotations

UNKNOWN_EVERY_S = 60.0
UNKNOWN_AT_ONCE = 100
"""Unknown tables answered per minute; more are a mistake or malice."""


class UnknownTables:
    """Limits how often requests for unknown tables are answered. No I/O."""

    def __init__(self) -> None:
        self._answered: dict[str, float] = {}

    def may_answer(self, token: str, now_s: float) -> bool:
        """Return whether to answer a request, and count the answer: once per minute and table, 100 tables per minute."""
        answered = self._answered
        for old in [t for t, at in answered.items() if now_s - at >= UNKNOWN_EVERY_S]:
            del answered[old]
        if token in answered or len(answered) >= UNKNOWN_AT_ONCE:
            return False
        answered[token] = now_s
        return True
