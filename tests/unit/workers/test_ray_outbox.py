from __future__ import annotations

import asyncio
import threading
import time

from tdb_server.workers.ray_outbox import GATHER_SECONDS, Outbox


async def collected(outbox: Outbox) -> list[list[bytes]]:
    async with asyncio.timeout(10):
        return [pieces async for pieces in outbox.batches()]


async def test_everything_arrives_in_order():
    outbox = Outbox()
    pieces = [str(number).encode() for number in range(5000)]

    def write() -> None:
        for number, piece in enumerate(pieces):
            outbox.put(piece)
            if number % 500 == 0:
                time.sleep(2 * GATHER_SECONDS)
        outbox.end()

    writer = threading.Thread(target=write)
    writer.start()
    batches = await collected(outbox)
    writer.join()
    assert [piece for batch in batches for piece in batch] == pieces
    assert all(batches)
    assert len(batches) < len(pieces) / 10, "what is ready together travels together"


async def test_the_first_piece_does_not_wait_for_others():
    outbox = Outbox()
    outbox.put(b"first")
    batches = outbox.batches()
    assert await anext(batches) == [b"first"]
    outbox.put(b"second")
    outbox.put(b"third")
    assert await anext(batches) == [b"second", b"third"]
    outbox.end()
    assert await anext(batches, None) is None


async def test_an_end_without_pieces():
    outbox = Outbox()
    threading.Timer(0.05, outbox.end).start()
    assert await collected(outbox) == []
