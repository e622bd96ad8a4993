"""Weighted shares of the devices' time, by fair queueing.

What is shared out is time that is measured only afterwards, and cannot be taken back once given. Each flow
has a *start*, the virtual time up to which it has had its share. Next is the flow whose next piece of work
would be finished first if all flows were served at once, each at the rate of its weight: so a flow with
little work goes before those with much, until it has had as much as they. Virtual time passes by the seconds
of service divided by the weights of all flows that want any, and is never behind the flow that has had least.
A flow that comes back after a pause starts at the present: nothing is saved up, except that one which has
waited too long, because too much was expected of its last piece of work, starts by as much earlier.

This is starting potential-based fair queueing (D. Stiliadis and A. Varma, "Efficient fair queueing algorithms
for packet-switched networks", 1998) with estimates that are put right.
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT_FLOWS = 64
"""With more flows than this, those that have nothing to do are forgotten."""


@dataclass(slots=True)
class _Flow:
    weight: float
    start: float
    credit: float = 0.0  # how far behind the present it may come back
    pending: float = 0.0  # estimates of what runs, by the weight
    n_waiting: int = 0
    n_running: int = 0


class FairShares:
    """Flows that share something. Work is counted in seconds."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._now = 0.0
        self._look_through_at = KEPT_FLOWS

    def __len__(self) -> int:
        return len(self._flows)

    @property
    def is_idle(self) -> bool:
        """Whether no flow has anything that waits or runs."""
        return not self._active()

    def arrive(self, name: str, weight: float) -> None:
        """One more piece of work waits."""
        flow = self._flows.setdefault(name, _Flow(weight, self._now))
        flow.weight = weight
        if not flow.n_waiting and not flow.n_running:
            flow.start = max(flow.start, self._now - flow.credit)
        flow.n_waiting += 1

    def withdraw(self, name: str) -> None:
        """One piece of work waits no more, and was not served."""
        self._flows[name].n_waiting -= 1
        self._forget()

    def finish(self, name: str, seconds: float) -> float:
        """The virtual time at which a piece of a flow's work would be finished: the least goes next."""
        flow = self._flows[name]
        return flow.start + flow.pending + seconds / flow.weight

    def is_overdue(self, name: str, seconds: float) -> bool:
        """Whether a piece of a flow's work would be finished by now, had it had its share all the time."""
        return self.finish(name, seconds) <= self._now

    def serve(self, name: str, seconds: float) -> None:
        """A piece of work that has waited begins; it is likely to take so long."""
        flow = self._flows[name]
        flow.n_waiting -= 1
        flow.n_running += 1
        flow.pending += seconds / flow.weight

    def settle(self, name: str, estimate: float, seconds: float) -> None:
        """A piece of work has ended that took so long; the estimate is what `serve` was given."""
        flow = self._flows[name]
        active = self._active()
        flow.n_running -= 1
        flow.pending = flow.pending - estimate / flow.weight if flow.n_running else 0.0
        flow.start += seconds / flow.weight
        self._now += seconds / sum(one.weight for one in active)
        self._now = max(self._now, min(one.start for one in active))
        flow.credit = max(0.0, min((estimate - seconds) / flow.weight, self._now - flow.start))
        self._forget()

    def _active(self) -> list[_Flow]:
        return [flow for flow in self._flows.values() if flow.n_waiting or flow.n_running]

    def _forget(self) -> None:
        """A flow without work that is not ahead is as good as one never heard of."""
        if len(self._flows) <= self._look_through_at:
            return
        self._flows = {
            name: flow
            for name, flow in self._flows.items()
            if flow.n_waiting or flow.n_running or flow.start > self._now
        }
        self._look_through_at = max(KEPT_FLOWS, 2 * len(self._flows))
