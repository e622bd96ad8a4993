"""Calls over a real connection: what comes back, in which order, and what is refused."""

from __future__ import annotations

import math

import google_crc32c
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformer_debugger.v1 import transformer_debugger_service_pb2 as debugger_pb2
from transformer_debugger.v1.derived_scalar_pb2 import (
    DERIVED_SCALAR_TYPE_ATTN_QK_PROBS,
    GROUP_ID_ACTIVATION,
)
from transformer_debugger.v1.model_service_pb2 import (
    DetokenizeRequest,
    GetModelInfoRequest,
    TokenizeRequest,
)
from transformer_debugger.v1.processing_pb2 import (
    DerivedScalarGroup,
    MultipleTopKSpec,
    NamedProcessingSpec,
)
from transformer_debugger.v1.tensor_pb2 import Tensor

NAMES = [
    "topKComponents",
    "componentSumsForTokenDisplay",
    "upvotedOutputTokens",
    "inputTokensThatUpvoteMlp",
    "inputTokensThatUpvoteAttnQ",
    "inputTokensThatUpvoteAttnK",
    "tokenPairAttribution",
    "topOutputTokenLogits",
]


def test_debug_answers_every_named_result(server, debug_request):
    response = server.debugger.Debug(debug_request(n_sub_requests=2))
    assert len(response.sub_responses) == 2
    for sub_response in response.sub_responses:
        assert sorted(one.name for one in sub_response.results) == sorted(NAMES)
        assert sub_response.HasField("loss")
        assert not sub_response.HasField("activation_value_for_backward_pass")
        assert "".join(sub_response.token_strings) == "the cat sat on the"
    assert response.info.model_name == "tiny-a"
    assert response.info.request_id
    assert response.timings.forward_seconds > 0


def test_request_id_comes_back(server, debug_request):
    request = debug_request()
    request.request_id = "why Mary?"
    assert server.debugger.Debug(request).info.request_id == "why Mary?"


def test_stream_has_the_same_as_the_unary_answer(server, debug_request):
    request = debug_request()
    events = list(server.debugger.StreamDebug(request))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert kinds.count("values") == 1
    streamed = _reassembled(events)
    unary = server.debugger.Debug(request).sub_responses[0]
    assert streamed == {one.name: one for one in unary.results}
    assert events[0].started.sub_requests[0].token_ids == unary.token_ids


def test_infer_takes_the_same_way(server):
    request = _attention_sums(" the cat", top_and_bottom_k=3)
    unary = server.debugger.Infer(request)
    (result,) = unary.sub_responses[0].results
    assert result.name == "attention"
    assert len(result.multiple_top_k.node_indices) == 3
    streamed = [event for event in server.debugger.StreamInfer(request) if event.HasField("result")]
    assert [one.result.result for one in streamed] == [result]


def test_large_tensors_come_in_chunks_and_nodes_in_parts(start_server, debug_request):
    server = start_server("--chunk-bytes", "1KiB")
    request = debug_request(prompt=" the cat sat on the mat" * 5, k=100)
    events = list(server.debugger.StreamDebug(request))
    whole = server.debugger.Debug(request).sub_responses[0]
    assert max(len(one.tensor_chunk.data) for one in events) == 1024
    streamed = _reassembled(events)
    assert streamed == {one.name: one for one in whole.results}
    parts = [one.result for one in events if one.HasField("result")]
    assert len(parts) > len(NAMES)
    for name in NAMES:
        of_name = [part.last_part for part in parts if part.result.name == name]
        assert of_name == [False] * (len(of_name) - 1) + [True]


