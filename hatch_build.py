"""What the packages' metadata say of the repository: its address, and the README with links that work outside a checkout.

The address is that of the host which builds a release, in WALBRIDGE_REPOSITORY_URL (the workflow sets it); no file holds
it. Without it the README's relative links become plain text, and its pictures are left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<path>(?![a-z]+:|#)[^)\s]+)\)")


def readme_for_packages(readme: str, repository: str, version: str) -> str:
    """The README with links to the files of this version in `repository`, whose host must lay them out as GitHub does."""

    def link(match: re.Match[str]) -> str:
        picture, words, path = match["picture"], match["words"], match["path"]
        if not repository:
            return "" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return RELATIVE_LINK.sub(link, readme)


class RepositoryMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("WALBRIDGE_REPOSITORY_URL", "").rstrip("/")
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = readme_for_packages(readme, repository, metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            metadata["urls"] = {"Source": repository, "Changelog": f"{repository}/blob/v{metadata['version']}/CHANGELOG.md"}
