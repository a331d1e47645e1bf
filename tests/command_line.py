"""`walbridge` in the test's own process: the imports take longer than most commands do."""

from __future__ import annotations

import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest import mock

from actors.main import main
from tests.servers import CLEAN


def run_here(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that starts nothing, with the environment of a shell that sets nothing of ours but `env`."""
    out, err = StringIO(), StringIO()
    with mock.patch.dict(os.environ, CLEAN | (env or {}), clear=True), redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
