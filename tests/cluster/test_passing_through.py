"""What a balancer must not swallow: deadlines, cancellations, pieces of streams, error details, drain."""

from __future__ import annotations

import signal
import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from tdb_client.connection import Connection
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import wait_until
from tests.cluster.fronts import SERVICE
from tests.cluster.ways import WAYS, Cluster, Way
from tests.integration.http2_call import call

BALANCERS = [way for way in WAYS if way != "round_robin"]
LOG_SECONDS = 15.0


@pytest.mark.parametrize("balancer", BALANCERS)
def test_the_front_itself_keeps_the_callers_deadline(cluster: Cluster, balancer: str) -> None:
    """The client here sends the deadline and does not look at it, so only the front can end the call."""
    way = cluster.ways[balancer]
    port = int(way.target.rpartition(":")[2])
    before = _n_lines(cluster, "status=DEADLINE_EXCEEDED")
    answer = call(port, f"{SERVICE}/Debug", heavy_request(), headers={"grpc-timeout": "300m"})
    assert (answer.headers | answer.trailers)["grpc-status"] == b"4"
    wait_until(lambda: _n_lines(cluster, "status=DEADLINE_EXCEEDED") == before + 1, LOG_SECONDS)


def test_a_deadline_ends_the_call_for_the_caller_too(way: Way) -> None:
    with Connection(way.target).open() as channel, pytest.raises(grpc.RpcError) as raised:
        TransformerDebuggerServiceStub(channel).Debug(heavy_request(), timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancelling_reaches_the_front(cluster: Cluster, way: Way) -> None:
    before = _n_lines(cluster, "status=CANCELLED")
    with Connection(way.target).open() as channel:
        stream = TransformerDebuggerServiceStub(channel).StreamDebug(heavy_request(), timeout=60)
        assert next(stream).HasField("started")
        stream.cancel()
        wait_until(lambda: _n_lines(cluster, "status=CANCELLED") == before + 1, LOG_SECONDS)


def test_a_stream_comes_piece_by_piece(way: Way) -> None:
    long_answer = debug_request(LONG_PROMPT, n_sub_requests=4, k=300)
    with Connection(way.target).open() as channel:
        begun_at = time.monotonic()
        arrivals = [
            time.monotonic() - begun_at
            for _ in TransformerDebuggerServiceStub(channel).StreamDebug(long_answer, timeout=60)
        ]
    print(f"\n{way.name}: first message after {arrivals[0]:.2f} s, the last after {arrivals[-1]:.2f} s")
    assert len(arrivals) > 10
    assert arrivals[0] < 0.5 * arrivals[-1]


def test_error_details_arrive(way: Way) -> None:
    with Connection(way.target).open() as channel, pytest.raises(grpc.RpcError) as raised:
        TransformerDebuggerServiceStub(channel).Debug(debug_request(""), timeout=60)
    details = {detail.TypeName(): detail for detail in rpc_status.from_call(raised.value).details}
    violation = error_details_pb2.BadRequest()
    assert details["google.rpc.BadRequest"].Unpack(violation)
    assert violation.field_violations[0].field == "sub_requests[0].prompt"
    assert "google.rpc.ErrorInfo" in details


def test_health_is_answered(way: Way) -> None:
    with Connection(way.target).open() as channel:
        found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


def test_a_front_that_stops_finishes_its_streams_and_gets_no_more(cluster: Cluster, way: Way) -> None:
    first, second = cluster.fronts
    with Connection(way.target).open() as channel:
        stub = TransformerDebuggerServiceStub(channel)
        streams = [stub.StreamDebug(debug_request(LONG_PROMPT, k=300), timeout=90) for _ in range(4)]
        for stream in streams:
            assert next(stream).HasField("started")
        readers = [threading.Thread(target=list, args=(stream,)) for stream in streams]
        assert min(front.n_calls("StreamDebug") for front in cluster.fronts) > 0
        way.before_stop(first)
        first.server.process.send_signal(signal.SIGTERM)
        for reader in readers:
            reader.start()
        before = second.n_calls("Debug")
        for _ in range(10):
            stub.Debug(debug_request(), timeout=60)
        assert second.n_calls("Debug") == before + 10
        for reader in readers:
            reader.join()
        assert {stream.code() for stream in streams} == {grpc.StatusCode.OK}
    first.server.channel.close()
    assert first.server.process.wait(timeout=60) == 0
    first.start()
    way.after_start()
    wait_until(lambda: cluster.envoy.n_healthy() == 2, 30)


def _n_lines(cluster: Cluster, *words: str) -> int:
    """Calls of the debugger service that ended so, in the logs of both fronts."""
    return sum(len(front.log_lines(f"method={SERVICE}", *words)) for front in cluster.fronts)
