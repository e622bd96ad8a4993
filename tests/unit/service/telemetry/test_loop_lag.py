"""Looking at the event loop goes on, whatever becomes of what is seen."""

from __future__ import annotations

import asyncio
import time

from tdb_server.service.telemetry import loop_lag
from tdb_server.service.telemetry.loop_lag import watch_loop


async def test_a_pause_is_seen_also_after_a_fault(monkeypatch):
    monkeypatch.setattr(loop_lag, "INTERVAL_SECONDS", 0.001)
    seen: list[float] = []

    def record(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 1:
            raise ValueError("whatever")

    watching = asyncio.ensure_future(watch_loop(record))
    async with asyncio.timeout(30):
        while len(seen) < 2:  # noqa: ASYNC110 - the watcher tells nobody else
            await asyncio.sleep(0.001)
        n_before = len(seen)
        time.sleep(0.05)  # noqa: ASYNC251 - that is what is looked for
        while len(seen) == n_before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    watching.cancel()
    assert max(seen[n_before:]) > 0.04
