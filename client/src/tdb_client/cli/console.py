"""Where commands print their tables."""

from __future__ import annotations

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the command, which knows the exit code."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """The terminal. Tokens are text, whatever they look like."""
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
