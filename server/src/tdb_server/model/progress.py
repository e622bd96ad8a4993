"""How long steps say how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done, for people, and the fraction of it that is done, 0 to 1."""


def no_progress(stage: str, fraction: float) -> None:
    """For callers who do not want to know."""
