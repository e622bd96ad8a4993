"""How urgent a call is."""

from __future__ import annotations

from enum import Enum


class Priority(Enum):
    """Which calls go first; the most urgent is named first."""

    INTERACTIVE = "interactive"
    """Somebody waits for the answer."""
    SWEEP = "sweep"
    """One of many that a program asks for; nobody waits for a single one."""

    def at_most(self, bound: Priority) -> Priority:
        """This one, or the bound where that is less urgent."""
        return bound if bound is Priority.SWEEP else self
