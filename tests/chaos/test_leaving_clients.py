"""Clients that leave while their answer is being written: that is no fault of the server's."""

from __future__ import annotations

import itertools

import grpc
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import wait_until

LARGE = debug_request(LONG_PROMPT, n_sub_requests=2, k=1000)
N_LEAVING = 32


def test_who_leaves_in_the_middle_of_an_answer_has_cancelled(start_watched):
    server = start_watched("--cache-bytes", "256MiB")
    n_messages = len(list(server.debugger.StreamDebug(LARGE)))  # all others find it in the cache
    for number in range(N_LEAVING):
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options)
        answer = TransformerDebuggerServiceStub(channel).StreamDebug(LARGE)
        for _ in itertools.islice(answer, 1 + number % min(n_messages, 8)):
            pass
        if number % 2:
            answer.cancel()
        channel.close()
    wait_until(lambda: _n_ended(server) == N_LEAVING + 1, 30)
    assert reading(server, "tdb_call_failures_total") == 0
    assert _n_ended(server, "CANCELLED") + _n_ended(server, "OK") == N_LEAVING + 1
    assert _n_ended(server, "CANCELLED") > N_LEAVING / 4, "else nobody left in time"
    assert "Traceback" not in server.log.read_text()


def _n_ended(server, status: str = "") -> float:
    labels = {"grpc_status": status} if status else {}
    method = "transformer_debugger.v1.TransformerDebuggerService/StreamDebug"
    return reading(server, "grpc_server_call_duration_seconds_count", grpc_method=method, **labels)