def _reassembled(events):
    """Results by name, with parts joined and tensors filled from their chunks."""
    data: dict[int, bytes] = {}
    for event in events:
        if event.HasField("tensor_chunk"):
            chunk = event.tensor_chunk
            assert chunk.offset == len(data.get(chunk.tensor_id, b""))
            data[chunk.tensor_id] = data.get(chunk.tensor_id, b"") + chunk.data
    results = {}
    for event in events:
        if event.HasField("result"):
            result = event.result.result
            for group in result.multiple_top_k.groups:
                for tensor in (group.activations, *(one.sum for one in group.sums)):
                    _fill(tensor, data)
            if result.name in results:
                results[result.name].MergeFrom(result)
            else:
                results[result.name] = result
    return results


def _fill(tensor: Tensor, data: dict[int, bytes]) -> None:
    if tensor.HasField("chunked"):
        contents = data[tensor.chunked.tensor_id]
        assert len(contents) == tensor.chunked.total_bytes
        assert google_crc32c.value(contents) == tensor.chunked.crc32c
        tensor.data = contents
    assert len(tensor.data) == 4 * math.prod(tensor.shape)


def test_first_result_leaves_before_the_last_is_computed(server, debug_request):
    """Output logits come from the forward pass alone and do not wait for the rest."""
    request = debug_request(prompt=" the cat sat on the mat" * 5, n_sub_requests=16, k=100)
    stream = server.debugger.StreamDebug(request)
    arrivals = [event.result.result.name for event in stream if event.HasField("result")]
    assert arrivals[0] == "topOutputTokenLogits"


def test_validate_only_estimates_and_runs_nothing(server, debug_request):
    request = debug_request()
    request.validate_only = True
    response = server.debugger.Debug(request)
    assert response.estimated_cost.activation_bytes > 0
    assert response.estimated_cost.response_bytes > 0
    assert not response.sub_responses
    started, finished = server.debugger.StreamDebug(request)
    assert started.started.estimated_cost == response.estimated_cost
    assert finished.HasField("finished")


def test_estimate_is_an_upper_bound_of_the_answer(server, debug_request):
    request = debug_request(prompt=" the cat sat on the mat" * 5, k=50)
    n_bytes = server.debugger.Debug(request).ByteSize()
    request.validate_only = True
    assert n_bytes < server.debugger.Debug(request).estimated_cost.response_bytes


def test_bad_fields_are_named(server, refusal):
    request = debugger_pb2.DebugRequest(
        sub_requests=[debugger_pb2.DebugSubRequest(prompt="", target_tokens=[" the"], top_and_bottom_k=0)]
    )
    for call in (server.debugger.Debug, lambda one: list(server.debugger.StreamDebug(one))):
        failed = refusal(lambda call=call: call(request))
        assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (failed.info.reason, failed.info.domain) == ("EMPTY_PROMPT", "transformer-debugger")
        fields = [one.field for one in failed.bad_request.field_violations]
        assert fields == ["sub_requests[0].prompt", "sub_requests[0].top_and_bottom_k"]
        assert failed.retry_seconds is None


def test_many_violations_fit_into_the_trailer(server, refusal):
    one = debugger_pb2.DebugSubRequest(prompt="x" * 50, target_tokens=["no single token here"] * 500)
    request = debugger_pb2.DebugRequest(sub_requests=[one] * 8)
    failed = refusal(lambda: server.debugger.Debug(request))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert int(failed.info.metadata["violations_left_out"]) > 3000


