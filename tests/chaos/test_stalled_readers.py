"""Readers that stop reading cost a little memory and delay nobody."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import grpc
import pytest
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, StreamDebugResponse
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import cpu_share, vitals, wait_until
from tests.chaos.wire_answers import answer_of_stream, difference
from tests.running_server import RunningServer

N_STALLED = 50
N_MEASURED = 40
CHUNK_BYTES = 16 * 1024
MAX_BYTES_PER_READER = 640 * 1024
"""Two chunks that wait, a result on its way, what gRPC holds for a connection, what Python keeps of all."""
ROUNDS = 3
"""Latencies are compared up to this many times, as other programs use this machine too."""
SMALL = debug_request()
WORK_SECONDS = 120.0


@pytest.fixture
def channels() -> Iterator[list[grpc.Channel]]:
    opened: list[grpc.Channel] = []
    yield opened
    for one in opened:
        one.close()


def test_readers_that_stop_reading(start_watched, channels, extent):
    large = debug_request(LONG_PROMPT, extent.n_sub_requests_unread, k=120)
    server = start_watched("--chunk-bytes", str(CHUNK_BYTES))
    front, (worker,) = server.process.pid, server.worker_pids()
    expected = list(server.debugger.StreamDebug(large))
    answer_bytes = sum(event.ByteSize() for event in expected)
    assert answer_bytes > 1.2 * MAX_BYTES_PER_READER, "else nothing would be bounded"
    alone_seconds = _latency(server)
    before = vitals(front)

    streams = [_stalled(server, channels, large) for _ in range(N_STALLED)]
    wait_until(lambda: _n_computed(server) >= N_STALLED + N_MEASURED + 1, WORK_SECONDS)
    wait_until(lambda: cpu_share(worker, 0.2) < 0.1, 10)
    assert _n_open_streams(server) == N_STALLED, "they must stand still with most of their answer unread"
    during = vitals(front)
    slowdowns = [_latency(server) / alone_seconds]
    while slowdowns[-1] > extent.max_slowdown and len(slowdowns) < ROUNDS:
        slowdowns.append(_latency(server) / alone_seconds)

    held = (during.anonymous_bytes - before.anonymous_bytes) / N_STALLED
    print(f"\n{N_STALLED} readers that take nothing of {answer_bytes / 2**20:.1f} MiB each:")
    print(f"{held / 1024:.0f} KiB of the front's memory each. Others' median latency {alone_seconds:.3f} s,")
    print(f"with them times {', '.join(f'{one:.2f}' for one in slowdowns)}")
    assert held <= MAX_BYTES_PER_READER
    assert min(slowdowns) <= extent.max_slowdown

    late = [*streams[0]]
    assert late[-1].HasField("finished")
    assert difference(answer_of_stream(late), answer_of_stream(expected)) is None
    for one in streams[1:]:
        one.cancel()
    wait_until(lambda: _n_open_streams(server) == 0, 10)
    wait_until(lambda: vitals(front).n_open_files <= before.n_open_files + N_STALLED, 10)
    for one in channels:
        one.close()
    wait_until(lambda: vitals(front).n_open_files <= before.n_open_files, 10)


def _stalled(server: RunningServer, channels: list[grpc.Channel], request: DebugRequest) -> grpc.Call:
    """A stream on a connection of its own that nobody reads."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]  # windows stay small
    channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options)
    channels.append(channel)
    stream: Iterator[StreamDebugResponse] = TransformerDebuggerServiceStub(channel).StreamDebug(request)
    return stream


def _latency(server: RunningServer) -> float:
    """Median seconds of a small call."""
    seconds = []
    for _ in range(N_MEASURED):
        begun_at = time.monotonic()
        server.debugger.Debug(SMALL)
        seconds.append(time.monotonic() - begun_at)
    return statistics.median(seconds)


def _n_computed(server: RunningServer) -> float:
    return reading(server, "tdb_batch_calls_sum")


def _n_open_streams(server: RunningServer) -> float:
    method = "transformer_debugger.v1.TransformerDebuggerService/StreamDebug"
    started = reading(server, "grpc_server_call_started_total", grpc_method=method)
    return started - reading(server, "grpc_server_call_duration_seconds_count", grpc_method=method)
