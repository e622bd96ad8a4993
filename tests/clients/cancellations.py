"""How many calls the server itself counts as cancelled."""

from __future__ import annotations

import time

from tests.chaos.metrics_page import reading
from tests.running_server import RunningServer

SECONDS = 10.0


def cancelled_calls(server: RunningServer) -> float:
    return reading(server, "grpc_server_call_duration_seconds_count", grpc_status="CANCELLED")


def has_one_more(server: RunningServer, before: float) -> bool:
    """Whether the server counts another cancelled call, at once or within seconds."""
    deadline = time.monotonic() + SECONDS
    while cancelled_calls(server) <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
