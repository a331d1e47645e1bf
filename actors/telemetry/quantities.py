"""Numbers and lists as people read them: bytes, counts, times, names."""

from __future__ import annotations

from collections.abc import Sequence

LISTED_MAX = 10
"""How many names of a long list are shown."""


def changes_per_second(per_second: float) -> str:
    """Format a rate: 1,250 changes/s, 0.3 changes/s."""
    if per_second >= 10:
        return f"{per_second:,.0f} changes/s"
    return f"{per_second:.1f} change{'' if round(per_second, 1) == 1 else 's'}/s"


def human_bytes(count: float) -> str:
    """Format bytes: 48 MB, 1.5 GB; in powers of 1024, as PostgreSQL does."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1024 or unit == "TB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" or count == int(count) else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: 1 message, 2,000 messages."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Format names for a sentence, the first ten of many: a, b, c and 3 more."""
    more = f" and {len(names) - LISTED_MAX:,} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more


def span(seconds: float) -> str:
    """Format a duration with its unit as a word: 40 seconds, 5 minutes, 33 days."""
    for size, unit in ((86400 * 2, "day"), (3600 * 2, "hour"), (120, "minute")):
        if seconds >= size:
            return counted(round(seconds / {"day": 86400, "hour": 3600, "minute": 60}[unit]), unit)
    return counted(max(0, round(seconds)), "second")


def age(seconds: float) -> str:
    """Format a duration briefly: 7 ms, 12 s, 5 min, 3 h, 9 d."""
    if seconds <= 0:
        return "0 s"
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))} ms"
    for size, unit in ((86400 * 2, "d"), (3600 * 2, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"


def escaped(text: str) -> str:
    """Return text without characters that would steer a terminal or that no encoding can carry: as escapes, as in JSON."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
