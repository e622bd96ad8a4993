"""Lenses, raw places and sums by component on the wire: defaults, refusals, estimates, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from tdb_server.domain.cost import estimated_cost
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.requests import ActivationsSpec, ComponentTotalsSpec, LensSpec
from tdb_server.domain.results import (
    ActivationsResult,
    ComponentTotalsResult,
    LabelledArray,
    LensResult,
    NamedResult,
    ProcessingResult,
)
from tdb_server.errors import OverLimit
from tdb_server.service.streaming import StreamWriter
from transformer_debugger.v1 import activation_pb2
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec
from transformer_debugger.v1.transformer_debugger_service_pb2 import StreamInferResponse

from tests.unit.service.infer_changes import MLP_AUTOENCODER, without_loss
from tests.unit.service.tiny_requests import N_TOKENS, TOKENIZER, Change, infer, model, parse, violations

LAST = N_TOKENS - 1


def wanted(kind: str, **fields: Any) -> Change:
    def change(message: Any) -> None:
        spec = ParseDict({"name": "x", kind: fields}, NamedProcessingSpec())
        message.processing_specs.append(spec)

    return change


def lens(**fields: Any) -> Change:
    return wanted("lens", **fields)


def place(name: str, **fields: Any) -> Change:
    return wanted("activations", activationLocationType=f"ACTIVATION_LOCATION_TYPE_{name}", **fields)


def totals(*names: str) -> Change:
    return wanted("componentTotals", derivedScalarTypes=[f"DERIVED_SCALAR_TYPE_{one}" for one in names])


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (lens(), "lens.num_top_tokens", "FIELD_REQUIRED"),
        (lens(numTopTokens=0), "lens.num_top_tokens", "OUT_OF_RANGE"),
        (lens(vocabTokenIds=[1000]), "lens.vocab_token_ids[0]", "UNKNOWN_TOKEN_ID"),
        (lens(vocabTokens=[" the cat"]), "lens.vocab_tokens[0]", "NOT_ONE_TOKEN"),
        (lens(numTopTokens=1, layerIndices=[3]), "lens.layer_indices[0]", "LAYER_OUT_OF_RANGE"),
        (lens(numTopTokens=1, layerIndices=[1, 1]), "lens.layer_indices[1]", "DUPLICATE_NAME"),
        (lens(numTopTokens=1, layerIndices=[0] * 4), "lens.layer_indices", "OUT_OF_RANGE"),
        (lens(numTopTokens=1, tokenIndices=[9]), "lens.token_indices[0]", "TENSOR_INDEX_OUT_OF_RANGE"),
        (lens(numTopTokens=1, tokenIndices=[-1, 8]), "lens.token_indices[1]", "DUPLICATE_NAME"),
        (
            lens(numTopTokens=1, place="ACTIVATION_LOCATION_TYPE_MLP_POST_ACT"),
            "lens.place",
            "FIELD_NOT_ALLOWED",
        ),
        (wanted("activations"), "activations.activation_location_type", "FIELD_REQUIRED"),
        (place("LOGITS", layerIndices=[0]), "activations.layer_indices[0]", "FIELD_NOT_ALLOWED"),
        (place("ATTN_Q", layerIndices=[-1]), "activations.layer_indices[0]", "LAYER_OUT_OF_RANGE"),
        (place("ATTN_Q", tokenIndices=[0, 0]), "activations.token_indices[1]", "DUPLICATE_NAME"),
        (
            place("ONLINE_AUTOENCODER_LATENT"),
            "activations.activation_location_type",
            "AUTOENCODER_NOT_LOADED",
        ),
        (totals(), "component_totals.derived_scalar_types", "FIELD_REQUIRED"),
        (
            totals("MLP_POST_ACT"),
            "component_totals.derived_scalar_types[0]",
            "DERIVED_SCALAR_DOES_NOT_FIT",
        ),
        (
            totals("MLP_WRITE_NORM", "MLP_WRITE_NORM"),
            "component_totals.derived_scalar_types[1]",
            "DUPLICATE_NAME",
        ),
    ],
)
def test_refused(change: Change, field: str, reason: str) -> None:
    assert violations(infer(change)) == [(f"sub_requests[0].processing_specs[0].{field}", reason)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (place("ATTN_Q", passType="PASS_TYPE_BACKWARD"), "activations.pass_type"),
        (totals("MLP_ACT_TIMES_GRAD"), "component_totals.derived_scalar_types[0]"),
    ],
)
def test_gradients_need_an_objective(change: Change, field: str) -> None:
    path = f"sub_requests[0].processing_specs[0].{field}"
    assert violations(infer(without_loss, change)) == [(path, "OBJECTIVE_REQUIRED")]


def spec_of(change: Change, info: Any = None) -> Any:
    return parse(infer(change), info)[0].processing["x"]


def test_too_many_tokens_are_over_a_limit() -> None:
    with pytest.raises(OverLimit, match=r"lens\.num_top_tokens: 1001 is over the limit of 1000"):
        parse(infer(lens(numTopTokens=1001)))


def test_defaults() -> None:
    assert spec_of(lens(numTopTokens=2)) == LensSpec(
        HookPoint.RESID_POST_MLP, (0, 1, 2), (LAST,), n_top_tokens=2
    )
    everywhere = tuple(range(N_TOKENS))
    assert spec_of(place("ATTN_Q")) == ActivationsSpec(HookPoint.ATTN_Q, (0, 1, 2), everywhere)
    assert spec_of(place("LOGITS", tokenIndices=[-1])) == ActivationsSpec(HookPoint.LOGITS, (None,), (LAST,))
    found = spec_of(place("ONLINE_AUTOENCODER_LATENT", passType="PASS_TYPE_BACKWARD"), MLP_AUTOENCODER)
    assert found.pass_type is PassType.BACKWARD
    assert found.layers == MLP_AUTOENCODER.autoencoders[0].layers
    assert spec_of(totals("MLP_WRITE_NORM")) == ComponentTotalsSpec((DerivedScalar.MLP_WRITE_NORM,))


@pytest.mark.parametrize(
    ("change", "n_numbers"),
    [
        (place("ATTN_QK_PROBS", tokenIndices=[0, 1]), 3 * 2 * N_TOKENS * 4),
        (place("LOGITS"), N_TOKENS * 1000),
        (lens(vocabTokenIds=[1, 2], layerIndices=[0]), 2 * 2),
        (totals("UNFLATTENED_ATTN_WRITE_NORM", "TOKEN_ATTRIBUTION"), 3 * 4 + 1),
    ],
)
def test_an_answer_is_known_to_have_its_tensors(change: Change, n_numbers: int) -> None:
    cost = estimated_cost(model(), parse(infer(change)))
    assert cost.least_response_bytes == 4 * n_numbers
    assert cost.response_bytes > 4 * n_numbers


def test_only_gradients_need_a_backward_pass() -> None:
    assert not estimated_cost(model(), parse(infer(place("ATTN_Q")))).needs_gradient
    assert not estimated_cost(model(), parse(infer(totals("MLP_WRITE_NORM")))).needs_gradient
    backward = place("ATTN_Q", passType="PASS_TYPE_BACKWARD")
    assert estimated_cost(model(), parse(infer(backward))).needs_gradient
    assert estimated_cost(model(), parse(infer(totals("TOKEN_ATTRIBUTION")))).needs_gradient


def messages_of(result: ProcessingResult, chunk_bytes: int) -> list[StreamInferResponse]:
    writer = StreamWriter(StreamInferResponse, TOKENIZER, [[0]], chunk_bytes)
    return list(writer.result(NamedResult(0, "x", result)))


def test_places_follow_in_chunks() -> None:
    dimensions = (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS)
    arrays = [np.full((2, 50), value, np.float32) for value in (1.0, -np.inf)]
    layers = tuple((layer, LabelledArray(one, dimensions)) for layer, one in enumerate(arrays))
    first, *chunks = messages_of(ActivationsResult(layers, (0, 4)), 400)
    told = first.result.result.activations
    assert [one.layer_index for one in told.layers] == [0, 1]
    assert list(told.token_indices) == [0, 4]
    (waiting,) = [one for one in told.layers if one.activations.HasField("chunked")]
    assert b"".join(one.tensor_chunk.data for one in chunks) == arrays[waiting.layer_index].tobytes()
    without_layers = ActivationsResult(((None, layers[0][1]),), (0, 4))
    (message,) = messages_of(without_layers, 4000)
    assert not message.result.result.activations.layers[0].HasField("layer_index")


def test_lenses_and_totals_as_messages() -> None:
    ids = np.array([[5, 6], [7, 8]])
    result = LensResult((1,), (3,), (9,), np.ones((2, 1, 1), np.float32), ids, np.ones((2, 2), np.float32))
    (message,) = messages_of(result, 4000)
    told = message.result.result.lens
    assert list(told.logits.shape) == [2, 1, 1]
    assert list(told.vocab_tokens.token_strings) == TOKENIZER.token_strings([9])
    assert [list(one.token_ids) for one in told.top_tokens] == ids.tolist()
    assert list(told.top_tokens[1].token_strings) == TOKENIZER.token_strings([7, 8])
    total = LabelledArray(np.ones((3, 4), np.float32), (Dimension.LAYERS, Dimension.ATTN_HEADS))
    (message,) = messages_of(ComponentTotalsResult({DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM: total}), 4000)
    (found,) = message.result.result.component_totals.totals
    assert list(found.total.dims) == [activation_pb2.DIMENSION_LAYERS, activation_pb2.DIMENSION_ATTN_HEADS]
