"""What anybody may ask for without a token, at the size and pace of somebody who means no good."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.chaos.metrics_page import metrics_url
from tests.chaos.refused import refused
from tests.chaos.requests import debug_request
from tests.chaos.vitals import peak_bytes, vitals

LARGE_NAME = "x" * 12 * 2**20
N_AT_ONCE = 16
SECONDS = 60.0
MAX_BYTES = 512 * 2**20
MAX_KEPT_BYTES = 64 * 2**20


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_of_a_service_with_a_name_of_megabytes(watched, method):
    before = vitals(watched.process.pid).anonymous_bytes
    ask = getattr(health_pb2_grpc.HealthStub(watched.channel), method)
    request = health_pb2.HealthCheckRequest(service=LARGE_NAME)

    def status(_: int) -> str:
        call = ask if method == "Check" else lambda *told, **terms: list(ask(*told, **terms))
        with pytest.raises(grpc.RpcError) as failed:
            call(request, timeout=SECONDS, compression=grpc.Compression.Gzip)
        return refused(failed.value).reason

    with ThreadPoolExecutor(4) as callers:
        assert set(callers.map(status, range(8))) == {"REQUEST_TOO_LARGE"}
    assert peak_bytes(watched.process.pid) < MAX_BYTES
    assert vitals(watched.process.pid).anonymous_bytes < before + MAX_KEPT_BYTES
    assert health_pb2_grpc.HealthStub(watched.channel).Check(health_pb2.HealthCheckRequest()).status == 1


def test_reflection(watched):
    """Large questions are refused, and many small ones hold nobody up."""
    stub = reflection_pb2_grpc.ServerReflectionStub(watched.channel)

    def questions(symbol: str, number: int) -> Iterator[reflection_pb2.ServerReflectionRequest]:
        for _ in range(number):
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)

    with pytest.raises(grpc.RpcError) as failed:
        list(stub.ServerReflectionInfo(questions(LARGE_NAME, 2), timeout=SECONDS))
    assert refused(failed.value).reason == "REQUEST_TOO_LARGE"
    service = "transformer_debugger.v1.TransformerDebuggerService"
    answers = list(stub.ServerReflectionInfo(questions(service, 500), timeout=SECONDS))
    assert len(answers) == 500
    assert all(one.HasField("file_descriptor_response") for one in answers)


@pytest.mark.parametrize("page", ["metrics", "openapi"])
def test_pages_that_many_ask_for_at_once(watched, page):
    url = metrics_url(watched)
    if page == "openapi":
        url = f"http://127.0.0.1:{watched.http_port}/openapi.json"
    with ThreadPoolExecutor(N_AT_ONCE) as readers:
        answers = readers.map(lambda _: httpx.get(url, timeout=SECONDS), range(4 * N_AT_ONCE))
        assert watched.debugger.Debug(debug_request(), timeout=SECONDS).sub_responses
        assert {one.status_code for one in answers} == {200}
