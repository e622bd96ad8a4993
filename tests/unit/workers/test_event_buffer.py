from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tdb_server.domain.budget import Budget
from tdb_server.errors import OverLimit
from tdb_server.workers.event_buffer import EventBuffer

from tests.unit.workers.conftest import make_buffer


async def test_events_keep_their_order_in_memory_and_on_disk():
    buffer: EventBuffer[int] = make_buffer(100)
    taken = []
    for round_index in range(3):
        for i in range(10):
            buffer.put(10 * round_index + i, n_bytes=30)
        taken += [await buffer.get() for _ in range(7)]
    taken += [await buffer.get() for _ in range(9)]
    assert taken == list(range(30))


async def test_memory_is_bounded():
    memory, _, buffer = buffer_of(memory=10**6, disk=10**6)
    for i in range(50):
        buffer.put(np.full(100, i), n_bytes=800)
    assert memory.n_bytes <= 1000
    for i in range(50):
        assert (await buffer.get())[0] == i


async def test_one_event_may_be_larger_than_the_bound():
    buffer: EventBuffer[str] = make_buffer(10)
    buffer.put("large", n_bytes=1000)
    assert await buffer.get() == "large"


async def test_a_failure_comes_after_what_was_there_before():
    buffer: EventBuffer[str] = make_buffer(10)
    buffer.put("one", n_bytes=10)
    buffer.put("two", n_bytes=10)
    buffer.fail(ValueError("end"))
    assert [await buffer.get(), await buffer.get()] == ["one", "two"]
    for _ in range(2):
        with pytest.raises(ValueError, match="end"):
            await buffer.get()


async def test_a_waiting_reader_is_woken():
    buffer: EventBuffer[str] = make_buffer(10)
    waiting = asyncio.ensure_future(buffer.get())
    await asyncio.sleep(0)
    buffer.put("now", n_bytes=1)
    assert await waiting == "now"


async def test_a_cleared_buffer_is_empty_and_can_be_used_again():
    buffer: EventBuffer[str] = make_buffer(5)
    for _ in range(3):
        buffer.put("old", n_bytes=5)
    buffer.clear()
    buffer.put("new", n_bytes=5)
    assert await buffer.get() == "new"


def buffer_of(memory: int, disk: int, reserved: int = 0) -> tuple[Budget, Budget, EventBuffer[Any]]:
    budgets = Budget(memory, "memory", "BUFFERS_FULL"), Budget(disk, "disk", "NO_ROOM_FOR_ANSWER")
    return (*budgets, EventBuffer(1000, *budgets, "caller", reserved))


async def test_what_the_server_has_no_memory_for_waits_on_disk():
    memory, disk, buffer = buffer_of(memory=100, disk=1000)
    for number in range(5):
        buffer.put(number, n_bytes=40)
    assert (memory.n_bytes, disk.n_bytes) == (40, 160)
    assert [await buffer.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert (memory.n_bytes, disk.n_bytes) == (0, 0)


async def test_what_there_is_no_disk_for_is_refused():
    memory, disk, buffer = buffer_of(memory=0, disk=100)
    buffer.put(1, n_bytes=50)
    with pytest.raises(OverLimit) as refused:
        buffer.put(2, n_bytes=1)
    assert refused.value.reason == "NO_ROOM_FOR_ANSWER"
    buffer.clear()
    assert (memory.n_bytes, disk.n_bytes) == (0, 0)


async def test_reserved_disk_is_the_calls_until_it_ends():
    _, disk, buffer = buffer_of(memory=0, disk=100, reserved=30)
    assert disk.n_bytes == 30
    buffer.put(1, n_bytes=20)
    assert disk.n_bytes == 30
    buffer.put(2, n_bytes=20)
    assert disk.n_bytes == 40
    assert [await buffer.get(), await buffer.get()] == [1, 2]
    assert disk.n_bytes == 30
    buffer.close()
    assert disk.n_bytes == 0
