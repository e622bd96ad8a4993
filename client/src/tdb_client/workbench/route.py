"""What a route of the workbench is: a question that is read, and lines that answer it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from tdb_client.async_client import AsyncClient

Line = dict[str, Any]
"""An object of JSON. An iterator in it stands for a list whose entries are made as they are written."""

Lines = AsyncGenerator[Line]


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that the page can ask.

    Attributes:
        read: makes a question of a body; raises `QuestionError`.
        lines: asks it, and yields what the page gets as it comes; raises `TdbError`. Closing it cancels.
    """

    read: Callable[[object], Any]
    lines: Callable[[AsyncClient, Any], Lines]
