"""What a balancer costs: the same calls straight to a front and through each of them, in turns in one run.

With TDB_CLUSTER_LONG=1 there are enough calls for figures.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from tdb_client.connection import Connection
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.requests import debug_request
from tests.cluster.ways import Cluster

IS_LONG = os.environ.get("TDB_CLUSTER_LONG") == "1"
"""For figures; the short form shows only that no balancer is absurdly slow."""
N_WARM_UPS, N_TURNS = 10, 400 if IS_LONG else 50
METHODS = ("Tokenize", "Debug", "StreamDebug")
MOST_MILLISECONDS = 20.0
"""More than that a balancer may not add to the median, also on a machine that is busy with other things."""


def test_overhead(cluster: Cluster) -> None:
    targets = {"none": f"127.0.0.1:{cluster.fronts[0].port}"}
    targets |= {way.name: way.target for way in cluster.ways.values()}
    with ExitStack() as channels:
        stubs = {
            name: _Stubs(channels.enter_context(Connection(target).open()))
            for name, target in targets.items()
        }
        milliseconds = {method: _timed(stubs, method) for method in METHODS}
    print("\n| call | balancer | p50, ms | p95, ms | p50 over none, ms |\n| --- | --- | --- | --- | --- |")
    for method, by_target in milliseconds.items():
        for name, found in by_target.items():
            p50, p95 = np.percentile(found, (50, 95))
            over = p50 - np.percentile(by_target["none"], 50)
            print(f"| {method} | {name} | {p50:.2f} | {p95:.2f} | {over:+.2f} |")
            assert over < MOST_MILLISECONDS


class _Stubs:
    """Calls by name over one channel."""

    def __init__(self, channel: object) -> None:
        model, debugger = ModelServiceStub(channel), TransformerDebuggerServiceStub(channel)  # type: ignore[arg-type]
        text, debug = TokenizeRequest(text="the cat sat on the mat"), debug_request(k=2)
        self.calls: dict[str, Callable[[], object]] = {
            "Tokenize": lambda: model.Tokenize(text, timeout=60),
            "Debug": lambda: debugger.Debug(debug, timeout=60),
            "StreamDebug": lambda: list(debugger.StreamDebug(debug, timeout=60)),
        }


def _timed(stubs: dict[str, _Stubs], method: str) -> dict[str, list[float]]:
    """Milliseconds of each call; every turn has one call each way, in an order of its own."""
    names, chance = list(stubs), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-N_WARM_UPS, N_TURNS):
        for name in chance.sample(names, len(names)):
            begun_at = time.perf_counter()
            stubs[name].calls[method]()
            if turn >= 0:
                found[name].append((time.perf_counter() - begun_at) * 1e3)
    return found
