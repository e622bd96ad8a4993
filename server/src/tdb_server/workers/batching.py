"""Which calls share a batch.

Rows of a batch are padded to the longest prompt, so what counts is the number of rows times that length. All
calls of a batch go through the model together, and the worker takes up nothing else before it is done. So a
batch may take only so long, and only so many times as long as the least work that one connection has in it
would take alone. A call that fits with no other runs alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.workers.device_time import Pace
from tdb_server.workers.ticket import Ticket

MAX_PADDING = 0.5
MAX_SECONDS_RATIO = 16.0
"""How much longer a batch may take than the least that one connection has in it would take by itself."""
SHORT_SECONDS = 0.02
"""What takes less counts as this."""


@dataclass(slots=True)
class BatchRule:
    """How large a batch may be, and how long it may wait for more calls.

    Attributes:
        max_tokens: tokens of all rows, padding included.
        max_activation_bytes: estimated bytes of all rows; set when a worker has said what it has room for.
        max_wait_seconds: how long a worker that has just been busy waits for more calls.
        max_seconds: estimated time of a batch of several calls.
    """

    max_tokens: int
    max_activation_bytes: int
    max_wait_seconds: float
    max_seconds: float

    def fits(self, batch: Sequence[Ticket], candidate: Ticket, pace: Pace) -> bool:
        """Whether a call may join a batch that is not empty, on a worker of this pace."""
        together = [*batch, candidate]
        if len(together) > min(ticket.max_batch_calls for ticket in together):
            return False
        if len({ticket.terms.priority for ticket in together}) > 1:
            return False
        if len({ticket.cost.needs_gradient for ticket in together}) > 1:
            return False  # what needs none would be held for the others' way back, beyond its estimate
        longest = max(ticket.longest_prompt for ticket in together)
        padded = longest * sum(ticket.n_rows for ticket in together)
        if padded > self.max_tokens:
            return False
        if sum(ticket.n_tokens for ticket in together) < (1 - MAX_PADDING) * padded:
            return False
        if not self._is_quick(together, pace):
            return False
        return sum(_padded_bytes(ticket, longest) for ticket in together) <= self.max_activation_bytes

    def _is_quick(self, together: Sequence[Ticket], pace: Pace) -> bool:
        if not pace.is_known:
            return False  # it might be anything
        seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        for ticket in together:
            caller = ticket.terms.caller
            seconds[caller.name, caller.connection] += pace.seconds(ticket.work)
        total, least = sum(seconds.values()), max(min(seconds.values()), SHORT_SECONDS)
        is_shared = len(seconds) > 1
        return total <= (min(self.max_seconds, MAX_SECONDS_RATIO * least) if is_shared else self.max_seconds)


def _padded_bytes(ticket: Ticket, longest: int) -> float:
    """An upper bound of what a call takes when its rows are padded: nothing grows faster than the square."""
    return ticket.cost.activation_bytes * (longest / max(ticket.longest_prompt, 1)) ** 2
