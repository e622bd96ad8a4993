"""What an answer takes at the least and at the most is told before it is computed, and is so."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.cost import estimated_cost
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.limits import Limits
from tdb_server.domain.requests import (
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenScoringType,
)
from tdb_server.domain.results import NamedResult
from tdb_server.engine.engine import Engine
from tdb_server.errors import TdbError
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.streaming import StreamWriter
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import Configuration, Ready
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugSubRequest, StreamInferResponse

from tests.chaos.likely_requests import LikelyRequests
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.running_server import TINY_MODEL

AUTOENCODERS = tuple(TINY_MODEL / "autoencoders" / site for site in ("mlp_post_act", "resid_delta_attn"))
TOKENIZER = Tokenizer(Path(TINY_MODEL))


@pytest.fixture(scope="module")
def loaded() -> tuple[Engine, Ready]:
    configuration = Configuration(str(TINY_MODEL), AUTOENCODERS, "cpu", 0, "float32", 1)
    return load_engine(configuration, lambda stage, fraction: None)


def n_bytes(engine: Engine, sub_requests: tuple[InferenceSubRequest, ...]) -> int:
    """Of all results on the wire, without what every message of a stream has around them."""
    prompts = [one.inference.token_ids for one in sub_requests]
    writer = StreamWriter(StreamInferResponse, TOKENIZER, prompts, chunk_bytes=None)
    events = engine.run([Call("call", sub_requests)], lambda _: False)
    return sum(
        message.result.result.ByteSize()
        for _, event in events
        if isinstance(event, NamedResult)
        for message in writer.result(event)
    )


@pytest.mark.parametrize("k", [1, 20, 1000])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("prompt", ["the cat", LONG_PROMPT])
def test_debug_requests(loaded, k, n, prompt):
    engine, ready = loaded
    request = debug_request(prompt, n, k)
    other = DebugSubRequest()
    other.CopyFrom(request.sub_requests[-1])
    other.target_tokens[0] = " of"
    request.sub_requests[-1].CopyFrom(other)
    sub_requests = parse_debug_request(request, ready.info, Limits(), TOKENIZER)
    cost = estimated_cost(ready.info, sub_requests)
    found = n_bytes(engine, sub_requests)
    assert 0 < cost.least_response_bytes <= found <= cost.response_bytes


def test_what_differs_by_nothing_is_not_listed(loaded):
    """A prompt that is compared with itself: all effects are zero."""
    engine, ready = loaded
    request = debug_request(LONG_PROMPT, k=1000)
    plain = estimated_cost(ready.info, parse_debug_request(request, ready.info, Limits(), TOKENIZER))
    request.sub_requests[0].baseline_prompts.append(LONG_PROMPT)
    compared = parse_debug_request(request, ready.info, Limits(), TOKENIZER)
    cost = estimated_cost(ready.info, compared)
    assert cost.least_response_bytes <= n_bytes(engine, compared) < plain.least_response_bytes


@pytest.mark.parametrize("whole_matrix", [False, True])
@pytest.mark.parametrize("k", [1, 1000])
def test_edges(loaded, k, whole_matrix):
    engine, ready = loaded
    inference = InferenceSpec(
        (1, 2, 3, 4),
        LossConfig(LossName.LOGIT_DIFF, (5,)),
        None,
        (HOLD_FINAL_NORM_SCALE,),
        baselines=((1, 2, 7, 4),),
    )
    asked = (InferenceSubRequest(inference, {"edges": EdgesSpec(k, 2, whole_matrix)}),)
    cost = estimated_cost(ready.info, asked)
    assert cost.least_response_bytes <= n_bytes(engine, asked) <= cost.response_bytes


def test_heads_that_are_all_positive(loaded):
    """None is among the smallest, as masked cells are zero."""
    engine, ready = loaded
    groups = ((GroupId.ACT_TIMES_GRAD, (DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM,)),)
    tokens = ScoredTokensSpec("nodes", TokenScoringType.UPVOTED_OUTPUT_TOKENS, 1000)
    specs = {"nodes": MultipleTopKSpec(groups, 5), "tokens": tokens}
    asked = (InferenceSubRequest(InferenceSpec(tuple(range(1, 9))), specs),)
    cost = estimated_cost(ready.info, asked)
    assert 0 < cost.least_response_bytes <= n_bytes(engine, asked) <= cost.response_bytes


def test_random_requests(loaded):
    engine, ready = loaded
    chance, n_run, n_told = random.Random(0), 0, 0
    while n_run < 60:
        request = LikelyRequests(chance, ready.info).request()
        try:
            sub_requests = parse_infer_request(request, ready.info, Limits(), TOKENIZER)
        except TdbError:
            continue
        n_run += 1
        cost = estimated_cost(ready.info, sub_requests)
        found = n_bytes(engine, sub_requests)
        assert cost.least_response_bytes <= found <= cost.response_bytes, request
        n_told += cost.least_response_bytes > found / 4
    assert n_told > n_run / 4, "else the least is of no use"
