"""A file system so small that a test can fill it."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path


class NoSmallDisk(Exception):
    """None can be made here; the words say why."""


class SmallDisk:
    """A tmpfs on a folder; `close` removes it."""

    def __init__(self, folder: Path, size_mb: int) -> None:
        """Mount it. Raises NoSmallDisk where this process may not."""
        folder.mkdir(mode=0o711)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=711", "walbridge-tests", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as exc:
            raise NoSmallDisk(f"no small disk: {exc}") from exc
        if done.returncode:
            raise NoSmallDisk(f"no small disk: {done.stderr.strip()}")
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room, also not what is freed meanwhile."""
        with suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(os.sysconf("SC_PAGESIZE") * 16))
        with suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(os.sysconf("SC_PAGESIZE")))

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it, with all that it holds."""
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
