"""Which calls share a batch.

Rows of a batch are padded to the longest prompt, so what counts is the number of rows times that length. A
call that no other fits beside still runs, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.workers.ticket import Ticket

MAX_PADDING = 0.5


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How large a batch may be, and how long it may wait for company.

    Attributes:
        max_tokens: tokens of all rows, padding included.
        max_activation_bytes: estimated bytes of all rows.
        max_wait_seconds: how long a worker that has just been busy waits for more calls.
    """

    max_tokens: int
    max_activation_bytes: int
    max_wait_seconds: float

    def fits(self, batch: Sequence[Ticket], candidate: Ticket) -> bool:
        """Whether a call may join a batch that is not empty."""
        together = [*batch, candidate]
        if len(together) > min(ticket.max_company for ticket in together):
            return False
        longest = max(ticket.longest_prompt for ticket in together)
        padded = longest * sum(ticket.n_rows for ticket in together)
        if padded > self.max_tokens:
            return False
        if sum(ticket.call.n_tokens for ticket in together) < (1 - MAX_PADDING) * padded:
            return False
        return sum(_padded_bytes(ticket, longest) for ticket in together) <= self.max_activation_bytes


def _padded_bytes(ticket: Ticket, longest: int) -> float:
    """An upper bound of what a call takes when its rows are padded: nothing grows faster than the square."""
    return ticket.cost.activation_bytes * (longest / max(ticket.longest_prompt, 1)) ** 2