def test_bytes_that_are_no_message(server, refusal):
    call = server.channel.unary_unary("/transformer_debugger.v1.TransformerDebuggerService/Debug")
    failed = refusal(lambda: call(b"\xff\xff\xff\xff"))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_compressed_requests_are_read_as_others_are(server, debug_request, refusal):
    gzip, tokens = grpc.Compression.Gzip, TokenizeRequest(text="the cat " * 40)
    expected = server.debugger.Debug(debug_request()).sub_responses
    assert server.debugger.Debug(debug_request(), compression=gzip).sub_responses == expected
    assert list(server.debugger.StreamDebug(debug_request(), compression=gzip))[-1].HasField("finished")
    assert server.model.Tokenize(tokens, compression=gzip) == server.model.Tokenize(tokens)
    health = health_pb2_grpc.HealthStub(server.channel)
    named = health_pb2.HealthCheckRequest(service="transformer_debugger.v1.TransformerDebuggerService")
    assert health.Check(named, compression=gzip) == health.Check(named)

    call = server.channel.unary_unary("/transformer_debugger.v1.TransformerDebuggerService/Debug")
    broken = refusal(lambda: call(b"\x1f\x8b\xff\xff\x10\x00\x00\x00"))
    assert (broken.code, broken.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    too_large = refusal(lambda: server.debugger.Debug(debug_request(prompt="7" * 10**8), compression=gzip))
    assert (too_large.code, too_large.info.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "REQUEST_TOO_LARGE",
    )
    with pytest.raises(grpc.RpcError, match="'deflate' is disabled") as refused:
        server.model.Tokenize(tokens, compression=grpc.Compression.Deflate)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_unknown_method(server, refusal):
    call = server.channel.unary_unary("/transformer_debugger.v1.TransformerDebuggerService/Guess")
    failed = refusal(lambda: call(b""))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


def test_limits_are_those_that_were_set(start_server, debug_request, refusal):
    server = start_server(
        "--max-sub-requests", "2", "--max-request-bytes", "4KiB", "--max-response-bytes", "8KiB",
        "--max-activation-bytes", "100MiB",
    )  # fmt: skip
    limits = server.model.GetModelInfo(GetModelInfoRequest()).model_info.limits
    assert (limits.max_sub_requests, limits.max_request_bytes, limits.max_response_bytes) == (2, 4096, 8192)
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED

    too_many = refusal(lambda: server.debugger.Debug(debug_request(n_sub_requests=3)))
    assert (too_many.code, too_many.info.reason) == (exhausted, "TOO_MANY_SUB_REQUESTS")
    too_long = refusal(lambda: server.debugger.Debug(debug_request(prompt="x" * 5000)))
    assert (too_long.code, too_long.info.reason) == (exhausted, "REQUEST_TOO_LARGE")
    absurd = refusal(lambda: server.debugger.Debug(debug_request(prompt="x" * 50_000)))
    assert absurd.code is exhausted
    too_large = refusal(lambda: server.debugger.Debug(debug_request()))
    assert (too_large.code, too_large.info.reason) == (exhausted, "RESPONSE_TOO_LARGE")
    assert too_large.info.metadata["streaming_call"] == "StreamDebug"
    assert list(server.debugger.StreamDebug(debug_request()))[-1].HasField("finished")


def test_answers_known_to_be_too_large_are_refused_unrun(start_server, debug_request, refusal):
    server = start_server("--max-response-bytes", "1KiB")
    failed = refusal(lambda: server.debugger.Debug(debug_request(prompt=" the" * 60)))
    assert failed.info.reason == "RESPONSE_TOO_LARGE"
    assert "StreamDebug" in failed.message


def test_cost_limit(start_server, debug_request, refusal):
    server = start_server("--max-activation-bytes", "1MiB")
    failed = refusal(lambda: server.debugger.Debug(debug_request(n_sub_requests=8)))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "COST_TOO_HIGH")
    assert failed.retry_seconds is None


def test_time_limit(start_server, debug_request, refusal):
    server = start_server("--max-call-seconds", "0.001")
    failed = refusal(lambda: server.debugger.Debug(debug_request(prompt=" the" * 60)))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TIME_LIMIT")


def test_an_equal_call_is_answered_from_the_cache_and_says_so(start_server, debug_request):
    server = start_server()
    first = server.debugger.Debug(debug_request())
    second = server.debugger.Debug(debug_request())
    assert (first.cached, second.cached) == (False, True)
    assert second.sub_responses == first.sub_responses
    assert second.timings.forward_seconds == 0
    started = next(server.debugger.StreamDebug(debug_request())).started
    assert started.cached
    assert not server.debugger.Debug(debug_request(k=6)).cached


