"""Whatever `walbridge init` writes into an env file is read back as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from actors.commands.init import _quoted
from actors.errors import ConfigError
from actors.settings.env_file import read_env_file

VALUES = st.text(st.sampled_from("ab1 #'\"\\$`;&=:/@%-\n\té"), max_size=12) | st.text(max_size=8)


@given(st.dictionaries(st.sampled_from(["DATABASE_URL", "NATS_URL", "NATS_BRIDGE_USER"]), VALUES))
def test_what_is_written_is_read(values: dict[str, str]) -> None:
    try:
        text = "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())
    except ConfigError:
        assert any(set("'\"") <= set(value) or not value.isprintable() for value in values.values())
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "env"
        path.write_text(text, encoding="utf-8")
        assert read_env_file(path) == values
