"""Arrays, results and the model on the wire."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import AutoencoderInfo, Site
from tdb_server.domain.node import Dimension, NodeIndex, NodeType
from tdb_server.domain.reason import Reason
from tdb_server.domain.results import (
    AttentionTotals,
    DerivedAttentionScalarsResult,
    GroupResult,
    LabelledArray,
    MultipleTopKResult,
    NamedResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.service.enum_names import DERIVED_SCALARS, HOOK_POINTS, NODE_TYPES
from tdb_server.service.model_messages import model_info_message
from tdb_server.service.result_messages import put_named_result
from tdb_server.service.tensor_messages import put_tensor, tensor_array
from transformer_debugger.v1 import activation_pb2, error_pb2, tensor_pb2
from transformer_debugger.v1.model_service_pb2 import AutoencoderInputNorm
from transformer_debugger.v1.result_pb2 import NamedResult as Message

from tests.unit.service.tiny_requests import TOKENIZER, model

TOKENS, PAIRS = (
    (Dimension.SEQUENCE_TOKENS,),
    (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS),
)
HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 0))
EMBEDDING = NodeIndex(NodeType.LAYER, None, (3, 0))


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int32", "int64", "uint8", "bool", ">f4"])
def test_tensors_there_and_back(kind: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind).T
    message = tensor_pb2.Tensor()
    put_tensor(message, array, PAIRS)
    assert list(message.shape) == [3, 2]
    assert list(message.dims) == [
        activation_pb2.DIMENSION_SEQUENCE_TOKENS,
        activation_pb2.DIMENSION_ATTENDED_TO_SEQUENCE_TOKENS,
    ]
    assert message.data == np.ascontiguousarray(array).astype(np.dtype(kind).newbyteorder("<")).tobytes()
    assert np.array_equal(tensor_array(message), array)


def test_tensors_of_no_axes_and_of_no_elements() -> None:
    scalar, empty = tensor_pb2.Tensor(), tensor_pb2.Tensor()
    put_tensor(scalar, np.array(2.5), ())
    put_tensor(empty, np.zeros((0,)), TOKENS)
    assert tensor_array(scalar) == 2.5
    assert tensor_array(empty).shape == (0,)


def message_of(result: Any) -> Message:
    message = Message()
    put_named_result(message, NamedResult(0, "name", result), TOKENIZER, [464, 269])
    return message


def top_tokens(*rows: list[int]) -> TopTokens:
    ids = np.array(rows).reshape(len(rows), -1)
    scalars = ids.astype(np.float32)
    return TopTokens(ids, scalars, scalars / 1000, ids[:, ::-1], -scalars, -scalars / 1000)


def test_multiple_top_k() -> None:
    sums = {DerivedScalar.ATTN_QK_PROBS: LabelledArray(np.eye(2, dtype=np.float32), PAIRS)}
    groups = {
        GroupId.WRITE_NORM: GroupResult(np.array([1.0, 2.0], np.float32), {}),
        GroupId.ACTIVATION: GroupResult(np.array([3.0, 4.0], np.float32), sums),
    }
    found = message_of(MultipleTopKResult((HEAD, EMBEDDING), groups))
    assert found.name == "name"
    head, embedding = found.multiple_top_k.node_indices
    assert (head.node_type, head.layer_index, list(head.tensor_indices)) == (
        NODE_TYPES.numbers[NodeType.ATTENTION_HEAD],
        1,
        [4, 2, 0],
    )
    assert not embedding.HasField("layer_index")
    write_norm, activation = found.multiple_top_k.groups
    assert list(write_norm.activations.dims) == [activation_pb2.DIMENSION_NODES]
    assert tensor_array(activation.activations).tolist() == [3.0, 4.0]
    (one_sum,) = activation.sums
    assert one_sum.derived_scalar_type == DERIVED_SCALARS.numbers[DerivedScalar.ATTN_QK_PROBS]
    assert tensor_array(one_sum.sum).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert not found.multiple_top_k.vocab_token_strings


def test_logits_have_the_texts_of_their_tokens() -> None:
    nodes = tuple(NodeIndex(NodeType.VOCAB_TOKEN, None, (8, token)) for token in (464, 269))
    found = message_of(MultipleTopKResult(nodes, {}))
    assert list(found.multiple_top_k.vocab_token_strings) == ["The", " c"]


def test_scored_tokens() -> None:
    result = ScoredTokensResult((HEAD, EMBEDDING), np.array([-1, 0]), top_tokens([464, 269]))
    without, having = message_of(result).scored_tokens.node_top_tokens
    assert not without.HasField("top_tokens")
    assert list(having.top_tokens.top.token_ids) == [464, 269]
    assert list(having.top_tokens.top.tokens) == ["The", " c"]
    assert list(having.top_tokens.bottom.tokens) == [" c", "The"]
    assert list(having.top_tokens.bottom.scalars) == [-464.0, -269.0]


def test_results_about_no_nodes_are_results() -> None:
    nothing = np.zeros((0, 3))
    assert message_of(MultipleTopKResult((), {})).HasField("multiple_top_k")
    scored = ScoredTokensResult((), np.zeros(0, int), TopTokens(*[nothing.astype(int)] * 6))
    assert message_of(scored).HasField("scored_tokens")
    pairs = TokenPairAttributionResult((), np.zeros(0, int), nothing.astype(int), nothing)
    assert message_of(pairs).HasField("token_pair_attribution")


def test_token_pair_attribution() -> None:
    result = TokenPairAttributionResult(
        (HEAD, EMBEDDING), np.array([0, -1]), np.array([[5, 1, 0]]), np.array([[3.0, 2.0, 1.0]])
    )
    having, without = message_of(result).token_pair_attribution.node_attended_to_tokens
    assert list(having.attended_to_tokens.token_indices) == [5, 1, 0]
    assert list(having.attended_to_tokens.attributions) == [3.0, 2.0, 1.0]
    assert not without.HasField("attended_to_tokens")


def test_derived_attention_scalars_have_the_prompts_tokens() -> None:
    columns = [np.array([float(i), float(i)]) for i in range(8)]
    totals = AttentionTotals(*columns[:4]), AttentionTotals(*columns[4:])
    result = DerivedAttentionScalarsResult(np.eye(2), np.eye(2) / 2, *totals)
    found = message_of(result).derived_attention_scalars
    assert list(found.tokens) == ["The", " c"]
    tensors = [value for field, value in found.ListFields() if field.name.endswith(("_in", "_out"))]
    assert [tensor_array(one)[0] for one in tensors] == list(range(8))


def test_the_model() -> None:
    info = replace(model(Site.RESID_DELTA_MLP), dtype="bfloat16")
    message = model_info_message(info, Limits(max_prompt_tokens=20), "1.2.3")
    assert (message.name, message.n_mlp_neurons, message.vocab_size) == ("tiny-a", 192, 1000)
    assert message.dtype == tensor_pb2.D_TYPE_BFLOAT16
    assert (message.limits.max_prompt_tokens, message.limits.max_sub_requests) == (20, 128)
    assert (message.api_version, message.server_version) == ("v1", "1.2.3")
    (autoencoder,) = message.autoencoders
    assert (autoencoder.n_latents, list(autoencoder.layer_indices)) == (96, [0, 1, 2])
    assert not autoencoder.HasField("k")
    missing = set(DERIVED_SCALARS.numbers.values()) - set(message.derived_scalar_types)
    names = {DERIVED_SCALARS.members[one].value for one in missing}
    assert "attn_write_to_latent_summed_over_heads" in names
    for absent in ("attention_autoencoder", "resid_post_attn", "resid_post_mlp", "mlp_transcoder"):
        assert len([one for one in names if one.startswith(f"online_{absent}")]) == 5
    assert len(names) == 21
    assert HOOK_POINTS.numbers[HookPoint.ONLINE_AUTOENCODER_LATENT] in message.ablatable_location_types
    error = HOOK_POINTS.numbers[HookPoint.ONLINE_ATTENTION_AUTOENCODER_ERROR]
    assert error not in message.ablatable_location_types


def test_the_k_of_an_autoencoder() -> None:
    info = replace(model(), autoencoders=(AutoencoderInfo(Site.MLP_POST_ACT, 8, (0,), "topk(5)"),))
    (autoencoder,) = model_info_message(info, Limits(), "1.2.3").autoencoders
    assert (autoencoder.activation, autoencoder.k) == (2, 5)


def test_whether_an_autoencoders_inputs_are_normed() -> None:
    for norms_inputs, name in ((False, "NONE"), (True, "LAYER_NORM")):
        known = AutoencoderInfo(Site.MLP_POST_ACT, 8, (0,), "relu", norms_inputs=norms_inputs)
        info = replace(model(), autoencoders=(known,))
        (autoencoder,) = model_info_message(info, Limits(), "1.2.3").autoencoders
        told = AutoencoderInputNorm.Name(autoencoder.input_norm)
        assert told == f"AUTOENCODER_INPUT_NORM_{name}"


def test_two_autoencoders_leave_no_single_one() -> None:
    message = model_info_message(model(Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN), Limits(), "1.2.3")
    missing = set(DERIVED_SCALARS.numbers.values()) - set(message.derived_scalar_types)
    kinds = ("online_autoencoder", "online_resid_post_attn", "online_resid_post_mlp", "online_mlp_transcoder")
    assert {DERIVED_SCALARS.members[one].value.startswith(kinds) for one in missing} == {True}
    assert len(missing) == 20


def test_reasons_are_those_of_the_protos() -> None:
    assert {f"ERROR_REASON_{one.value}" for one in Reason} <= set(error_pb2.ErrorReason.keys())
