"""From the engine's thread to the event loop, a few pieces at a time.

Every hand-over makes the two threads wait for each other, and every step of a stream costs Ray a millisecond
or two. So after one step pieces gather for a moment before the next.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator

GATHER_SECONDS = 0.01


class Outbox:
    """Pieces on their way from one thread to one reader on the event loop that makes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pieces: deque[bytes] = deque()
        self._is_awaited = False
        self._has_some = asyncio.Event()
        self._has_ended = asyncio.Event()

    def put(self, piece: bytes) -> None:
        """Adds a piece; from any thread."""
        with self._lock:
            self._pieces.append(piece)
            must_wake, self._is_awaited = self._is_awaited, False
        if must_wake:
            self._loop.call_soon_threadsafe(self._has_some.set)

    def end(self) -> None:
        """Nothing more will come; from any thread."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._has_ended.set()
        self._has_some.set()

    async def batches(self) -> AsyncIterator[list[bytes]]:
        """Lists of pieces, none of them empty; the first at once, the last as soon as `end` is called."""
        while True:
            pieces = self._take()
            if pieces:
                yield pieces
                await self._pause()
            elif self._has_ended.is_set():
                return
            else:
                await self._has_some.wait()

    def _take(self) -> list[bytes]:
        with self._lock:
            pieces = list(self._pieces)
            self._pieces.clear()
            self._is_awaited = not pieces
            if not pieces and not self._has_ended.is_set():
                self._has_some.clear()
        return pieces

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                await self._has_ended.wait()
        except TimeoutError:
            pass
