"""Numbers as text that is short, and keeps what digits a small one has."""

from __future__ import annotations

import math


def number(value: float, *, sign: bool = False) -> str:
    """A number in at most eight characters; `sign` writes the plus sign too."""
    plus = "+" if sign else ""
    size = abs(value)
    if value == 0:  # minus zero too
        return "0"
    if not math.isfinite(value):
        return f"{value:{plus}.0f}"
    if size >= 1e5 or size < 1e-3:
        return f"{value:{plus}.1e}"
    return f"{value:{plus}.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
