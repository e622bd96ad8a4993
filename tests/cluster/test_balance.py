"""Calls, and streams that begin, are spread evenly over two fronts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tdb_client import Client
from tdb_client.connection import Connection
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.cluster.envoy import running_envoy
from tests.cluster.fronts import Front, running_fronts
from tests.cluster.pools import Pool
from tests.cluster.ways import Cluster, Way

N_CALLERS, N_CALLS = 8, 480
SHORT_PROMPT = "the cat"
TOLERANCE = 0.1
"""Of even, as promised."""


@pytest.mark.parametrize("method", ["Debug", "StreamDebug"])
def test_even(cluster: Cluster, way: Way, method: str) -> None:
    counts = _counts(cluster.fronts, method, way.target, SHORT_PROMPT)
    even = sum(counts) / 2
    worst = max(abs(count - even) for count in counts) / even
    print(f"\n{way.name}, {method}: {counts}, {worst:.1%} from even")
    assert sum(counts) == N_CALLS
    assert worst <= TOLERANCE


def test_one_connection_is_shared_out_too(cluster: Cluster, way: Way) -> None:
    """Calls are balanced, not connections: a single client, one call after the other."""
    before = [front.n_calls("StreamDebug") for front in cluster.fronts]
    with Client(way.target) as client:
        for _ in range(20):
            client.debug("the cat sat", " on", k=2)
    counts = [front.n_calls("StreamDebug") - n for front, n in zip(cluster.fronts, before, strict=True)]
    assert sum(counts) == 20
    assert max(counts) <= 11  # other calls of the client take their turns too


def test_load_reports_give_a_larger_front_more(pool: Pool, tmp_path: Path) -> None:
    """Two workers against one: Envoy weighs what the answers' trailers say."""
    flags = [(*pool.flags(n), "--load-reports") for n in (2, 1)]
    with (
        running_fronts(tmp_path, flags) as fronts,
        running_envoy(tmp_path / "envoy", fronts, is_weighted=True) as envoy,
    ):
        target = f"127.0.0.1:{envoy.port}"
        _call(target, "Debug", LONG_PROMPT, 600)  # until Envoy knows both
        larger, smaller = _counts(fronts, "Debug", target, LONG_PROMPT)
    print(f"\nweighted by load reports: {larger:.0f} calls for two workers, {smaller:.0f} for one")
    assert larger > 1.25 * smaller


def _counts(fronts: Sequence[Front], method: str, target: str, prompt: str) -> list[float]:
    """How many of the calls each front got."""
    before = [front.n_calls(method) for front in fronts]
    _call(target, method, prompt, N_CALLS)
    return [front.n_calls(method) - n for front, n in zip(fronts, before, strict=True)]


def _call(target: str, method: str, prompt: str, n_calls: int) -> None:
    """Eight callers, each with a connection of its own."""

    def call_often(_: int) -> None:
        with Connection(target).open() as channel:
            stub = TransformerDebuggerServiceStub(channel)
            request = debug_request(prompt)
            call: Callable[[], object] = {
                "Debug": lambda: stub.Debug(request, timeout=60),
                "StreamDebug": lambda: list(stub.StreamDebug(request, timeout=60)),
            }[method]
            for _ in range(n_calls // N_CALLERS):
                call()

    with ThreadPoolExecutor(N_CALLERS) as callers:
        list(callers.map(call_often, range(N_CALLERS)))
