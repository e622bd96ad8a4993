"""What sharing a batch is worth: calls per second of eight callers, with batching and without."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from pathlib import Path

import grpc
import pytest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.extent import only_long
from tests.chaos.metrics_page import reading
from tests.chaos.requests import debug_request
from tests.random_models import write_random_model
from tests.running_server import RunningServer

N_CALLERS = 8
ROUNDS = 3
ROUND_SECONDS = 20.0
LEAST_GAIN = 1.5
PROMPT_OF_16_TOKENS = " the" * 16


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As deep and wide as GPT-2 small, which is where batching begins to matter."""
    return write_random_model(
        tmp_path / "wide", "gpt2", n_layer=12, n_embd=768, n_head=12, n_positions=64, n_inner=3072
    )


@only_long
def test_batching_pays(start_watched, model):
    together = start_watched(model=model)
    alone = start_watched("--max-batch-tokens", "1", model=model)
    rates: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(ROUNDS):
        rates["together"].append(_calls_per_second(together))
        rates["alone"].append(_calls_per_second(alone))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    gain = medians["together"] / medians["alone"]
    mean = reading(together, "tdb_batch_calls_sum") / reading(together, "tdb_batch_calls_count")
    print(f"\n{N_CALLERS} callers of 16 tokens: {medians['together']:.1f} calls/s in batches of {mean:.1f},")
    print(f"{medians['alone']:.1f} calls/s alone, {gain:.2f} times as many; rounds {rates}")
    assert reading(alone, "tdb_batch_calls_sum") == reading(alone, "tdb_batch_calls_count")
    assert gain >= LEAST_GAIN


def _calls_per_second(server: RunningServer) -> float:
    """Callers on connections of their own, each asking again as soon as it is answered."""
    numbers, done = itertools.count(), [0] * N_CALLERS
    stops_at = time.monotonic() + ROUND_SECONDS

    def keep_calling(caller: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            stub = TransformerDebuggerServiceStub(channel)
            while time.monotonic() < stops_at:
                stub.Debug(debug_request(PROMPT_OF_16_TOKENS, ablated_neurons=(next(numbers) % 3072,)))
                done[caller] += 1

    callers = [threading.Thread(target=keep_calling, args=(caller,)) for caller in range(N_CALLERS)]
    begun_at = time.monotonic()
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    return sum(done) / (time.monotonic() - begun_at)
