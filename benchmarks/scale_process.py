"""A process of the simulation: what it has to do takes turns, and its core is not always as fast."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scale_clock import Clock, Happening

TURN = 0.005
"""Seconds after which threads of Python change places (`sys.getswitchinterval`)."""


@dataclass(frozen=True)
class Slowness:
    """How long the same work took at one moment after the other.

    Attributes:
        ratios: as shares of the mean.
        interval: seconds from one to the next.
        spread: seconds by which processes may be apart in what they meet.
    """

    ratios: Sequence[float]
    interval: float
    spread: float = 0.0

    def at(self, moment: float) -> float:
        """The ratio at a moment, over and over again."""
        return self.ratios[int(moment / self.interval) % len(self.ratios)]


EVER_THE_SAME = Slowness((1.0,), 1.0)


class Process:
    """A front or a worker.

    Args:
        clock: of the simulation.
        slowness: of its core.
        begins_at: the moment in `slowness` at which the simulation begins.
    """

    def __init__(self, clock: Clock, slowness: Slowness, begins_at: float) -> None:
        self._clock = clock
        self._slowness = slowness
        self._begins_at = begins_at
        self._tasks: deque[tuple[float, Happening]] = deque()
        self._is_at_work = False
        self._n_lives = 0

    def compute(self, seconds: float, done: Happening) -> None:
        """Computes, so long on a mean core, whatever else it has to do; nothing is done if it dies before."""
        life = self._n_lives

        def ended() -> None:
            if self._n_lives == life:
                done()

        self._clock.compute(seconds * self._slowness.at(self._begins_at + self._clock.now), ended)

    def take_turns(self, seconds: float, done: Happening) -> None:
        """Computes, in turns with what else it has to do."""
        self._tasks.append((seconds, done))
        if not self._is_at_work:
            self._next_turn()

    def die(self) -> None:
        """Nothing that was begun is ever done."""
        self._tasks.clear()
        self._is_at_work = False
        self._n_lives += 1

    def _next_turn(self) -> None:
        self._is_at_work = bool(self._tasks)
        if not self._tasks:
            return
        seconds, done = self._tasks.popleft()

        def ended() -> None:
            if seconds > TURN:
                self._tasks.append((seconds - TURN, done))
            else:
                done()
            self._next_turn()

        self.compute(min(seconds, TURN), ended)
