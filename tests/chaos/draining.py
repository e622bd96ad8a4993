"""A server that was told to stop and cannot yet: somebody has not read an answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.running_server import RunningServer

READ_SECONDS = 120.0


@contextmanager
def draining(server: RunningServer) -> Iterator[None]:
    """Inside, the server refuses new calls, and does so however fast it is.

    What holds it up is an answer of ten megabytes, more than a connection takes in that nobody reads from.
    When the block is left it is read, and must be whole. The server's grace must be longer than the block.
    """
    health = health_pb2_grpc.HealthStub(server.channel).Watch(
        health_pb2.HealthCheckRequest(), timeout=READ_SECONDS
    )
    assert next(health).status == health_pb2.HealthCheckResponse.SERVING
    request = debug_request(LONG_PROMPT, n_sub_requests=2, k=1000)
    unread = server.debugger.StreamDebug(request, timeout=READ_SECONDS)
    assert next(unread).HasField("started")
    server.process.send_signal(signal.SIGTERM)
    assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
    yield
    *_, last = unread
    assert last.HasField("finished")
