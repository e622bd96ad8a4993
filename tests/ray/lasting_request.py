"""A request that a replica computes for long enough to do something to it meanwhile."""

from __future__ import annotations

from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import cpu_seconds
from tests.running_server import RunningServer

LONG_SECONDS = 2.0


def lasting_request(server: RunningServer, replica: int) -> tuple[DebugRequest, float]:
    """A request that takes this machine some seconds, and how many of a processor's."""
    n_sub_requests = 4
    while True:
        request = debug_request(LONG_PROMPT, n_sub_requests=n_sub_requests, k=1000)
        before = cpu_seconds(replica)
        list(server.debugger.StreamDebug(request))
        if (seconds := cpu_seconds(replica) - before) > LONG_SECONDS:
            return request, seconds
        n_sub_requests *= 2
