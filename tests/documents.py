"""The documents, as tests read them."""

from __future__ import annotations

import re

from tests.servers import ROOT

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PAGES = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))
"""The pages of docs/, guides included, as paths in the repository."""
GUIDES = tuple(page for page in PAGES if page.startswith("docs/guides/"))


def section(document: str, title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    marks = re.search(rf"^(#+) {re.escape(title)}$", document, re.MULTILINE)
    assert marks, f"no section {title}"
    rest = document[marks.end() :]
    end = re.search(rf"^#{{1,{len(marks[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest
