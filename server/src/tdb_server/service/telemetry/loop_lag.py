"""How late the event loop is: what holds it up holds up every call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)
INTERVAL_SECONDS = 0.05


async def watch_loop(record: Callable[[float], None]) -> None:
    """Sleeps, and records by how many seconds each waking was late, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_at = loop.time() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        lateness = max(0.0, loop.time() - due_at)
        try:
            record(lateness)
        except Exception:
            _log.exception("how late the event loop is cannot be noted")
