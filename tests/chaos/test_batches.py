"""Calls of different callers share a batch when workers are busy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.metrics_page import reading
from tests.chaos.requests import debug_request
from tests.chaos.wire_answers import answer_of_response, difference
from tests.running_server import RunningServer

N_CALLERS = 8
CALLS_EACH = 4


def test_callers_share_batches_and_get_their_own_answers(watched):
    requests = [debug_request(ablated_neurons=(number,)) for number in range(N_CALLERS)]
    alone = [answer_of_response(watched.debugger.Debug(one)) for one in requests]
    before = _counts(watched)
    with ThreadPoolExecutor(N_CALLERS) as callers:
        answers = list(callers.map(lambda request: _keep_asking(watched.port, request), requests))
    n_calls, n_batches = np.subtract(_counts(watched), before)
    print(f"\n{n_calls:.0f} calls in {n_batches:.0f} batches")
    assert n_calls == N_CALLERS * CALLS_EACH
    assert n_calls / n_batches > 1.5
    for own, expected in zip(answers, alone, strict=True):
        assert [difference(one, expected) for one in own] == [None] * CALLS_EACH


def test_batches_can_be_switched_off(watched_alone):
    before = _counts(watched_alone)
    with ThreadPoolExecutor(N_CALLERS) as callers:
        list(callers.map(lambda _: _keep_asking(watched_alone.port, debug_request()), range(N_CALLERS)))
    n_calls, n_batches = np.subtract(_counts(watched_alone), before)
    assert n_calls == n_batches == N_CALLERS * CALLS_EACH


def _keep_asking(port: int, request):
    """One caller, with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        stub = TransformerDebuggerServiceStub(channel)
        return [answer_of_response(stub.Debug(request)) for _ in range(CALLS_EACH)]


def _counts(server: RunningServer) -> tuple[float, float]:
    return reading(server, "tdb_batch_calls_sum"), reading(server, "tdb_batch_calls_count")
