"""What a balancer reads in the trailers of every answer."""

from __future__ import annotations

import base64
from typing import Any

from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from transformer_debugger.v1.load_report_pb2 import LoadReport

from tests.integration.http2_call import Http2Answer, call

SERVICE = "transformer_debugger.v1.TransformerDebuggerService"
KEY = "endpoint-load-metrics-bin"


def decoded(header: bytes) -> bytes:
    return base64.b64decode(header + b"=" * (-len(header) % 4))


def report(answer: Http2Answer) -> LoadReport:
    return LoadReport.FromString(decoded((answer.headers | answer.trailers)[KEY]))


def test_every_answer_says_how_loaded_the_server_is(start_server: Any, debug_request: Any) -> None:
    server = start_server("--load-reports", "--cache-bytes", "0")
    for _ in range(4):
        server.debugger.Debug(debug_request())
    answer = call(server.port, f"{SERVICE}/Debug", debug_request())
    assert answer.trailers["grpc-status"] == b"0"
    unary = report(answer)
    assert 0 < unary.application_utilization <= 1
    assert 0 < unary.rps_fractional <= 0.5  # five calls at most, spread over ten seconds
    named = dict(unary.named_metrics)
    assert named.keys() == {"queue_length", "utilization_for_weight"}
    assert named["queue_length"] == 0.0
    # Envoy's weight: 10,000 times what the server can do, one call after the other.
    assert 10_000 / 60 < unary.rps_fractional / named["utilization_for_weight"] < 10_000 * 1000

    streamed = call(server.port, f"{SERVICE}/StreamDebug", debug_request())
    assert streamed.trailers["grpc-status"] == b"0"
    assert 0 < report(streamed).application_utilization <= 1

    healthy = call(server.port, "grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest())
    assert healthy.trailers["grpc-status"] == b"0"
    assert KEY not in healthy.headers | healthy.trailers


def test_refusals_say_so_beside_their_details(start_server: Any, debug_request: Any) -> None:
    server = start_server("--load-reports")
    for _ in range(50):  # a call is counted when it has ended, which may be after the next one is answered
        refused = call(server.port, f"{SERVICE}/Debug", debug_request(prompt=""))
        if report(refused).eps > 0:
            break
    assert report(refused).eps > 0
    both = refused.headers | refused.trailers
    assert both["grpc-status"] == b"3"
    status = status_pb2.Status.FromString(decoded(both["grpc-status-details-bin"]))
    assert any(detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) for detail in status.details)


def test_nothing_is_said_unasked(server: Any, debug_request: Any) -> None:
    answer = call(server.port, f"{SERVICE}/Debug", debug_request())
    assert answer.trailers["grpc-status"] == b"0"
    assert KEY not in answer.headers | answer.trailers
