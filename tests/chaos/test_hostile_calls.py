"""Whatever is sent, each call gets a typed status, and nobody falls over."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tdb_server.domain.model_info import Site
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2

from tests.chaos import hostile_messages, sound_requests
from tests.chaos.extent import only_long
from tests.chaos.likely_requests import LikelyRequests
from tests.chaos.refused import Refused, refused
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.running_server import TINY_MODEL, RunningServer
from tests.unit.service.tiny_requests import model

PACKAGE = "transformer_debugger.v1"
DEBUGGER, MODEL = f"/{PACKAGE}.TransformerDebuggerService", f"/{PACKAGE}.ModelService"
DOMAIN = "transformer-debugger"
CUT_OFF_BYTES = 16 * 2**20
"""A larger message never reaches our code: four times the limit for requests."""
MODEL_INFO = model(Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)
"""What the server holds."""
N_AT_ONCE = 8
SECONDS = 60.0
ALLOWED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}
STREAMED = {f"{DEBUGGER}/StreamDebug", f"{DEBUGGER}/StreamInfer", f"{DEBUGGER}/StreamInferEdges"}
METHODS = {
    service_pb2.DebugRequest: (f"{DEBUGGER}/Debug", f"{DEBUGGER}/StreamDebug"),
    service_pb2.InferRequest: (f"{DEBUGGER}/Infer", f"{DEBUGGER}/StreamInfer"),
    service_pb2.InferEdgesRequest: (f"{DEBUGGER}/InferEdges", f"{DEBUGGER}/StreamInferEdges"),
}
WRONG_PATHS = (
    f"{DEBUGGER}/Guess", f"{DEBUGGER}/debug", f"{DEBUGGER}/", f"{DEBUGGER}/Debug/", f"{DEBUGGER}/Debug?x=1",
    f"/{PACKAGE}.Nobody/Debug", "/../../etc/passwd", f"/{'x' * 3000}/y", "/", f"{DEBUGGER}/%44ebug",
    f"{MODEL}/Debug",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostileCall:
    """What is sent, and where.

    Attributes:
        kind: how it was made.
        method: its full path.
        raw: the request's bytes.
    """

    kind: str
    method: str
    raw: bytes


def test_every_call_gets_a_typed_status(watched, extent):
    """Most are refused; most random general requests must run, so that the engine is tried too."""
    outcomes = _mistreat(watched, extent.n_hostile_calls, seed=0)
    for sound in ("random general request", "random request for edges"):
        n_random = sum(number for (kind, _), number in outcomes.items() if kind == sound)
        assert outcomes[sound, "OK"] > n_random / 2


@only_long
@pytest.mark.parametrize("sites", [(), ("resid_delta_mlp",)])
def test_with_other_autoencoders(start_watched, extent, sites):
    """Without any, and with a single one, which has names of its own."""
    flags = [f"--autoencoder={TINY_MODEL / 'autoencoders' / site}" for site in sites]
    _mistreat(start_watched(*flags), extent.n_hostile_calls // 2, seed=1)


def test_calls_with_several_messages(watched):
    """Which only a client that does not keep to the protos can send: the first message counts."""
    for method in (f"{DEBUGGER}/Debug", f"{DEBUGGER}/StreamDebug"):
        for message in (b"", debug_request().SerializeToString()):
            call = watched.channel.stream_stream(method)(iter([message] * 3), timeout=SECONDS)
            why = _outcome(lambda call=call: list(call))
            assert why is None or why.code in ALLOWED, (method, why)


def test_calls_without_a_message(watched):
    """They wait for one, which is the caller's loss alone."""
    calls = [watched.channel.stream_stream(f"{DEBUGGER}/Debug")(iter([]), timeout=SECONDS) for _ in range(20)]
    assert watched.debugger.Debug(debug_request()).sub_responses
    for one in calls:
        one.cancel()


