"""Threads for what would hold up the event loop, such as reading a long request. Callers take turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tdb_server.domain.budget import Budget

Outcome = TypeVar("Outcome")
N_THREADS = 2


class FairThreads:
    """A few threads. A caller waits for no more than one piece of work of each other caller.

    Args:
        budget: of memory, which work takes its bytes from until it is done.
        n_threads: pieces of work at the same time.
    """

    def __init__(self, budget: Budget, n_threads: int = N_THREADS) -> None:
        self._budget = budget
        self._executor = ThreadPoolExecutor(n_threads, "requests")
        self._n_free = n_threads
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, caller: str, n_bytes: int, work: Callable[[], Outcome]) -> Outcome:
        """Does a piece of work in a thread. One that has begun is done to its end, whoever waits for it.

        Args:
            caller: whose turn it takes.
            n_bytes: of memory that it takes.
            work: what to do; its error is raised here.

        Raises:
            OverLimit: there is no memory for it.
        """
        self._budget.take(caller, n_bytes)
        try:
            await self._turn(caller)
        except BaseException:
            self._budget.give_back(caller, n_bytes)
            raise
        working = asyncio.get_running_loop().run_in_executor(self._executor, work)

        def end(_: asyncio.Future[Outcome]) -> None:
            try:
                self._budget.give_back(caller, n_bytes)
            finally:
                self._next_turn()  # whatever happens: a turn that is lost is a thread that is

        working.add_done_callback(end)
        try:
            return await asyncio.shield(working)
        finally:
            del working  # else an error would keep itself, and what the work has read, until a collection

    def stop(self) -> None:
        """Takes no more work."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, caller: str) -> None:
        if self._n_free:
            self._n_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next_turn()  # it came in the same moment
            raise

    def _next_turn(self) -> None:
        while self._waiting:
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns
            if not turn.done():  # else whoever waited has gone
                turn.set_result(None)
                return
        self._n_free += 1
