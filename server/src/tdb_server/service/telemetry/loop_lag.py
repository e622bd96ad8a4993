"""How late the event loop is: what holds it up holds up every call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL_SECONDS = 0.05


async def watch_loop(record: Callable[[float], None]) -> None:
    """Sleeps, and records by how many seconds each waking was late, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_at = loop.time() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        record(max(0.0, loop.time() - due_at))
