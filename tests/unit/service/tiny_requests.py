"""Requests for the tiny-a fixture, and the model they are checked against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import AutoencoderInfo, ModelInfo, Site
from tdb_server.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from transformer_debugger.v1.node_pb2 import NodeIndex
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugSubRequest,
    InferenceSubRequest,
    InferRequest,
)

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny-a"
TOKENIZER = Tokenizer(FIXTURE)
PROMPT = "The cat sat on the mat"
N_TOKENS = 9
LIMITS = Limits()

Change = Callable[[Any], None]


def model(*sites: Site, layers: tuple[int, ...] = (0, 1, 2)) -> ModelInfo:
    return ModelInfo(
        name="tiny-a",
        digest="0",
        family="gpt2",
        n_layers=3,
        d_model=48,
        n_heads=4,
        n_key_value_heads=4,
        d_head=12,
        n_neurons=192,
        vocabulary_size=1000,
        context_length=64,
        dtype="float32",
        autoencoders=tuple(AutoencoderInfo(site, 96, layers, "relu") for site in sites),
    )


def debug(*changes: Change) -> DebugRequest:
    """A sound debug request of one sub-request, changed."""
    sub_request = DebugSubRequest(
        prompt=PROMPT, target_tokens=[" the"], distractor_tokens=[" of"], top_and_bottom_k=5
    )
    for change in changes:
        change(sub_request)
    return DebugRequest(sub_requests=[sub_request])


def infer(*changes: Change) -> InferRequest:
    """A sound general request of one sub-request, changed."""
    sub_request = InferenceSubRequest()
    sub_request.inference_spec.prompt = PROMPT
    sub_request.inference_spec.loss_fn_config.name = 1
    sub_request.inference_spec.loss_fn_config.target_tokens.append(" the")
    for change in changes:
        change(sub_request)
    return InferRequest(sub_requests=[sub_request])


def node(node_type: int, layer: int | None, *indices: int, pass_type: int = 0) -> NodeIndex:
    return NodeIndex(node_type=node_type, layer_index=layer, tensor_indices=indices, pass_type=pass_type)


def parse(
    request: DebugRequest | InferRequest,
    info: ModelInfo | None = None,
    limits: Limits = LIMITS,
    tokenizer: Tokenizer = TOKENIZER,
) -> Any:
    info = info or model()
    if isinstance(request, DebugRequest):
        return parse_debug_request(request, info, limits, tokenizer)
    return parse_infer_request(request, info, limits, tokenizer)


def violations(
    request: DebugRequest | InferRequest,
    info: ModelInfo | None = None,
    limits: Limits = LIMITS,
    tokenizer: Tokenizer = TOKENIZER,
) -> list[tuple[str, str]]:
    """`(field, reason)` of everything that is wrong."""
    return [(one.field, one.reason) for one in refused(request, info, limits, tokenizer)]


def refused(
    request: DebugRequest | InferRequest,
    info: ModelInfo | None = None,
    limits: Limits = LIMITS,
    tokenizer: Tokenizer = TOKENIZER,
) -> tuple[FieldViolation, ...]:
    """Everything that is wrong."""
    with pytest.raises((InvalidRequest, FailedPrecondition)) as caught:
        parse(request, info, limits, tokenizer)
    return caught.value.violations


def names(cases: list[tuple[list[Change], list[tuple[str, str]]]]) -> list[str]:
    """What each case is about, the same in every process."""
    return [f"{expected[0][0]} {expected[0][1]}" for _, expected in cases]
