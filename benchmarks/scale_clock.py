"""The time of the simulation: moments that come, and computing that takes longer when cores are short."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

Happening = Callable[[], None]


class _Core:
    """What computes on a core gets the same share of it.

    So it all progresses at the same speed, and what ends first does not change when the speed does: it is
    kept by how far progress will be then.
    """

    def __init__(self) -> None:
        self.computing: list[tuple[float, int, Happening]] = []
        self._progress = 0.0
        self._seen_at = 0.0

    def progress(self, now: float) -> float:
        """Seconds that each thing would have computed had it been here from the beginning."""
        if self.computing:
            self._progress += (now - self._seen_at) / len(self.computing)
        self._seen_at = now
        return self._progress

    def next_end(self, now: float) -> float:
        """When the first thing that computes now is done if nothing joins it."""
        if not self.computing:
            return math.inf
        return now + max(0.0, self.computing[0][0] - self.progress(now)) * len(self.computing)


class Clock:
    """Lets things happen in order.

    What begins to compute takes the emptiest core and stays there, as an operating system leaves a thread for
    some milliseconds where it is.

    Args:
        n_cores: that everything shares; infinite where each has its own.
    """

    def __init__(self, n_cores: float) -> None:
        self.now = 0.0
        self._cores = [] if n_cores == math.inf else [_Core() for _ in range(int(n_cores))]
        self._order = itertools.count()
        self._moments: list[tuple[float, int, Happening]] = []

    def at(self, moment: float, happen: Happening) -> None:
        """Something happens then."""
        heapq.heappush(self._moments, (moment, next(self._order), happen))

    def compute(self, seconds: float, done: Happening) -> None:
        """Something computes from now on, for so long if it has a core of its own."""
        if not self._cores:
            self.at(self.now + seconds, done)
            return
        core = min(self._cores, key=lambda core: len(core.computing))
        heapq.heappush(core.computing, (core.progress(self.now) + seconds, next(self._order), done))

    def step(self) -> bool:
        """Goes on to the next thing that happens; False when there is none."""
        next_moment = self._moments[0][0] if self._moments else math.inf
        ends = [core.next_end(self.now) for core in self._cores]
        next_end = min(ends, default=math.inf)
        if next_moment == next_end == math.inf:
            return False
        queue = self._moments
        if next_end <= next_moment:
            core = self._cores[ends.index(next_end)]
            core.progress(next_end)
            queue = core.computing
        self.now = min(next_moment, next_end)
        _, _, happen = heapq.heappop(queue)
        happen()
        return True
