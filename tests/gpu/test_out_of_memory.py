"""A server with a small share of a GPU: a crowd is served in parts, and what never fits is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import debug_request
from tests.chaos.wire_answers import Answer, answer_of_response, difference
from tests.gpu.memory import fraction_of_gpu
from tests.gpu.wide_model import CAP_BYTES, N_TOKENS, write_wide_model
from tests.running_server import RunningServer, StartServer

LONG_PROMPT = " the" * N_TOKENS
N_CALLERS, N_SUB_REQUESTS = 12, 16
LIMITS = ("--max-activation-bytes", "64GiB", "--max-response-bytes", "1GiB", "--max-batch-tokens", "100000")


@pytest.fixture
def short_of_memory(
    start_on_gpu: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunningServer:
    """A server whose worker may take `CAP_BYTES`, and that would accept calls that take more."""
    share = f"per_process_memory_fraction:{fraction_of_gpu(CAP_BYTES):.6f}"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", share)
    return start_on_gpu(*LIMITS, model=write_wide_model(tmp_path / "wide"))


def test_short_memory_is_survived(short_of_memory: RunningServer) -> None:
    server = short_of_memory
    (worker,) = server.worker_pids()
    short, long = debug_request(), debug_request(LONG_PROMPT)
    expected = [_nodes_of(server.debugger.Debug(one)) for one in (short, long)]

    with pytest.raises(grpc.RpcError) as caught:
        server.debugger.Debug(debug_request(LONG_PROMPT, n_sub_requests=N_SUB_REQUESTS))
    why = refused(caught.value)
    assert (why.code, why.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert why.retry_seconds is None, "alone it will never fit"
    assert difference(_nodes_of(server.debugger.Debug(short)), expected[0]) is None

    n_run = reading(server, "tdb_batch_calls_sum")
    with ThreadPoolExecutor(N_CALLERS) as callers:
        answers = list(callers.map(server.debugger.Debug, [long] * N_CALLERS))
    assert [difference(_nodes_of(one), expected[1]) for one in answers] == [None] * N_CALLERS
    assert reading(server, "tdb_batch_calls_sum") > n_run + N_CALLERS, "some must have been run again"
    assert server.worker_pids() == [worker]


def _nodes_of(response: DebugResponse) -> Answer:
    """What is comparable in reasonable time: all but the sums, of which a long prompt has millions."""
    for sub_response in response.sub_responses:
        for result in sub_response.results:
            for group in result.multiple_top_k.groups if result.HasField("multiple_top_k") else ():
                group.ClearField("sums")
    return answer_of_response(response)
