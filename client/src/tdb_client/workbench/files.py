"""The page's files, as a server of the page hands them out. Nothing is read but what is listed here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template

CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDERS = {"workbench": ("tdb_client.workbench", "pages"), "report": ("tdb_client.report", "")}
"""First part of the address, and the package's folder behind it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is sent.

    Attributes:
        content: its bytes.
        content_type: what they are.
        etag: tells whether a browser's copy is still the same.
    """

    content: bytes
    content_type: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.content).hexdigest()
        object.__setattr__(self, "etag", f'"{digest[:32]}"')

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it: browsers keep a copy, and ask every time whether it is still the same."""
        return {
            "Content-Type": self.content_type,
            "ETag": self.etag,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
        }


def content_security_policy(frame_ancestors: str = "'self'") -> str:
    """What the page may load and run: its own files, and nothing written into the page itself.

    Args:
        frame_ancestors: whose pages may show it in a frame.
    """
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        f" base-uri 'none'; form-action 'none'; frame-ancestors {frame_ancestors}"
    )


@cache
def static_files() -> Mapping[str, File]:
    """Styles and scripts by address, such as `workbench/workbench.js`: the page's and the report's."""
    return {
        f"{name}/{one.name}": File(one.read_bytes(), CONTENT_TYPES[suffix])
        for name, (package, folder) in _FOLDERS.items()
        for one in files(package).joinpath(folder).iterdir()
        if (suffix := f".{one.name.rpartition('.')[2]}") in CONTENT_TYPES
    }


@cache
def page(depth: int = 0) -> File:
    """The page, which names its files relative to itself, so that it works behind any path.

    Args:
        depth: how many folders its address has below the page at `/`: 1 for `/node/NAME`.
    """
    return _relative("workbench.html", depth)


def no_such_page(depth: int) -> File:
    """The page at an address that does not exist, which leads to the workbench.

    Args:
        depth: as in `page`.
    """
    return _relative("no_such_page.html", depth)


def _relative(name: str, depth: int) -> File:
    text = files("tdb_client.workbench").joinpath("pages", name).read_text(encoding="utf-8")
    content = Template(text).substitute(base="../" * depth)
    return File(content.encode(), "text/html; charset=utf-8")
