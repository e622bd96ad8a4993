"""Calls that are being answered: counted, so that a server can stop without cutting any off."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator

from tdb_server.errors import Unavailable

SILENCE_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 3.0
"""How long nobody must have called, and how long that is waited for."""
LONGEST_HOLD_SECONDS = 1.0
"""How long one call is held."""


class OpenCalls:
    """Calls that are being answered, and whether more are welcome."""

    def __init__(self) -> None:
        self._n_open = 0
        self._is_draining = False
        self._active_at = -math.inf
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Around the answering of one call.

        Raises:
            Unavailable: the server is stopping.
        """
        self._active_at = time.monotonic()
        if self._is_draining:
            raise Unavailable("the server is shutting down", "SHUTTING_DOWN", retry_after_seconds=1.0)
        self._n_open += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self._n_open -= 1
            self._active_at = time.monotonic()
            if not self._n_open:
                self._none_open.set()

    async def drain(self, grace_seconds: float) -> None:
        """Refuses new calls from now on, and waits until the open ones are done, at most this long."""
        self._is_draining = True
        self._active_at = time.monotonic()  # whoever watches health has to hear of it first
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), grace_seconds)

    async def until_silence(self) -> None:
        """Waits for a moment in which nobody calls, until callers have noticed that they should not.

        A call that comes while gRPC's server ends is CANCELLED, which callers do not repeat. So those that
        come now are held until `let_go`: a caller that waits for an answer does not call again meanwhile.
        """
        self._goes_on.clear()
        latest = time.monotonic() + LONGEST_WAIT_SECONDS
        while (seconds := min(latest, self._active_at + SILENCE_SECONDS) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(seconds)  # what is awaited is that nothing happens

    async def until_let_go(self) -> None:
        """Waits, before a call, for as long as calls are held."""
        if not self._goes_on.is_set():
            self._active_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._goes_on.wait(), LONGEST_HOLD_SECONDS)

    def let_go(self) -> None:
        """Ends the holding of calls, which are refused then."""
        self._goes_on.set()
