"""Several calls at the same time, so that no worker waits for the next one to come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tdb_client.model_info import Limits

Answer = TypeVar("Answer")
Job = TypeVar("Job")

N_IN_FLIGHT = 4
"""Calls of one request that are under way at the same time, at most."""


def allowed_in_flight(limits: Limits | None, most: int = N_IN_FLIGHT) -> int:
    """How many calls at the same time the server allows this caller, at most so many."""
    return min((limits.max_concurrent_calls if limits else 0) or most, most)  # older servers may not say


def in_flight(jobs: Sequence[Callable[[], Answer]], n_in_flight: int) -> list[Answer]:
    """Runs jobs in threads, so many at the same time, and returns what each gives, in order.

    What one of them raises is raised at once: the others end when their calls do, or the client is closed.
    """
    if len(jobs) == 1:
        return [jobs[0]()]
    pool = ThreadPoolExecutor(n_in_flight, "tdb-call")
    try:
        return [one.result() for one in [pool.submit(job) for job in jobs]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def each_in_flight(
    jobs: Iterable[Job], run: Callable[[Job], Awaitable[object]], n_in_flight: int
) -> None:
    """Runs every job, so many at the same time; jobs are taken when their turn has come.

    What one of them raises ends the others, and is raised when they have ended.
    """
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await run(job)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(n_in_flight):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
