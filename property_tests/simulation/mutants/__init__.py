"""Fixes undone: each patch brings back one silent fault, and the simulation must find it."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def patches() -> list[Path]:
    """All patches, by name. The first line of each says what is wrong with it applied.

    A second line `acts: ...` names the few that find it; without one all acts are tried.
    """
    return sorted(FOLDER.glob("*.patch"))
