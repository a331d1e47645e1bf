"""What a benchmark ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from actors.embedded.nats import find_nats_server

PACKAGES = ("trio", "psycopg", "msgpack", "nats-py")


def describe_machine(postgres_bin_dir: Path) -> dict[str, str]:
    """Processor, system and the versions of everything that takes part."""
    return {
        "machine": f"{cores()} cores, {_processor()}, {_memory_gb():.0f} GB, {platform.system()} {platform.release()}",
        "postgresql": _version(postgres_bin_dir / "postgres"),
        "nats-server": _version(find_nats_server()),
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    }


def cores() -> int:
    """Those that we may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(program: Path) -> str:
    """The last word of `PROGRAM --version`."""
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[-1].removeprefix("v")
