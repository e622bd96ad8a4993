"""Connections that speak no protocol, stop in the middle, or just stay open: nobody else notices."""

from __future__ import annotations

import contextlib
import random
import socket

import httpx

from tests.chaos.requests import debug_request
from tests.chaos.vitals import vitals, wait_until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
N_IDLE = 100


def test_bytes_that_are_no_protocol(watched, extent):
    chance = random.Random(0)
    n_files = vitals(watched.process.pid).n_open_files
    for _ in range(extent.n_hostile_calls // 10):
        start = chance.choice(
            (b"", PREFACE, PREFACE + SETTINGS, b"POST /batched_tdb HTTP/1.1\r\n", b"\x16\x03\x01")
        )
        with _connected(chance.choice((watched.port, watched.http_port))) as connection:
            connection.sendall(start + chance.randbytes(chance.choice((0, 1, 9, 200, 5_000))))
            if chance.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    _assert_all_is_well(watched)
    wait_until(lambda: vitals(watched.process.pid).n_open_files <= n_files + 4, 30)


def test_connections_that_say_nothing(watched):
    with contextlib.ExitStack() as idle:
        for number in range(N_IDLE):
            port = (watched.port, watched.http_port)[number % 2]
            idle.enter_context(_connected(port)).sendall(PREFACE[: number % 20])
        _assert_all_is_well(watched)
    _assert_all_is_well(watched)


@contextlib.contextmanager
def _connected(port):
    """A bare connection. The server may hang up on it at any moment, and may say nothing for long."""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port), timeout=0.2) as connection,
    ):
        yield connection


def _assert_all_is_well(server) -> None:
    assert server.debugger.Debug(debug_request(), timeout=30).sub_responses
    assert httpx.get(f"http://127.0.0.1:{server.http_port}/", timeout=30).status_code == 200
