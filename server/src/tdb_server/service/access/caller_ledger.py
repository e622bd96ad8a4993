"""Keeps callers within their own limits: calls at the same time, and calls within a minute."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tdb_server.domain.caller import Caller
from tdb_server.errors import OverLimit

MINUTE = 60.0
RETRY_SECONDS = 1.0


class CallerLedger:
    """Counts the calls of each caller that has limits. Lives on the event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._n_open: Counter[str] = Counter()
        self._begun: dict[str, deque[float]] = {}

    @contextmanager
    def one_call(self, caller: Caller) -> Iterator[None]:
        """Around one call.

        Raises:
            OverLimit: the caller is at a limit; what is refused does not count.
        """
        allowed = caller.limits.max_concurrent_calls
        if allowed is not None and self._n_open[caller.name] >= allowed:
            fault = f"{caller.name} may have {allowed} calls open at the same time, and has"
            raise OverLimit(fault, "TOO_MANY_CONCURRENT_CALLS", RETRY_SECONDS)
        self._take_turn(caller)
        self._n_open[caller.name] += 1
        try:
            yield
        finally:
            self._n_open[caller.name] -= 1
            if not self._n_open[caller.name]:
                del self._n_open[caller.name]

    def _take_turn(self, caller: Caller) -> None:
        """Notes a call; the times of the calls of the last minute are kept, as many as are allowed."""
        allowed = caller.limits.calls_per_minute
        if allowed is None:
            self._begun.pop(caller.name, None)
            return
        begun = self._begun.setdefault(caller.name, deque())
        now = self._clock()
        while begun and begun[0] <= now - MINUTE:
            begun.popleft()
        if len(begun) >= allowed:
            # The call that must fall out of the minute, which is not the oldest when the limit was lowered.
            seconds = begun[len(begun) - allowed] + MINUTE - now
            fault = f"{caller.name} may make {allowed} calls a minute, and has"
            raise OverLimit(fault, "TOO_MANY_CALLS_PER_MINUTE", seconds)
        begun.append(now)
