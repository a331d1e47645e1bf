"""`pg_recvlogical` to /dev/null: how fast PostgreSQL hands out a backlog to a reader that does nothing with it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Servers
from bench.workload import PUBLICATION, Backlog


@dataclass(frozen=True, slots=True)
class ReaderRun:
    """One run of pg_recvlogical."""

    events_per_s: float
    """From its first byte of output to its last."""
    wall_s: float
    """From the start of the process to its end."""


def run_recvlogical(servers: Servers, backlog: Backlog) -> ReaderRun:
    """Read a copy of the backlog's slot to its end. Raises RuntimeError with what pg_recvlogical said."""
    with servers.new_slot(copy_of=backlog.slot) as slot:
        command = [
            str(servers.postgres.bin_dir / "pg_recvlogical"), "--dbname", servers.postgres.dsn(), "--slot", slot, "--start",
            "--no-loop", "--endpos", backlog.end_lsn, "--file", "/dev/null", "--fsync-interval", "0", "--verbose",
            "--option", "proto_version=1", "--option", f"publication_names={PUBLICATION}",
        ]  # fmt: skip
        started = time.time()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said, first, last = "", started, 0.0
            for line in process.stderr:
                said += line
                if "streaming initiated" in line:
                    first = _first_output(process.pid, len(said.encode()))
                elif "end position" in line:
                    last = time.time()
        if process.returncode or not last:
            raise RuntimeError(f"pg_recvlogical ended with exit code {process.returncode}: {said}")
        return ReaderRun(backlog.rows / (last - first), time.time() - started)


def _first_output(pid: int, said_bytes: int) -> float:
    """When the process has written more than what it said on stderr; at once where there is no /proc."""
    try:
        while int(Path(f"/proc/{pid}/io").read_text(encoding="ascii").split()[3]) <= said_bytes:
            time.sleep(0.001)
    except (OSError, IndexError):  # not Linux, or it has ended already
        pass
    return time.time()