def test_metadata_of_all_sorts(watched):
    request = debug_request()
    for metadata in (
        [("x-large", "x" * 7000)],
        [(f"x-{number}", "x") for number in range(100)],
        [("traceparent", "00-zz-zz-zz")],
        [("authorization", "Basic " + "x" * 1000)],
        [("grpc-status-details-bin", b"\0" * 100)],
    ):
        why = _outcome(lambda metadata=metadata: watched.debugger.Debug(request, metadata=metadata))
        assert why is None or why.code in ALLOWED, (metadata, why)


def _mistreat(server: RunningServer, n_calls: int, seed: int) -> Counter[tuple[str, str]]:
    """Sends hostile calls and looks at what comes back.

    Returns:
        How often a kind of call ended with a status.
    """
    pids = server.process.pid, server.worker_pids()
    expected = server.debugger.Debug(debug_request()).sub_responses
    calls = [_hostile_call(random.Random(f"{seed} {number}"), number) for number in range(n_calls)]
    begun_at = time.monotonic()
    with ThreadPoolExecutor(N_AT_ONCE) as callers:
        outcomes = list(callers.map(lambda call: _send(server, call), calls))
    seconds = time.monotonic() - begun_at

    statuses = Counter(
        (call.kind, "OK" if why is None else why.code.name) for call, why in zip(calls, outcomes, strict=True)
    )
    print(f"\n{n_calls} hostile calls in {seconds:.0f} s")
    for (kind, status), number in sorted(statuses.items()):
        print(f"  {kind:24} {status:20} {number}")
    faults = [
        (call.kind, call.method, why, call.raw[:300])
        for call, why in zip(calls, outcomes, strict=True)
        if why is not None and not _is_typed(call, why)
    ]
    assert faults == []
    assert (server.process.pid, server.worker_pids()) == pids
    assert server.process.poll() is None
    assert server.debugger.Debug(debug_request()).sub_responses == expected
    health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    return statuses


def _is_typed(call: HostileCall, why: Refused) -> bool:
    if why.code is grpc.StatusCode.RESOURCE_EXHAUSTED and len(call.raw) > CUT_OFF_BYTES:
        return True
    return why.code in ALLOWED and why.domain == DOMAIN and bool(why.reason)


def _hostile_call(chance: random.Random, number: int) -> HostileCall:
    kinds: dict[str, Callable[[random.Random], tuple[str, bytes]]] = {
        "random general request": _random_general,
        "spoiled general request": _spoiled_general,
        "spoiled debug request": _spoiled_debug,
        "random request for edges": _random_edges,
        "spoiled request for edges": _spoiled_edges,
        "random fields": _random_fields,
        "broken bytes": _broken_bytes,
        "bad enum": _bad_enum,
        "absurd size": _absurd_size,
        "deep nesting": _deep_nesting,
        "wrong path": _wrong_path,
        "other methods": _other_methods,
    }
    weights = (2, 4, 4, 0.5, 2, 3, 6, 3, 0.4, 0.5, 0.5, 1)
    names = list(kinds)
    kind = names[number % len(names)] if number < len(names) else chance.choices(names, weights)[0]
    return HostileCall(kind, *kinds[kind](chance))


def _of(chance: random.Random, message: Message) -> tuple[str, bytes]:
    return chance.choice(METHODS[type(message)]), message.SerializeToString()


def _likely(chance: random.Random) -> service_pb2.InferRequest:
    return LikelyRequests(chance, MODEL_INFO).request()


def _random_general(chance: random.Random) -> tuple[str, bytes]:
    return _of(chance, _likely(chance))


def _spoiled_general(chance: random.Random) -> tuple[str, bytes]:
    return _of(chance, hostile_messages.spoiled(chance, _likely(chance)))


def _spoiled_debug(chance: random.Random) -> tuple[str, bytes]:
    sound = hostile_messages.sound_copy(chance, sound_requests.debug_requests())
    return _of(chance, hostile_messages.spoiled(chance, sound))


