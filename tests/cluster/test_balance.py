"""Calls, and streams that begin, are spread evenly over two fronts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tdb_client import Client
from tdb_client.connection import Connection
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import wait_until
from tests.cluster.envoy import running_envoy
from tests.cluster.fronts import Front, running_fronts
from tests.cluster.pools import Pool
from tests.cluster.ways import Cluster, Way

N_CALLERS, N_CALLS = 8, 480
SHORT = debug_request("the cat")
FOR_WORKERS = debug_request(LONG_PROMPT, n_sub_requests=4, k=1)
"""Much to compute and little to say: several times as much work for a worker as for the front."""
TOLERANCE = 0.1
"""Of even, as promised."""
WEIGHED_SECONDS = 120.0
"""Until Envoy weighs: ten seconds of reports, at the pace of the slowest machine."""
N_ROUNDS = 12


@pytest.mark.parametrize("method", ["Debug", "StreamDebug"])
def test_even(cluster: Cluster, way: Way, method: str) -> None:
    counts = _counts(cluster.fronts, method, way.target)
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
    """Two workers against one, each with one call at a time: Envoy weighs what the answers' trailers say.

    How fast the machine is must not matter. So the test waits until Envoy uses the reports, which takes
    seconds and not calls, and compares what each front got with the weights that Envoy had meanwhile.
    """
    flags = [(*pool.flags(n), "--load-reports", "--max-batch-tokens", "1") for n in (2, 1)]
    with (
        running_fronts(tmp_path, flags) as fronts,
        running_envoy(tmp_path / "envoy", fronts, is_weighted=True) as envoy,
    ):
        target = f"127.0.0.1:{envoy.port}"

        def weights_after_calls() -> list[int]:
            _call(target, "Debug", FOR_WORKERS, 2 * N_CALLERS)
            return [envoy.weight(front) for front in fronts]

        # Before it uses them, all have the same one.
        wait_until(lambda: len(set(weights_after_calls())) == len(fronts), WEIGHED_SECONDS)
        before = [front.n_calls("Debug") for front in fronts]
        rounds = [weights_after_calls() for _ in range(N_ROUNDS)]
        counts = [front.n_calls("Debug") - n for front, n in zip(fronts, before, strict=True)]
    larger, smaller = counts
    expected = sum(weights[0] / sum(weights) for weights in rounds) / N_ROUNDS
    print(f"\nweighted by load reports: {larger:.0f} calls for two workers, {smaller:.0f} for one", end="")
    print(f"; by Envoy's weights {expected:.0%} were to go to the first")
    assert min(map(min, rounds)) > 100, "Envoy's weights are whole numbers"
    assert larger + smaller == N_ROUNDS * 2 * N_CALLERS
    assert larger / (larger + smaller) == pytest.approx(expected, abs=TOLERANCE)
    assert larger > 1.1 * smaller  # twice as many on a machine that has cores for all


def _counts(fronts: Sequence[Front], method: str, target: str) -> list[float]:
    """How many of the calls each front got."""
    before = [front.n_calls(method) for front in fronts]
    _call(target, method, SHORT, N_CALLS)
    return [front.n_calls(method) - n for front, n in zip(fronts, before, strict=True)]


def _call(target: str, method: str, request: DebugRequest, n_calls: int) -> None:
    """Eight callers, each with a connection of its own."""

    def call_often(_: int) -> None:
        with Connection(target).open() as channel:
            stub = TransformerDebuggerServiceStub(channel)
            call: Callable[[], object] = {
                "Debug": lambda: stub.Debug(request, timeout=60),
                "StreamDebug": lambda: list(stub.StreamDebug(request, timeout=60)),
            }[method]
            for _ in range(n_calls // N_CALLERS):
                call()

    with ThreadPoolExecutor(N_CALLERS) as callers:
        list(callers.map(call_often, range(N_CALLERS)))
