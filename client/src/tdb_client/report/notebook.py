"""The page inside a notebook: in a frame of its own, so that neither's styles touch the other's."""

from __future__ import annotations

import html
import sys
import tempfile
import webbrowser
from importlib import import_module
from pathlib import Path

HEIGHT = 720
"""Pixels of the frame, whose lower edge can be pulled."""


def frame(page: str) -> str:
    """The page as an element for a notebook's output."""
    return (
        f'<iframe srcdoc="{html.escape(page)}" title="transformer debugger report"'
        ' sandbox="allow-scripts allow-popups allow-popups-to-escape-sandbox allow-modals"'
        ' allow="clipboard-write"'
        f' style="width: 100%; height: {HEIGHT}px; border: 1px solid #d5d9df; resize: vertical"></iframe>'
    )


def show(page: str) -> None:
    """Shows the page below the notebook's cell, or else in the web browser, from a temporary file."""
    if is_notebook():
        display(frame(page), "the report is shown where notebooks show HTML")
        return
    with tempfile.NamedTemporaryFile(
        "w", prefix="tdb-", suffix=".html", encoding="utf-8", delete=False
    ) as file:
        file.write(page)
    webbrowser.open(Path(file.name).as_uri())


def display(element: str, text: str) -> None:
    """Shows an element below the notebook's cell, or a text where a notebook shows no HTML."""
    # Not as IPython's HTML, which warns of frames, and whose IFrame cannot say what a frame may do.
    import_module("IPython.display").display({"text/html": element, "text/plain": text}, raw=True)


def is_notebook() -> bool:
    """Whether this runs in a notebook's kernel; the plain terminal of IPython shows no HTML."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
