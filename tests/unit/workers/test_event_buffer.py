from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tdb_server.workers.event_buffer import EventBuffer


async def test_events_keep_their_order_in_memory_and_on_disk():
    buffer: EventBuffer[int] = EventBuffer(max_bytes=100)
    taken = []
    for round_index in range(3):
        for i in range(10):
            buffer.put(10 * round_index + i, n_bytes=30)
        taken += [await buffer.get() for _ in range(7)]
    taken += [await buffer.get() for _ in range(9)]
    assert taken == list(range(30))


async def test_memory_is_bounded():
    buffer: EventBuffer[np.ndarray] = EventBuffer(max_bytes=1000)
    for i in range(50):
        buffer.put(np.full(100, i), n_bytes=800)
    assert buffer.bytes_in_memory <= 1000
    for i in range(50):
        assert (await buffer.get())[0] == i


async def test_one_event_may_be_larger_than_the_bound():
    buffer: EventBuffer[str] = EventBuffer(max_bytes=10)
    buffer.put("large", n_bytes=1000)
    assert await buffer.get() == "large"


async def test_a_failure_comes_after_what_was_there_before():
    buffer: EventBuffer[str] = EventBuffer(max_bytes=10)
    buffer.put("one", n_bytes=10)
    buffer.put("two", n_bytes=10)
    buffer.fail(ValueError("end"))
    assert [await buffer.get(), await buffer.get()] == ["one", "two"]
    for _ in range(2):
        with pytest.raises(ValueError, match="end"):
            await buffer.get()


async def test_a_waiting_reader_is_woken():
    buffer: EventBuffer[str] = EventBuffer(max_bytes=10)
    waiting = asyncio.ensure_future(buffer.get())
    await asyncio.sleep(0)
    buffer.put("now", n_bytes=1)
    assert await waiting == "now"


async def test_a_cleared_buffer_is_empty_and_can_be_used_again():
    buffer: EventBuffer[str] = EventBuffer(max_bytes=5)
    for _ in range(3):
        buffer.put("old", n_bytes=5)
    buffer.clear()
    buffer.put("new", n_bytes=5)
    assert await buffer.get() == "new"
