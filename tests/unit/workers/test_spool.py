"""Events that wait on disk: in order, off the event loop, and never lost without a word."""

from __future__ import annotations

import asyncio
import errno
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from tdb_server.errors import Internal, OverLimit
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.spool import Closed, Spool

from tests.unit.workers.conftest import make_buffer


def n_open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_events_come_back_in_their_order_and_leave_nothing_open():
    n_files = n_open_files()
    spool: Spool[np.ndarray] = Spool()
    written = [spool.put(np.full(1000, number)) for number in range(20)]
    assert [(await spool.get())[0] for _ in range(10)] == list(range(10))
    written += [spool.put(np.full(1000, number)) for number in range(20, 30)]
    assert [(await spool.get())[0] for _ in range(20)] == list(range(10, 30))
    await asyncio.gather(*written)
    assert len(spool) == 0
    assert n_open_files() <= n_files


async def test_the_event_loop_touches_no_file(monkeypatch):
    threads = set()

    def noting(*arguments, open_file=tempfile.TemporaryFile):
        threads.add(threading.current_thread())
        return open_file(*arguments)

    monkeypatch.setattr(tempfile, "TemporaryFile", noting)
    spool: Spool[int] = Spool()
    spool.put(1)
    assert await spool.get() == 1
    assert threads
    assert threading.current_thread() not in threads


async def test_a_spool_that_is_closed_keeps_nothing(monkeypatch):
    goes_on = threading.Event()

    def waiting(*arguments, open_file=tempfile.TemporaryFile):
        goes_on.wait(30)
        return open_file(*arguments)

    monkeypatch.setattr(tempfile, "TemporaryFile", waiting)
    n_files = n_open_files()
    spool: Spool[int] = Spool()
    written = [spool.put(number) for number in range(3)]
    spool.close()
    goes_on.set()
    assert all(
        isinstance(one, asyncio.CancelledError)
        for one in await asyncio.gather(*written, return_exceptions=True)
    )
    with pytest.raises(Closed):
        await spool.get()
    assert n_open_files() <= n_files


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OverLimit),
        (OSError(errno.EMFILE, "Too many open files"), OverLimit),
        (OSError(errno.ENOENT, "No such file or directory"), Internal),
        (OSError(errno.EROFS, "Read-only file system"), Internal),
        (ValueError("whatever"), Internal),
    ],
)
async def test_an_event_that_cannot_be_kept_breaks_the_answer_off(monkeypatch, error, kind):
    def failing(*_):
        raise error

    monkeypatch.setattr(tempfile, "TemporaryFile", failing)
    buffer: EventBuffer[int] = make_buffer(1)
    buffer.put(0, n_bytes=1)
    stored = [buffer.put(number, n_bytes=1) for number in range(1, 4)]
    outcomes = await asyncio.gather(*stored, return_exceptions=True)
    assert [type(one) for one in outcomes] == [kind, Closed, Closed]
    for one in outcomes:
        buffer.break_off(one)
    for _ in range(2):
        with pytest.raises(kind):
            await buffer.get()


async def test_what_was_read_from_disk_is_dropped_with_all_else_that_is_cleared(monkeypatch):
    """Else a call that runs again would have the first result of its first run twice."""
    buffer: EventBuffer[str] = make_buffer(1)
    buffer.put("in memory", n_bytes=1)
    buffer.put("on disk", n_bytes=1)
    assert await buffer.get() == "in memory"
    reading = asyncio.ensure_future(buffer.get())
    await asyncio.sleep(0)
    buffer.clear()
    buffer.put("again", n_bytes=1)
    assert await reading == "again"
