"""The wheel of the Walbridge that runs, made again from its installed files, so that an image needs no package index for it."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import actors

OF_THE_INSTALLATION = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}
"""Files in `.dist-info` that an installer writes."""
MADE = (2020, 2, 2, 0, 0, 0)
"""The date of every file: the same installation makes the same bytes each time."""


class Wheel(NamedTuple):
    """A wheel and its file's name."""

    name: str
    content: bytes


def installed_wheel() -> Wheel | None:
    """Return the wheel, or None where Walbridge runs from a checkout, whose installation has none of the package's files."""
    try:
        installed = distribution("walbridge")
    except PackageNotFoundError:
        return None
    files = _files(installed)
    package = files.get("actors/__init__.py")
    if package is None or actors.__file__ is None or not package.samefile(actors.__file__):
        return None
    record = next(name for name in files if name.endswith(".dist-info/METADATA")).replace("METADATA", "RECORD")
    lines: list[str] = []
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            lines.append(f"{name},sha256={_digest(content)},{len(content)}\n")
            _add(archive, name, content)
        _add(archive, record, "".join([*lines, f"{record},,\n"]).encode())
    return Wheel(f"walbridge-{installed.version}-py3-none-any.whl", packed.getvalue())


def _files(installed: Distribution) -> dict[str, Path]:
    """What the wheel held: name in it -> where it is. Compiled modules and the scripts outside are of the installation."""
    return {
        file.as_posix(): Path(str(installed.locate_file(file)))
        for file in installed.files or ()
        if ".." not in file.parts
        and file.suffix != ".pyc"
        and not (file.parts[0].endswith(".dist-info") and file.name in OF_THE_INSTALLATION)
    }


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, MADE)
    entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(entry, content)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
