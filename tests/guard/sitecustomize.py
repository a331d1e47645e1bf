"""Refuses to start servers while a test runs that says it needs none.

The test run imports this module; the Python processes that tests start run it by its name, as their `PYTHONPATH` leads here.
"""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "WALBRIDGE_TEST_WITHOUT_SERVERS"
"""Names the running test if it is not marked `servers`."""
PROGRAMS = {"initdb", "postgres", "pg_ctl", "nats-server"}


def refuse_servers(event: str, args: tuple[Any, ...]) -> None:
    """Raise before a server's program is started; https://docs.python.org/3/library/audit_events.html."""
    if event == "subprocess.Popen" and VARIABLE in os.environ:
        program = os.path.basename(os.fsdecode(args[0]))
        if program in PROGRAMS:
            raise RuntimeError(f"{os.environ[VARIABLE]} is not marked `servers` and starts {program}")


sys.addaudithook(refuse_servers)
