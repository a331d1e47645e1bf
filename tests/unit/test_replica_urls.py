"""Which file a replica's URL names, and that half a URL names none."""

from __future__ import annotations

import pytest

from actors.errors import ConfigError
from actors.mirror.stores.open import sqlite_path


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///replica.db", "replica.db"),
        ("sqlite:////var/lib/replica.db", "/var/lib/replica.db"),
        ("sqlite:///./a b?.db", "./a b?.db"),
        ("sqlite:///C#1.db", "C#1.db"),
    ],
)
def test_a_url_names_a_file(url: str, path: str) -> None:
    assert sqlite_path(url) == path


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("sqlite:replica.db", "give sqlite:///replica.db, or sqlite:////replica.db from the root"),
        ("sqlite:/var/replica.db", "give sqlite:///var/replica.db, or sqlite:////var/replica.db from the root"),
        ("sqlite://replica.db", "give sqlite:///replica.db, or"),
        ("sqlite:", "give sqlite:///file.db"),
        ("sqlite://", "give sqlite:///file.db"),
        ("sqlite:///", "give sqlite:///file.db"),
        ("sqlite:////", "give sqlite:///file.db"),
        ("sqlite:///:memory:", "a replica in memory ends with its mirror; give sqlite:///file.db"),
    ],
)
def test_half_a_url_names_none(url: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sqlite_path(url)
    assert refused.value.code == "WB500"
    assert fix in refused.value.what
