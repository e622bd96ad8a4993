"""Small requests that would cost much are refused before they do, and hold up nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.message import Message
from tdb_server.service.message_survey import MAX_TOKEN_IDS
from transformer_debugger.v1 import loss_pb2
from transformer_debugger.v1 import processing_pb2 as processing
from transformer_debugger.v1.derived_scalar_pb2 import (
    DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD,
    DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_ACT_TIMES_GRAD,
)
from transformer_debugger.v1.model_service_pb2 import DetokenizeRequest, TokenizeRequest
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    InferRequest,
)

from tests.chaos.loop_pauses import LoopPauses
from tests.chaos.metrics_page import reading, upper_bound
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import peak_bytes
from tests.chaos.watched_servers import start_watched_server
from tests.running_server import RunningServer, stop

LARGE_BYTES = 4 * 2**20 - 4096
MAX_PEAK_BYTES = 512 * 2**20
LONGEST_PAUSE_SECONDS = 3.0
"""A bound of the metric's buckets. Generous, as others use the machine too: without limits it was tens."""
N_AT_ONCE, N_ROUNDS = 4, 2
N_NEURONS = 192
SECONDS = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, loop_pauses: LoopPauses) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    # It is the size of answers that is looked at here, not that of activations.
    started = start_watched_server(folder, loop_pauses, "--max-activation-bytes", "1024GiB")
    yield started
    stop(started)


def amplifier(n_sub_requests: int = 4, n_lists: int = 8) -> InferRequest:
    """A kilobyte that asks for gigabytes."""
    loss = loss_pb2.LossFnConfig(name=loss_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" the"])
    one = InferenceSubRequest(inference_spec=InferenceSpec(prompt=LONG_PROMPT, loss_fn_config=loss))
    group = processing.DerivedScalarGroup(
        group_id=2,
        derived_scalar_types=[
            DERIVED_SCALAR_TYPE_MLP_ACT_TIMES_GRAD,
            DERIVED_SCALAR_TYPE_UNFLATTENED_ATTN_ACT_TIMES_GRAD,
        ],
    )
    ranking = processing.MultipleTopKSpec(top_and_bottom_k=1000, groups=[group])
    one.processing_specs.add(name="nodes", multiple_top_k=ranking)
    for number in range(n_lists):
        tokens = processing.ScoredTokensSpec(depends_on="nodes", token_scoring_type=1, num_tokens=1000)
        one.processing_specs.add(name=f"tokens {number}", scored_tokens=tokens)
    return InferRequest(sub_requests=[one] * n_sub_requests)


def prompt(text: str) -> DebugRequest:
    one = DebugSubRequest(prompt=text, target_tokens=[" the"], top_and_bottom_k=1)
    return DebugRequest(sub_requests=[one], validate_only=True)


def checked(request: DebugRequest) -> DebugRequest:
    """The same, and nothing is run."""
    request.validate_only = True
    return request


def unknown_scalars() -> InferRequest:
    group = processing.DerivedScalarGroup(group_id=1, derived_scalar_types=[120] * LARGE_BYTES)
    spec = processing.MultipleTopKSpec(top_and_bottom_k=1, groups=[group])
    one = InferenceSubRequest(inference_spec=InferenceSpec(prompt="the"))
    one.processing_specs.add(name="nodes", multiple_top_k=spec)
    return InferRequest(sub_requests=[one], validate_only=True)


FLOODS: dict[str, Callable[[], Message]] = {
    "digits": lambda: prompt("7" * LARGE_BYTES),
    "one word": lambda: prompt("a" * LARGE_BYTES),
    "as many bytes as are read": lambda: prompt("7" * 1000),
    "unknown scalars": unknown_scalars,
    "empty sub-requests": lambda: DebugRequest(sub_requests=[DebugSubRequest()] * (LARGE_BYTES // 2)),
    "empty targets": lambda: DebugRequest(
        sub_requests=[DebugSubRequest(prompt="the", target_tokens=[""] * (LARGE_BYTES // 2))]
    ),
    "sound targets": lambda: debug_request_with_targets(1024),
    "long text": lambda: TokenizeRequest(text="7" * 250_000),
    "many tokens": lambda: DetokenizeRequest(token_ids=[1] * MAX_TOKEN_IDS),
    "many sub-requests": lambda: checked(debug_request(n_sub_requests=32)),
    "many ablations": lambda: checked(
        debug_request(n_sub_requests=32, ablated_neurons=tuple(range(N_NEURONS)))
    ),
}


def debug_request_with_targets(n_targets: int) -> DebugRequest:
    one = DebugSubRequest(prompt="the", target_tokens=[" the"] * n_targets, top_and_bottom_k=1)
    return DebugRequest(sub_requests=[one] * 32, validate_only=True)


def test_floods_of_costly_requests(server):
    """Each is sent compressed, several at a time: memory stays, and the event loop goes on."""
    expected = server.debugger.Debug(debug_request()).sub_responses
    for name, make in FLOODS.items():
        request = make()
        with ThreadPoolExecutor(N_AT_ONCE) as callers:
            requests = [request] * (N_AT_ONCE * N_ROUNDS)
            statuses = set(callers.map(lambda one: _status(server, one), requests))
        print(f"{name}: {statuses}, front at its peak {peak_bytes(server.process.pid) / 2**20:.0f} MiB")
        assert statuses <= {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
    assert peak_bytes(server.process.pid) < MAX_PEAK_BYTES
    assert server.debugger.Debug(debug_request()).sub_responses == expected
    pause_seconds = upper_bound(server, "tdb_event_loop_lag_seconds")
    print(f"the event loop was never later than {pause_seconds:g} s")
    assert pause_seconds <= LONGEST_PAUSE_SECONDS


def test_an_answer_that_is_sure_to_be_too_large_is_not_computed(server):
    n_computed = reading(server, "tdb_batch_calls_sum")
    with pytest.raises(grpc.RpcError) as failure:
        server.debugger.Infer(amplifier(), timeout=SECONDS)
    why = refused(failure.value)
    assert (why.code, why.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESPONSE_TOO_LARGE")
    with pytest.raises(grpc.RpcError) as failure:
        list(server.debugger.StreamInfer(amplifier(), timeout=SECONDS))
    why = refused(failure.value)
    assert (why.code, why.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_ROOM_FOR_ANSWER")
    assert reading(server, "tdb_batch_calls_sum") == n_computed
    assert peak_bytes(server.process.pid) < MAX_PEAK_BYTES


def test_a_large_answer_that_is_read_comes_whole(server):
    """In parts, none of them large, however long its token lists are."""
    events = list(server.debugger.StreamInfer(amplifier(n_sub_requests=1, n_lists=1), timeout=SECONDS))
    assert events[-1].HasField("finished")
    sizes = [event.ByteSize() for event in events]
    assert sum(sizes) > 40 * 2**20
    assert max(sizes) < 2**20


def _status(server: RunningServer, request: Message) -> str:
    method = {
        DebugRequest: server.debugger.Debug,
        InferRequest: server.debugger.Infer,
        TokenizeRequest: server.model.Tokenize,
        DetokenizeRequest: server.model.Detokenize,
    }[type(request)]
    try:
        method(request, timeout=SECONDS, compression=grpc.Compression.Gzip)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
