"""Connections that are too many or too slow, by raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from tdb_server.security_settings import Security
from tdb_server.service.http.listener import HttpListener

SECURITY = Security(
    max_connections=4, max_connections_per_address=3, max_head_seconds=0.3, max_body_seconds=0.3
)
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
LARGE = 64 * 2**20
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers /large with much, /unread without reading, everything else with the body."""
    body = b""
    while scope["path"] not in ("/unread", "/large"):
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/large":
        for _ in range(LARGE // 2**20):
            await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def listener() -> AsyncIterator[HttpListener]:
    one = HttpListener(application, "127.0.0.1", 0, SECURITY)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
async def connect(listener: HttpListener) -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    writers: list[asyncio.StreamWriter] = []

    async def open_one() -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()


async def is_closed(reader: asyncio.StreamReader, seconds: float = 5.0) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(2**20):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-a: b", b"GET"])
async def test_a_head_that_does_not_end(connect: Any, sent: bytes) -> None:
    reader, writer = await connect()
    writer.write(sent)
    assert await is_closed(reader)


async def test_a_head_that_trickles(connect: Any) -> None:
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")

    async def trickle() -> None:
        while True:
            writer.write(b"X-a: b\r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.ensure_future(trickle())
    assert await is_closed(reader)
    trickling.cancel()


async def test_a_second_head_that_does_not_end(connect: Any) -> None:
    reader, writer = await connect()
    writer.write(HEAD + b"12345")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HT")
    assert await is_closed(reader)


async def test_a_body_that_is_not_wanted_and_does_not_end(connect: Any) -> None:
    reader, writer = await connect()
    writer.write(HEAD.replace(b"/ ", b"/unread ") + b"1")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert await is_closed(reader)


async def test_connections_are_kept_between_requests(connect: Any) -> None:
    reader, writer = await connect()
    for _ in range(2):
        writer.write(HEAD)
        await asyncio.sleep(0.1)
        writer.write(b"12345")
        assert (await reader.readuntil(b"12345\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert not await is_closed(reader, 2 * SECURITY.max_head_seconds)


async def test_an_answer_that_nobody_takes(connect: Any) -> None:
    reader, writer = await connect()
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(5 * SECURITY.max_body_seconds)
    n_bytes = 0
    with contextlib.suppress(ConnectionError):
        while chunk := await asyncio.wait_for(reader.read(2**20), 5):
            n_bytes += len(chunk)
    assert n_bytes < LARGE


async def test_an_answer_that_is_taken_slowly() -> None:
    """For longer than the limit, which is long enough for a busy machine to take some of it."""
    limit_seconds = 1.5
    one = HttpListener(application, "127.0.0.1", 0, replace(SECURITY, max_body_seconds=limit_seconds))
    await one.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    begun_at, n_bytes = time.monotonic(), 0
    while chunk := await asyncio.wait_for(reader.read(2**20), 5):
        n_bytes += len(chunk)
        if time.monotonic() < begun_at + 1.5 * limit_seconds:
            await asyncio.sleep(0.02)
    writer.close()
    await one.stop()
    assert n_bytes > LARGE


async def test_connections_of_an_address(connect: Any) -> None:
    connections = [await connect() for _ in range(SECURITY.max_connections_per_address)]
    reader, _ = await connect()
    assert await is_closed(reader, SECURITY.max_head_seconds / 2)
    connections[0][1].close()
    await asyncio.sleep(0.1)
    reader, writer = await connect()
    writer.write(HEAD + b"12345")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_connections_in_all() -> None:
    one = HttpListener(
        application, "127.0.0.1", 0, replace(SECURITY, max_connections=2, max_head_seconds=60.0)
    )
    await one.start()
    connections = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(3)]
    assert [await is_closed(reader, 0.5) for reader, _ in connections] == [False, False, True]
    for _, writer in connections:
        writer.close()
    await one.stop()


async def test_a_head_that_is_too_large(connect: Any) -> None:
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-a: " + b"b" * 20_000)
    assert (await reader.read(100)).startswith(b"HTTP/1.1 400")
    assert await is_closed(reader)


async def test_stopping_waits_for_no_half_request(connect: Any, listener: HttpListener) -> None:
    readers = []
    for sent in (b"", b"GET / HTTP/1.1\r\nHost", HEAD + b"1"):
        reader, writer = await connect()
        writer.write(sent)
        readers.append(reader)
    await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        await listener.stop()
    assert [await is_closed(reader) for reader in readers] == [True] * 3
