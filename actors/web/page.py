"""GET /: the dashboard as one file, assembled once at the start from `page/`, with a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Page:
    """The page and its HTTP headers."""

    html: bytes
    headers: dict[str, str]


def load_page() -> Page:
    """Read and join the parts. Style and script are inline and allowed by their hash alone."""
    folder = files("actors.web").joinpath("page")
    html, style, *scripts = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "style.css", "charts.js", "app.js")
    )
    script = "\n".join(scripts)
    page = html.replace("/* style */", style).replace("/* script */", script)
    policy = (
        "default-src 'none'",
        f"style-src {_hash_of(style)}",
        f"script-src {_hash_of(script)}",
        "connect-src 'self'",
        "img-src data:",  # its icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a name from a database never becomes markup, not even by mistake
    )
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return Page(page.encode(), headers)


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
