"""GET /: the page and its modules as they are in `page/`, read once at the start, with a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

SAFE = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Page:
    """The page, its HTTP headers, and the script modules that it loads from `page/`."""

    html: bytes
    headers: dict[str, str]
    modules: Mapping[str, bytes]
    """By file name."""


def load_page() -> Page:
    """Read the parts. The style is inline and allowed by its hash; scripts are allowed from this server alone."""
    folder = files("actors.web").joinpath("page")
    html, style = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "style.css"))
    modules = {part.name: part.read_bytes() for part in folder.iterdir() if part.name.endswith(".js")}
    # imports are found only once a module is there: without these lines the browser would ask for one after the other
    preloads = "\n".join(f'<link rel="modulepreload" href="page/{name}">' for name in sorted(modules))
    page = html.replace("/* style */", style).replace("<!-- modules -->", preloads)
    policy = (
        "default-src 'none'",
        f"style-src {_hash_of(style)}",
        "script-src 'self'",
        "connect-src 'self'",
        "img-src data:",  # its icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a name from a database never becomes markup or a script, not even by mistake
    )
    headers = {
        **SAFE,
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return Page(page.encode(), headers, modules)


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