def test_calls_that_share_a_batch_get_their_own_answers(server, debug_request):
    """Within what float32 allows: 1e-4, and the same nodes."""
    requests = [debug_request(prompt=f"the cat sat on the {word}") for word in ("cat", "dog", "house", "the")]
    alone = [server.debugger.Debug(request) for request in requests]
    slow = server.debugger.Debug.future(debug_request(prompt=" the" * 60, n_sub_requests=4))
    together = [server.debugger.Debug.future(request) for request in requests for _ in range(4)]
    for i, future in enumerate(together):
        expected, found = alone[i // 4].sub_responses[0], future.result().sub_responses[0]
        assert found.loss == pytest.approx(expected.loss, abs=1e-4)
        for one, other in zip(expected.results, found.results, strict=True):
            assert one.multiple_top_k.node_indices == other.multiple_top_k.node_indices
            for group, same in zip(one.multiple_top_k.groups, other.multiple_top_k.groups, strict=True):
                np.testing.assert_allclose(_array(same.activations), _array(group.activations), atol=1e-4)
    assert slow.result().sub_responses


def _array(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(tensor.data, dtype="<f4").reshape(tuple(tensor.shape))


def test_cancelled_call_frees_the_worker(server, debug_request):
    for _ in range(3):
        stream = server.debugger.StreamDebug(debug_request(prompt=" the" * 60, n_sub_requests=32, k=1000))
        assert next(stream).HasField("started")
        stream.cancel()
    assert server.debugger.Debug(debug_request(), timeout=20).sub_responses


def test_tokenize_and_back(server):
    tokens = server.model.Tokenize(TokenizeRequest(text="the cat — ein Käse"))
    assert len(tokens.token_ids) == len(tokens.token_strings)
    back = server.model.Detokenize(DetokenizeRequest(token_ids=tokens.token_ids))
    assert back.text == "the cat — ein Käse"
    assert back.token_strings == tokens.token_strings
    assert not server.model.Tokenize(TokenizeRequest(text="")).token_ids


@pytest.mark.parametrize("token_id", [-1, 1000, 2**31 - 1])
def test_unknown_token_ids(server, refusal, token_id):
    request = DetokenizeRequest(token_ids=[0, token_id])
    failed = refusal(lambda: server.model.Detokenize(request))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_TOKEN_ID")
    assert failed.bad_request.field_violations[0].field == "token_ids[1]"


def test_texts_and_lists_that_are_too_long(server, refusal):
    for call, field in (
        (lambda: server.model.Tokenize(TokenizeRequest(text="a" * 300_000)), "text"),
        (lambda: server.model.Detokenize(DetokenizeRequest(token_ids=[1] * 70_000)), "token_ids"),
    ):
        failed = refusal(call)
        assert failed.info.reason == "OUT_OF_RANGE"
        assert failed.bad_request.field_violations[0].field == field


def _attention_sums(prompt: str, top_and_bottom_k: int) -> debugger_pb2.InferRequest:
    group = DerivedScalarGroup(
        group_id=GROUP_ID_ACTIVATION, derived_scalar_types=[DERIVED_SCALAR_TYPE_ATTN_QK_PROBS]
    )
    spec = MultipleTopKSpec(groups=[group], top_and_bottom_k=top_and_bottom_k)
    sub_request = debugger_pb2.InferenceSubRequest(
        inference_spec=debugger_pb2.InferenceSpec(prompt=prompt),
        processing_specs=[NamedProcessingSpec(name="attention", multiple_top_k=spec)],
    )
    return debugger_pb2.InferRequest(sub_requests=[sub_request])


def test_attention_sums_are_probabilities(server):
    result = server.debugger.Infer(_attention_sums(" the cat sat", 1)).sub_responses[0].results[0]
    (group,) = result.multiple_top_k.groups
    n_heads_and_layers = 4 * 3
    np.testing.assert_allclose(_array(group.sums[0].sum).sum(axis=1), n_heads_and_layers, rtol=1e-5)
