"""The server seen from outside: metrics, traces and the log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from tests.chaos.vitals import wait_until
from tests.running_server import RunningServer, start, stop

SERVICE = "transformer_debugger.v1.TransformerDebuggerService"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the secret plan"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with metrics and a log for programs."""
    flags = ("--metrics-port", "0", "--http-port", "0", "--log-format", "json", "--log-level", "debug")
    server = start(tmp_path_factory.mktemp("measured"), *flags)
    yield server
    stop(server)


class Page:
    """The metrics at one moment, by name and labels."""

    def __init__(self, server: RunningServer) -> None:
        port = json.loads(server.ready_file.read_text())["metrics_port"]
        self.text = httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over all series that have these labels; NaN when there is none."""
        found = [
            float(value)
            for said, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self.text, re.MULTILINE)
            if all(f'{key}="{value}"' in said for key, value in labels.items())
        ]
        return sum(found) if found else float("nan")


def test_grpcs_standard_metrics(measured, debug_request):
    before = Page(measured)
    request = debug_request(prompt="the cat sat", k=2)
    answer = measured.debugger.Debug(request)
    with pytest.raises(grpc.RpcError):
        measured.debugger.Debug(DebugRequest())
    with pytest.raises(grpc.RpcError):
        measured.channel.unary_unary("/no.Such/Method")(b"")
    page = Page(measured)
    method = f"{SERVICE}/Debug"
    assert page("grpc_server_call_started_total", grpc_method=method) == 2
    assert page("grpc_server_call_started_total", grpc_method="other") == 1
    assert "no.Such" not in page.text
    for status in ("OK", "INVALID_ARGUMENT"):
        count = page("grpc_server_call_duration_seconds_count", grpc_method=method, grpc_status=status)
        assert count == 1
    assert page("grpc_server_call_duration_seconds_bucket", grpc_method=method, le="100") == 2
    sizes = "grpc_server_call_{}_total_compressed_message_size_bytes_sum"
    ok = {"grpc_method": method, "grpc_status": "OK"}
    assert page(sizes.format("rcvd"), **ok) == request.ByteSize()
    assert page(sizes.format("sent"), **ok) == answer.ByteSize()
    assert page("tdb_call_failures_total", reason="NOT_IMPLEMENTED") == 1
    assert page("process_resident_memory_bytes") > 0
    assert before("tdb_worker_ready") == 1


def test_streams_are_measured_whole(measured, debug_request):
    messages = list(measured.debugger.StreamDebug(debug_request(prompt="a cat and a dog")))
    page = Page(measured)
    ok = {"grpc_method": f"{SERVICE}/StreamDebug", "grpc_status": "OK"}
    sent = page("grpc_server_call_sent_total_compressed_message_size_bytes_sum", **ok)
    assert sent == sum(message.ByteSize() for message in messages)


def test_queue_batches_device_and_cache(measured, debug_request):
    before = Page(measured)
    request = debug_request(prompt="the dog sat on the", n_sub_requests=3)
    assert not measured.debugger.Debug(request).cached
    assert measured.debugger.Debug(request).cached
    page = Page(measured)
    assert page("tdb_queue_length") == 0
    assert page("tdb_queue_duration_seconds_count") >= 1
    assert page("tdb_batch_calls_count") >= 1
    assert page("tdb_batch_sub_requests_sum") >= 3
    assert page("tdb_device_busy_seconds_total", device="cpu") > 0
    assert page("tdb_cache_lookups_total", result="hit") >= 1
    assert page("tdb_cache_lookups_total", result="miss") >= 1
    assert before("tdb_worker_restarts_total") == 0


def test_the_queue_can_be_watched(start_server, debug_request):
    server = start_server("--metrics-port", "0", "--max-batch-tokens", "1", "--cache-bytes", "0")
    request = debug_request(prompt=" the" * 60, n_sub_requests=8, k=500)
    busy = [server.debugger.StreamDebug(request) for _ in range(6)]
    wait_until(lambda: Page(server)("tdb_queue_length") == 5)  # all are there, one of them running
    for stream in busy:
        stream.cancel()
    wait_until(lambda: Page(server)("tdb_queue_length") == 0)
    cancelled = {"grpc_status": "CANCELLED"}
    wait_until(lambda: Page(server)("grpc_server_call_duration_seconds_count", **cancelled) == 6)


def test_restarts_are_counted(start_server):
    server = start_server("--metrics-port", "0")
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: Page(server)("tdb_worker_restarts_total") == 1)
    wait_until(lambda: Page(server)("tdb_worker_ready") == 1)


def test_the_gateway_is_measured_beside(measured):
    body = {"subRequests": [{"prompt": "the cat", "targetTokens": [" the"], "distractorTokens": []}]}
    httpx.post(f"http://127.0.0.1:{measured.http_port}/batched_tdb", json=body)
    httpx.post(f"http://127.0.0.1:{measured.http_port}/batched_tdb", json=[])
    page = Page(measured)
    route = {"http_route": "/batched_tdb", "http_request_method": "POST"}
    assert page("http_server_request_duration_seconds_count", **route) == 2
    bad = page("http_server_request_duration_seconds_count", http_response_status_code="400", **route)
    assert bad >= 1


def lines_of(server: RunningServer) -> list[dict[str, object]]:
    """The log; gRPC's core and others that write for themselves are not asked to keep to JSON."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def lines_with(server: RunningServer, name: str, value: str) -> list[dict[str, object]]:
    """Waits for such lines: a call's status may be here before its line is there."""
    deadline = time.monotonic() + 10
    while not (found := [line for line in lines_of(server) if line.get(name) == value]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_every_line_of_the_log_is_json(measured, debug_request):
    request = debug_request(prompt=SECRET, n_sub_requests=2)
    request.request_id = "of-the-client"
    measured.debugger.Debug(request)
    bad = debug_request(prompt=SECRET)
    bad.sub_requests[0].target_tokens[:] = [SECRET]
    with pytest.raises(grpc.RpcError):
        measured.debugger.Debug(bad)
    refused = lines_with(measured, "reason", "NOT_ONE_TOKEN")
    lines = lines_of(measured)
    assert any(line["message"].startswith("serving on") for line in lines)
    (good,) = [line for line in lines if line.get("request_id") == "of-the-client"]
    assert good["level"] == "info"
    assert good["caller"] == "127.0.0.1"
    assert good["peer"].startswith("ipv4:127.0.0.1:")
    assert (good["method"], good["status"]) == (f"{SERVICE}/Debug", "OK")
    assert (good["n_sub_requests"], good["cached"]) == (2, False)
    assert good["n_tokens"] > 2
    assert 0 <= good["queue_seconds"] <= good["seconds"]
    assert refused[-1]["request_id"]
    assert "secret" not in measured.log.read_text()


def test_health_is_logged_for_those_who_debug(measured):
    health_pb2_grpc.HealthStub(measured.channel).Check(health_pb2.HealthCheckRequest())
    health = lines_with(measured, "method", "grpc.health.v1.Health/Check")
    assert {line["level"] for line in health} == {"debug"}


def test_calls_that_end_early_are_logged_as_what_they_are(measured, debug_request):
    long = debug_request(prompt=" the" * 60, n_sub_requests=8, k=1000)
    long.request_id = "cancelled"
    stream = measured.debugger.StreamDebug(long)
    next(stream)
    stream.cancel()
    long.request_id = "late"
    with pytest.raises(grpc.RpcError):
        list(measured.debugger.StreamDebug(long, timeout=0.02))

    def statuses() -> dict[object, object]:
        return {line.get("request_id"): line.get("status") for line in lines_of(measured)}

    wait_until(lambda: {"cancelled", "late"} <= set(statuses()))
    assert statuses()["cancelled"] == "CANCELLED"
    assert statuses()["late"] == "DEADLINE_EXCEEDED"


def test_prompts_when_asked_for(start_server, debug_request):
    server = start_server("--log-format", "json", "--log-prompts")
    server.debugger.Debug(debug_request(prompt=SECRET))

    def prompts() -> list[object]:
        return [line["prompts"] for line in lines_of(server) if "prompts" in line]

    wait_until(prompts)  # the log is written beside the answer
    assert prompts() == [[SECRET]]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def Export(self, request, context):  # noqa: N802
        for one in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in one.resource.attributes}
            self.services.add(attributes["service.name"])
            self.spans += [span for scope in one.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collector
    server.stop(None).wait()


def test_traces_continue_the_callers(collector, start_server, debug_request):
    server = start_server()
    metadata = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")]
    server.debugger.Debug(debug_request(), metadata=metadata)
    wait_until(lambda: len(collector.spans) >= 3)
    spans = {span.name: span for span in collector.spans}
    call, queue, run = spans[f"{SERVICE}/Debug"], spans["queue"], spans["run"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    assert call.parent_span_id.hex() == PARENT_ID
    assert call.kind == Span.SPAN_KIND_SERVER
    assert queue.parent_span_id == run.parent_span_id == call.span_id
    assert call.start_time_unix_nano <= queue.start_time_unix_nano <= queue.end_time_unix_nano
    assert queue.end_time_unix_nano == run.start_time_unix_nano
    assert run.start_time_unix_nano < run.end_time_unix_nano <= call.end_time_unix_nano
    attributes = {one.key: one.value for one in call.attributes}
    assert attributes["rpc.method"].string_value == "Debug"
    assert attributes["rpc.service"].string_value == SERVICE
    assert attributes["tdb.sub_requests"].int_value == 1
    assert collector.services == {"tdb-server"}


def test_what_the_caller_does_not_sample_is_not_sent_and_errors_are_marked(collector, start_server):
    server = start_server()
    unsampled = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00")]
    server.model.Tokenize(TokenizeRequest(text="a"), metadata=unsampled)
    with pytest.raises(grpc.RpcError):
        server.debugger.Debug(DebugRequest(), metadata=[("traceparent", "nonsense")])
    assert server.terminate() == 0  # sends what is left
    (span,) = collector.spans
    assert span.trace_id.hex() != TRACE_ID
    assert span.status.message == "FIELD_REQUIRED"


def test_a_collector_that_is_not_there_disturbs_nobody(monkeypatch, start_server, debug_request):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    server = start_server()
    assert server.debugger.Debug(debug_request(), timeout=30).sub_responses
    assert server.terminate() == 0


def test_a_port_that_is_taken(measured):
    port = json.loads(measured.ready_file.read_text())["metrics_port"]
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", "0", "--metrics-port", str(port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("tdb-server: cannot serve metrics on 127.0.0.1")


def test_nothing_is_imported_that_is_not_wanted():
    unwanted = "{'opentelemetry', 'prometheus_client', 'pydantic', 'starlette', 'uvicorn'} & set(sys.modules)"
    code = f"import sys, tdb_server.command; sys.exit(bool({unwanted}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_not_installed_is_named(tmp_path: Path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not here')")
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", "0", "--metrics-port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "transformer-debugger-server[telemetry]" in ended.stderr
