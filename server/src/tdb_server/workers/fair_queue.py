"""Calls that wait for a worker.

The devices' time is shared fairly between callers, and between the connections of each; on one connection
calls go in the order of their arrival. What a call takes is estimated when it begins, and put right when it
has ended. Interactive calls go before sweeps, for which a small share is kept.

Places are shared too: when there are none left, whoever holds the most gives one up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tdb_server.domain.caller import Caller
from tdb_server.domain.priority import Priority
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.device_time import Pace
from tdb_server.workers.fair_shares import FairShares
from tdb_server.workers.ticket import Ticket

PRIORITY_WEIGHTS = {Priority.INTERACTIVE: 0.9, Priority.SWEEP: 0.1}
"""Shares of the devices' time while calls of both wait all the time."""
Lane = tuple[str, str, str]
"""Calls in one lane have one priority, caller and connection, and go in the order of their arrival."""


class FairQueue:
    """Calls in their lanes, and whose turn it is. The rule says which of them fit together."""

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._again: deque[Ticket] = deque()
        self._lanes: dict[Lane, deque[Ticket]] = {}
        # By the beginning of lanes: of priorities by (), of a priority's callers by (priority,), and of a
        # caller's connections by (priority, caller).
        self._shares: dict[tuple[str, ...], FairShares] = {}
        self._estimates: dict[Ticket, float] = {}  # of calls that run

    def __len__(self) -> int:
        # The list is made in one step, so that other threads can ask for the length too.
        return len(self._again) + sum(len(tickets) for tickets in list(self._lanes.values()))

    @property
    def n_callers(self) -> int:
        """Callers that have a call waiting. Other threads may ask, too."""
        return len({caller for _, caller, _ in list(self._lanes)})

    def put(self, ticket: Ticket) -> None:
        """Adds a call at the end of its lane."""
        self._lanes.setdefault(_lane(ticket), deque()).append(ticket)
        self._arrives(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Adds a call that has waited before and must run again; such calls come first."""
        self._again.append(ticket)
        self._arrives(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Takes a call out, wherever it is, if it is."""
        lane = _lane(ticket)
        if ticket in self._again:
            self._again.remove(ticket)
        elif ticket in self._lanes.get(lane, ()):
            self._take(lane, ticket)
        else:
            return
        for depth, name in enumerate(lane):
            self._shares[lane[:depth]].withdraw(name)
        self._tidy(lane)

    def take_batch(self, max_calls: int, pace: Pace) -> list[Ticket]:
        """Takes the calls that run next: the one whose turn it is, and what fits beside it.

        Each must be settled when it has ended.

        Args:
            max_calls: how many at most, 1 or more.
            pace: of the worker that will run them.
        """
        batch: list[Ticket] = []
        while self._again and self._is_welcome(batch, self._again[0], max_calls, pace):
            batch.append(self._begins(self._again.popleft(), pace))
        lanes = list(self._lanes)
        while lanes and len(batch) < max_calls:
            lane = self._first(lanes, pace)
            ticket = self._lanes[lane][0]
            if self._is_welcome(batch, ticket, max_calls, pace):
                self._take(lane, ticket)
                batch.append(self._begins(ticket, pace))
                if lane in self._lanes:
                    continue
            lanes.remove(lane)
        return batch

    def settle(self, ticket: Ticket, seconds: float) -> None:
        """A call that was taken does not run any more, and has kept a device busy for so long."""
        lane = _lane(ticket)
        estimate = self._estimates.pop(ticket)
        for depth, name in enumerate(lane):
            self._shares[lane[:depth]].settle(name, estimate, seconds)
        self._tidy(lane)

    def forget(self, ticket: Ticket) -> None:
        """Takes a call out that waits, or that was taken and has not been settled; that costs nothing."""
        if ticket in self._estimates:
            self.settle(ticket, 0.0)
        else:
            self.remove(ticket)

    def displaced_by(self, caller: Caller, priority: Priority, *, among_own: bool = False) -> Ticket | None:
        """Which call has to give up its place, where none is left, for a new one of this caller and priority.

        Args:
            among_own: whether only calls of the same caller may.

        Returns:
            The newest call of whoever holds the most places for its weight, if that is more than the newcomer
            would; its sweeps first. None when the newcomer is the one.
        """
        own = {lane: tickets for lane, tickets in self._lanes.items() if lane[1] == caller.name}
        if not among_own and (others := self._of_the_fullest()):
            n_own = sum(len(tickets) for tickets in own.values()) + 1
            if _weighed(others) > n_own / caller.weight and others.keys() != own.keys():
                return _newest(others)
        sweeps = {lane: tickets for lane, tickets in own.items() if lane[0] == Priority.SWEEP.value}
        if sweeps and priority is Priority.INTERACTIVE:
            return _newest(sweeps)
        beside = {lane: tickets for lane, tickets in own.items() if lane[0] == priority.value}
        n_here = len(beside.get((priority.value, caller.name, caller.connection), ()))
        if beside and max(len(tickets) for tickets in beside.values()) > n_here + 1:
            return _newest(beside)
        return None

    def _of_the_fullest(self) -> dict[Lane, deque[Ticket]]:
        """The lanes of the caller with the most places for its weight."""
        by_caller: dict[str, dict[Lane, deque[Ticket]]] = {}
        for lane, tickets in self._lanes.items():
            by_caller.setdefault(lane[1], {})[lane] = tickets
        return max(by_caller.values(), key=_weighed) if by_caller else {}

    def _first(self, lanes: Sequence[Lane], pace: Pace) -> Lane:
        """The lane whose turn it is, found from the connections up."""
        seconds = {lane: pace.seconds(self._lanes[lane][0].work) for lane in lanes}
        candidates = list(lanes)
        for depth in (2, 1):
            best: dict[tuple[str, ...], tuple[float, Lane]] = {}
            for lane in candidates:
                above = lane[:depth]
                finish = self._shares[above].finish(lane[depth], seconds[lane])
                if above not in best or finish < best[above][0]:
                    best[above] = finish, lane
            candidates = [lane for _, lane in best.values()]
        by_priority = {lane[0]: lane for lane in candidates}
        interactive, sweep = (by_priority.get(one.value) for one in (Priority.INTERACTIVE, Priority.SWEEP))
        if sweep is None or interactive is None:
            return candidates[0]
        is_overdue = self._shares[()].is_overdue(sweep[0], seconds[sweep])
        return sweep if is_overdue else interactive

    def _is_welcome(self, batch: list[Ticket], ticket: Ticket, max_calls: int, pace: Pace) -> bool:
        return not batch or (len(batch) < max_calls and self._rule.fits(batch, ticket, pace))

    def _arrives(self, ticket: Ticket) -> None:
        lane, caller = _lane(ticket), ticket.terms.caller
        weights = (PRIORITY_WEIGHTS[ticket.terms.priority], caller.weight, 1.0)
        for depth, (name, weight) in enumerate(zip(lane, weights, strict=True)):
            self._shares.setdefault(lane[:depth], FairShares()).arrive(name, weight)

    def _begins(self, ticket: Ticket, pace: Pace) -> Ticket:
        lane, seconds = _lane(ticket), pace.seconds(ticket.work)
        self._estimates[ticket] = seconds
        for depth, name in enumerate(lane):
            self._shares[lane[:depth]].serve(name, seconds)
        return ticket

    def _take(self, lane: Lane, ticket: Ticket) -> None:
        self._lanes[lane].remove(ticket)
        if not self._lanes[lane]:
            del self._lanes[lane]

    def _tidy(self, lane: Lane) -> None:
        """Which connection of a caller was ahead is of no interest when it has nothing more to do."""
        if self._shares[lane[:2]].is_idle:
            del self._shares[lane[:2]]


def _lane(ticket: Ticket) -> Lane:
    caller = ticket.terms.caller
    return ticket.terms.priority.value, caller.name, caller.connection


def _weighed(lanes: dict[Lane, deque[Ticket]]) -> float:
    """Places of one caller, for its weight: that of its newest calls, if it has changed."""
    weight = max(tickets[-1].terms.caller.weight for tickets in lanes.values())
    return sum(len(tickets) for tickets in lanes.values()) / weight


def _newest(lanes: dict[Lane, deque[Ticket]]) -> Ticket:
    """The newest call of the fullest lane; of sweeps, where there are any."""
    lane = max(lanes, key=lambda one: (one[0] == Priority.SWEEP.value, len(lanes[one])))
    return lanes[lane][-1]