def _random_edges(chance: random.Random) -> tuple[str, bytes]:
    return _of(chance, LikelyRequests(chance, MODEL_INFO).edges())


def _spoiled_edges(chance: random.Random) -> tuple[str, bytes]:
    return _of(chance, hostile_messages.spoiled(chance, LikelyRequests(chance, MODEL_INFO).edges()))


def _random_fields(chance: random.Random) -> tuple[str, bytes]:
    kind = chance.choice(list(METHODS))
    return _of(chance, hostile_messages.random_message(chance, kind()))


def _broken_bytes(chance: random.Random) -> tuple[str, bytes]:
    sound = chance.choice((*sound_requests.debug_requests(), _likely(chance)))
    method, raw = _of(chance, sound)
    return method, hostile_messages.broken_bytes(chance, raw)


def _bad_enum(chance: random.Random) -> tuple[str, bytes]:
    sound = chance.choice((*sound_requests.debug_requests(), _likely(chance)))
    copy = hostile_messages.sound_copy(chance, [sound])
    return _of(chance, hostile_messages.with_bad_enum(chance, copy))


def _absurd_size(chance: random.Random) -> tuple[str, bytes]:
    one = debug_request().sub_requests[0]
    match chance.randrange(7):
        case 0:
            message = debug_request(n_sub_requests=20_000)
        case 1:
            message = debug_request(k=chance.choice((2**31 - 1, 1001)))
        case 2:
            message = debug_request("x" * chance.choice((100_000, 3_000_000, 5_000_000, 17_000_000)))
        case 3:
            one.target_tokens.extend([" the"] * 200_000)
            message = service_pb2.DebugRequest(sub_requests=[one])
        case 4:
            message = debug_request(ablated_neurons=tuple(range(192)) * 100)
        case 5:
            message = debug_request(LONG_PROMPT, n_sub_requests=32, k=1, ablated_neurons=tuple(range(192)))
        case _:
            message = service_pb2.DebugRequest(sub_requests=[one], request_id="x" * 1_000_000)
    return _of(chance, message)


def _deep_nesting(chance: random.Random) -> tuple[str, bytes]:
    """Traces inside traces, and the same field of groups that are no fields of ours."""
    depth = chance.choice((5, 40, 90, 120, 2_000, 20_000))
    trace = hostile_messages.nested(depth, tag=chance.choice((4, 15)))
    for tag in (3, 1, 1):  # the trace of the inference spec of the first sub-request
        trace = hostile_messages.field(tag, trace)
    return chance.choice(METHODS[service_pb2.InferRequest]), trace


def _wrong_path(chance: random.Random) -> tuple[str, bytes]:
    return chance.choice(WRONG_PATHS), debug_request().SerializeToString()


def _other_methods(chance: random.Random) -> tuple[str, bytes]:
    method = chance.choice(("GetModelInfo", "Tokenize", "Detokenize"))
    if chance.random() < 0.5:
        sound = chance.choice(sound_requests.model_requests())
        return f"{MODEL}/{method}", hostile_messages.broken_bytes(chance, sound.SerializeToString())
    copy = hostile_messages.sound_copy(chance, sound_requests.model_requests())
    return f"{MODEL}/{method}", hostile_messages.spoiled(chance, copy).SerializeToString()


def _send(server: RunningServer, call: HostileCall) -> Refused | None:
    if call.method in STREAMED:
        return _outcome(lambda: list(server.channel.unary_stream(call.method)(call.raw, timeout=SECONDS)))
    return _outcome(lambda: server.channel.unary_unary(call.method)(call.raw, timeout=SECONDS))


def _outcome(call: Callable[[], object]) -> Refused | None:
    """Why a call failed; None when it did not."""
    try:
        call()
    except grpc.RpcError as error:
        return refused(error)
    return None
