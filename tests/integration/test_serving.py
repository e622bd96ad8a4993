"""Starting, being healthy, stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest

from tests.chaos.draining import draining
from tests.chaos.vitals import is_running, wait_until
from tests.running_server import TINY_MODEL

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("transformer_debugger.v1.TransformerDebuggerService", "transformer_debugger.v1.ModelService")


def test_front_never_loads_torch(server, debug_request):
    server.debugger.Debug(debug_request())
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    (worker,) = server.worker_pids()
    assert "libtorch" in Path(f"/proc/{worker}/maps").read_text()
    assert Path(f"/proc/{worker}/cmdline").read_text().startswith("tdb-worker:cpu")


def test_importing_the_front_imports_no_torch():
    code = "import sys, tdb_server.command; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_health_is_answered_while_the_model_loads_and_follows_the_workers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--model", str(TINY_MODEL), "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "tdb_server", *arguments], stderr=subprocess.DEVNULL)
    try:
        status = None
        while status is None:
            assert process.poll() is None
            status = _health(port)
        assert status == NOT_SERVING
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=SERVICES[0]), timeout=60
            )
            assert [next(watched).status, next(watched).status] == [NOT_SERVING, SERVING]
            process.terminate()
            assert next(watched).status == NOT_SERVING
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


def _health(port: int) -> int | None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return (
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status
            )
        except grpc.RpcError:
            time.sleep(0.01)
            return None


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health_per_service(server, service):
    stub = health_pb2_grpc.HealthStub(server.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING


def test_reflection_lists_and_describes_the_services(server):
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICES[0]),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    listed, described = stub.ServerReflectionInfo(iter(requests))
    assert set(SERVICES) <= {one.name for one in listed.list_services_response.service}
    assert described.file_descriptor_response.file_descriptor_proto


def test_reflection_v1_is_the_same(server):
    call = server.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert set(SERVICES) <= {one.name for one in listed.list_services_response.service}


def test_no_reflection(start_server, refusal):
    server = start_server("--no-reflection")
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    assert (
        refusal(lambda: list(stub.ServerReflectionInfo(iter(requests)))).code is grpc.StatusCode.UNIMPLEMENTED
    )


def test_sigterm_drains(start_server, debug_request):
    server = start_server("--grace-seconds", "60")
    stream = server.debugger.StreamDebug(debug_request(prompt=" the" * 60, n_sub_requests=8, k=200))
    assert next(stream).HasField("started")
    server.process.send_signal(signal.SIGTERM)
    assert list(stream)[-1].HasField("finished")
    assert server.process.wait(timeout=70) == 0
    assert not server.ready_file.exists()


def test_calls_are_refused_while_draining(start_server, debug_request, refusal):
    server = start_server("--grace-seconds", "60")
    with draining(server):
        failed = refusal(lambda: server.debugger.Debug(debug_request()))
        assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert failed.retry_seconds is not None
    assert server.process.wait(timeout=70) == 0


def test_worker_ends_with_a_killed_front(start_server):
    server = start_server()
    (worker,) = server.worker_pids()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_running(worker))


def test_killed_worker_is_replaced(start_server, debug_request, refusal):
    server = start_server("--cache-bytes", "0")
    before = server.debugger.Debug(debug_request())
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    health = health_pb2_grpc.HealthStub(server.channel)
    statuses = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(status for status in statuses if status.status == SERVING)
    wait_until(lambda: server.worker_pids() not in ([worker], []))
    wait_until(lambda: health.Check(health_pb2.HealthCheckRequest()).status == SERVING)
    after = server.debugger.Debug(debug_request(), wait_for_ready=True)
    assert after.sub_responses == before.sub_responses


def test_model_info_is_there_while_workers_are_not(start_server, debug_request, refusal):
    server = start_server()
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)  # hangs, so that it is not replaced before we look
    os.kill(worker, signal.SIGKILL)
    health = health_pb2_grpc.HealthStub(server.channel)
    wait_until(lambda: health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING)
    failed = refusal(lambda: server.debugger.Debug(debug_request()))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER_READY")
    assert failed.retry_seconds is not None
    assert server.model.GetModelInfo(GetModelInfoRequest()).model_info.n_layers == 3


@pytest.mark.parametrize(
    "flags", [["--model", "/no/such/folder"], ["--device", "cuda:99"], ["--device", "toaster"]]
)
def test_what_cannot_be_loaded_ends_the_server_with_one_line(tmp_path, flags):
    model = str(Path(__file__).parents[1] / "fixtures/tiny-a")
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--model", model, "--port", "0", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"tdb-server: {flags[1]}")


def test_port_in_use(server):
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", str(server.port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
