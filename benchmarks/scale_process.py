"""A process of the simulation: what it has to do takes turns, and its core is not always as fast."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.scale_clock import Clock, Happening

TURN = 0.005
"""Seconds after which threads of Python change places (`sys.getswitchinterval`)."""

STAY = 1.0
"""Seconds for which a process is on one core, roughly: an operating system does not move what is warm."""


@dataclass(frozen=True)
class Slowness:
    """How long the same work took at one moment after the other.

    Attributes:
        ratios: as shares of the mean, of the cores in turn.
        interval: seconds from one to the next.
        n_cores: that took turns.
        spread: seconds by which processes may be apart in what they meet.
    """

    ratios: Sequence[float]
    interval: float
    n_cores: int = 1
    spread: float = 0.0

    def at(self, moment: float, core: int) -> float:
        """The ratio of a core at a moment, over and over again."""
        index = int(moment / self.interval)
        return self.ratios[(index - index % self.n_cores + core) % len(self.ratios)]


EVER_THE_SAME = Slowness((1.0,), 1.0)


class Process:
    """A front or a worker.

    Args:
        clock: of the simulation.
        slowness: of the cores, on one of which it is for about STAY.
        chance: which, and how long.
    """

    def __init__(self, clock: Clock, slowness: Slowness, chance: Random) -> None:
        self._clock = clock
        self._slowness = slowness
        self._chance = chance
        self._begins_at = chance.uniform(0, slowness.spread)
        self._core, self._stays_until = 0, 0.0
        self._tasks: deque[tuple[float, Happening]] = deque()
        self._is_at_work = False
        self._n_lives = 0

    def compute(self, seconds: float, done: Happening) -> None:
        """Computes, so long on a mean core, whatever else it has to do; nothing is done if it dies before."""
        life = self._n_lives

        def ended() -> None:
            if self._n_lives == life:
                done()

        now = self._clock.now
        if now >= self._stays_until:
            self._core = self._chance.randrange(self._slowness.n_cores)
            self._stays_until = now + self._chance.expovariate(1 / STAY)
        self._clock.compute(seconds * self._slowness.at(self._begins_at + now, self._core), ended)

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
