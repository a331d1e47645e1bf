"""Schemas of public tools, as check-jsonschema has them; in this process, because it takes longer to start than to check."""

from __future__ import annotations

from pathlib import Path

from check_jsonschema import main
from click.testing import CliRunner


def departure_from(schema: str, file: Path) -> str:
    """What is wrong with a file by a built-in schema; empty when it keeps to it."""
    done = CliRunner().invoke(main, ["--builtin-schema", schema, str(file)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return "" if done.exit_code == 0 else done.output or f"exit {done.exit_code}"
