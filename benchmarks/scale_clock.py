"""The time of the simulation: moments that come, and computing that takes longer when cores are short."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

Happening = Callable[[], None]


class Clock:
    """Lets things happen in order.

    All that computes gets the same share of the cores. So it all progresses at the same speed, and what ends
    first does not change when the speed does: it is kept by how far progress will be then.

    Args:
        n_cores: that everything shares; infinite where each has its own.
    """

    def __init__(self, n_cores: float) -> None:
        self.now = 0.0
        self._n_cores = n_cores
        self._progress = 0.0
        self._order = itertools.count()
        self._moments: list[tuple[float, int, Happening]] = []
        self._computing: list[tuple[float, int, Happening]] = []

    def at(self, moment: float, happen: Happening) -> None:
        """Something happens then."""
        heapq.heappush(self._moments, (moment, next(self._order), happen))

    def compute(self, seconds: float, done: Happening) -> None:
        """Something computes from now on, for so long if it has a core of its own."""
        heapq.heappush(self._computing, (self._progress + seconds, next(self._order), done))

    def step(self) -> bool:
        """Goes on to the next thing that happens; False when there is none."""
        speed = min(1.0, self._n_cores / len(self._computing)) if self._computing else 1.0
        next_moment = self._moments[0][0] if self._moments else math.inf
        next_end = math.inf
        if self._computing:
            next_end = self.now + max(0.0, self._computing[0][0] - self._progress) / speed
        if next_moment == next_end == math.inf:
            return False
        before, self.now = self.now, min(next_moment, next_end)
        self._progress += (self.now - before) * speed
        _, _, happen = heapq.heappop(self._computing if next_end <= next_moment else self._moments)
        happen()
        return True
