"""Calls that wait for a worker. Callers take turns: one with many calls does not hold up one with few."""

from __future__ import annotations

from collections import OrderedDict, deque

from tdb_server.workers.batching import BatchRule
from tdb_server.workers.ticket import Ticket


class FairQueue:
    """In the order of arrival within each caller; callers in turn.

    Args:
        rule: which calls fit together.
    """

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._again: deque[Ticket] = deque()
        self._by_caller: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        # The list is made in one step, so that other threads can ask for the length too.
        return len(self._again) + sum(len(tickets) for tickets in list(self._by_caller.values()))

    def put(self, ticket: Ticket) -> None:
        """Adds a call at the end."""
        self._by_caller.setdefault(ticket.terms.caller.name, deque()).append(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Adds a call that has waited before and must run again; such calls come first."""
        self._again.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Takes a call out, wherever it is, if it is."""
        if ticket in self._again:
            self._again.remove(ticket)
        caller = ticket.terms.caller.name
        tickets = self._by_caller.get(caller)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            if not tickets:
                del self._by_caller[caller]

    def take_batch(self, max_calls: int) -> list[Ticket]:
        """Takes the calls that run next: the first in turn, and what fits beside it.

        Args:
            max_calls: how many at most, 1 or more.
        """
        batch: list[Ticket] = []
        while self._again and self._is_welcome(batch, self._again[0], max_calls):
            batch.append(self._again.popleft())
        is_growing = True
        while is_growing:
            is_growing = False
            for caller in list(self._by_caller):
                tickets = self._by_caller[caller]
                if self._is_welcome(batch, tickets[0], max_calls):
                    batch.append(tickets.popleft())
                    self._had_its_turn(caller)
                    is_growing = True
        return batch

    def _is_welcome(self, batch: list[Ticket], ticket: Ticket, max_calls: int) -> bool:
        return not batch or (len(batch) < max_calls and self._rule.fits(batch, ticket))

    def _had_its_turn(self, caller: str) -> None:
        if self._by_caller[caller]:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
