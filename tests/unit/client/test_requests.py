from __future__ import annotations

from typing import Any

import pytest
from tdb_client import (
    Ablation,
    AblationSpec,
    ActivationIndex,
    DebugSubRequest,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    Loss,
    MultipleTopKSpec,
    NodeError,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    Trace,
    UnknownNameError,
    head,
    neuron,
)
from tdb_client.encoding import debug_request, estimate_request, infer_request
from tdb_client.names import enum_name, enum_value, known_names
from tdb_client.requests import prompts_to_tokenize, resolve
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType, GroupId

POST_ATTN = service_pb2.COMPONENT_TYPE_FOR_RESIDUAL_STREAM_POST_ATTN_LATENT
POST_MLP = service_pb2.COMPONENT_TYPE_FOR_RESIDUAL_STREAM_POST_MLP_LATENT


def test_plain_words_make_the_same_request_as_dataclasses() -> None:
    spelled = DebugSubRequest.of(
        "a prompt",
        " Mary",
        [" John", " Tom"],
        ablate=["L9 head 6 @ 3", "L1 neuron 2 @ 0 = 2.5"],
        trace="L9 head 6 @ 3 -> 2 through V",
        downstream=neuron(11, 5, token=3),
    )
    assert spelled == DebugSubRequest(
        "a prompt",
        (" Mary",),
        (" John", " Tom"),
        ablate=(Ablation(head(9, 6, token=3)), Ablation(neuron(1, 2, token=0), 2.5)),
        trace=Trace(head(9, 6, token=3, attended_to=2), "V"),
        downstream=Trace(neuron(11, 5, token=3)),
    )


def test_debug_requests_on_the_wire() -> None:
    sub_request = DebugSubRequest.of(
        "a prompt",
        " Mary",
        k=4,
        ablate=[head(9, 6, token=3), Ablation(neuron(1, 2, token=0), 2.5)],
        trace=Trace(head(9, 6, token=3, attended_to=2), "V"),
        downstream=neuron(11, 5, token=3),
        mlp="autoencoder_latent",
        residual_stream="post_mlp_latent",
        hide_early_layers=True,
    )
    message = debug_request([sub_request], request_id="mine").sub_requests[0]
    assert message.target_tokens == [" Mary"]
    assert message.top_and_bottom_k == 4
    assert message.component_type_for_mlp == service_pb2.COMPONENT_TYPE_FOR_MLP_AUTOENCODER_LATENT
    assert list(message.component_types_for_residual_stream) == [POST_MLP]
    assert message.hide_early_layers_when_ablating
    assert message.node_ablations[0].node_index.tensor_indices == [3, 0, 6]
    assert message.node_ablations[1].value == 2.5
    assert message.upstream_node_to_trace.node_index.tensor_indices == [3, 2, 6]
    assert message.upstream_node_to_trace.attention_trace_type == 4
    assert message.downstream_node_to_trace.node_index.layer_index == 11
    assert not message.downstream_node_to_trace.attention_trace_type


def test_latents_of_the_residual_stream_are_none_one_or_several() -> None:
    none, several = debug_request(
        [
            DebugSubRequest("a prompt"),
            DebugSubRequest.of("a prompt", residual_stream=["post_mlp_latent", "post_attn_latent"]),
        ]
    ).sub_requests
    assert not none.component_types_for_residual_stream
    assert list(several.component_types_for_residual_stream) == [POST_MLP, POST_ATTN]
    loose: Any = "post_mlp_latent"
    assert DebugSubRequest("p", residual_stream=loose).residual_stream == ("post_mlp_latent",)
    with pytest.raises(UnknownNameError, match="it is one of post_attn_latent, post_mlp_latent"):
        debug_request([DebugSubRequest.of("p", residual_stream="post_emb_latent")])  # type: ignore[arg-type]


def test_traced_heads_need_an_attended_to_token() -> None:
    with pytest.raises(NodeError, match=r"say which token it attends to, as in 'L9 head 6 @ 3 -> 0'"):
        debug_request([DebugSubRequest.of("a prompt", " Mary", trace=Trace(head(9, 6, token=3), "V"))])


def test_tokens_are_counted_only_where_needed() -> None:
    plain = DebugSubRequest.of("one", " Mary", ablate=["L9 head 6 @ 3"])
    from_end = DebugSubRequest.of(
        "two", " Mary", ablate=["L9 head 6 @ -1"], trace="L9 head 6 @ -1 -> -2 through Q"
    )
    inference = InferenceSubRequest(
        "three", trace=Trace(neuron(5, 1, token=0)), downstream=Trace(neuron(5, 1, token=-4))
    )
    assert prompts_to_tokenize([plain, from_end, from_end, inference]) == [("two", None), ("three", None)]
    lengths: dict[tuple[str, bool | None], int] = {("two", None): 7, ("three", None): 4}
    assert resolve(plain, lengths) is plain
    resolved = resolve(from_end, lengths)
    assert [str(one) for one in resolved.ablate] == ["L9 head 6 @ 6"]
    assert str(resolved.trace) == "L9 head 6 @ 6 -> 5 through Q"
    assert str(resolve(inference, lengths).downstream) == "L5 neuron 1 @ 0"


def test_general_requests_on_the_wire() -> None:
    request = InferenceSubRequest(
        "a prompt",
        loss=Loss("probs", (" Mary",)),
        trace=Trace(head(9, 6, token=3, attended_to=2), "V", post_act=True),
        downstream=Trace(neuron(11, 5, token=3)),
        ablate=(AblationSpec(ActivationIndex("attn.qk_probs", 3, (5, None, 2), "backward"), 0.5),),
        within_layer_gradient=ActivationIndex("online_autoencoder_latent", 1, (None, 9)),
        results={
            "top": MultipleTopKSpec(
                {"act_times_grad": ["mlp_act_times_grad"]}, 3, token=-1, keep=["sequence_tokens"]
            ),
            "one": DerivedScalarsSpec("mlp_post_act", 2, 7, "backward", normalizer=2.0),
            "own": DerivedScalarsSpec("mlp_post_act", 2, 7, normalize_by_prompt_maximum=True),
            "pairs": DerivedAttentionScalarsSpec("attn_qk_probs", 2, 7, max_scalar=0.5),
            "words": ScoredTokensSpec("top", n_tokens=4),
            "reads": TokenPairAttributionSpec("top"),
        },
    )
    message = infer_request([request]).sub_requests[0]
    spec = message.inference_spec
    assert spec.loss_fn_config.target_tokens == [" Mary"]
    assert spec.trace_config.pre_or_post_act == 2
    assert spec.trace_config.downstream_trace_config.node_index.layer_index == 11
    ablation = spec.ablation_specs[0]
    assert [one.WhichOneof("index_kind") for one in ablation.index.tensor_indices] == [
        "index",
        "all",
        "index",
    ]
    assert ablation.index.pass_type == 2
    assert spec.activation_index_for_within_layer_grad.tensor_indices[1].index == 9
    top, one, own, pairs, words, reads = message.processing_specs
    assert top.multiple_top_k.groups[0].group_id == GroupId.GROUP_ID_ACT_TIMES_GRAD
    assert top.multiple_top_k.token_index == -1
    assert one.derived_scalars.derived_scalar_type == DerivedScalarType.DERIVED_SCALAR_TYPE_MLP_POST_ACT
    assert not one.derived_scalars.HasField("num_top_tokens")
    assert not one.derived_scalars.normalize_by_prompt_maximum
    assert own.derived_scalars.normalize_by_prompt_maximum
    assert not own.derived_scalars.HasField("normalizer")
    assert pairs.derived_attention_scalars.max_scalar == 0.5
    assert words.scored_tokens.num_tokens == 4
    assert reads.token_pair_attribution.num_tokens_attended_to == 3


def test_a_downstream_node_needs_something_traced() -> None:
    with pytest.raises(NodeError, match="downstream of nothing"):
        infer_request([InferenceSubRequest("a prompt", downstream=Trace(neuron(1, 1, token=0)))])


def test_estimates_are_of_one_kind() -> None:
    debug, inference = DebugSubRequest("a", (" b",)), InferenceSubRequest("a")
    assert isinstance(estimate_request([debug]), service_pb2.DebugRequest)
    assert isinstance(estimate_request([inference]), service_pb2.InferRequest)
    assert estimate_request([inference]).validate_only
    with pytest.raises(TypeError, match="cannot share a call"):
        estimate_request([debug, inference])


def test_names_of_the_protos() -> None:
    for name in ("mlp_write_norm", "MLP_WRITE_NORM", "mlp.write_norm"):
        assert enum_value(DerivedScalarType, name) == DerivedScalarType.DERIVED_SCALAR_TYPE_MLP_WRITE_NORM
    assert enum_name(GroupId, GroupId.GROUP_ID_ACT_TIMES_GRAD) == "act_times_grad"
    assert enum_name(GroupId, 999) == "999"  # type: ignore[arg-type]
    with pytest.raises(
        UnknownNameError, match=r"unknown derived scalar type 'mlp_writenorm'; did you mean mlp_write_norm\?"
    ):
        enum_value(DerivedScalarType, "mlp_writenorm")
    with pytest.raises(
        UnknownNameError, match="unknown group id 'x'; it is one of write_norm, act_times_grad"
    ):
        enum_value(GroupId, "x")
    with pytest.raises(UnknownNameError) as nothing_near:
        enum_value(DerivedScalarType, "nonsense")
    names = str(nothing_near.value).removeprefix("unknown derived scalar type 'nonsense'; it is one of ")
    assert names.split(", ") == known_names(DerivedScalarType)
    assert names.startswith("logits, ")
    assert len(known_names(DerivedScalarType)) == len(DerivedScalarType.keys()) - 1


def test_nodes_may_be_spelled_wherever_one_is_named() -> None:
    words = (
        "L1 head 2 @ 3",
        "L1 head 2 @ 3 -> 1 = 0.5",
        neuron(0, 5, token=3),
        Ablation(head(1, 0, token=2)),
    )
    meant = (
        Ablation(head(1, 2, token=3)),
        Ablation(head(1, 2, token=3, attended_to=1), 0.5),
        Ablation(neuron(0, 5, token=3)),
        Ablation(head(1, 0, token=2)),
    )
    for kind in (DebugSubRequest, InferenceSubRequest):
        assert kind.of("p", ablate=words).ablate == meant
        assert kind("p", ablate=list(words)).ablate == meant
        assert kind.of("p", ablate="L1 head 2 @ 3").ablate == meant[:1]
        assert kind.of("p", ablate=head(1, 2, token=3)).ablate == meant[:1]
        for trace in ("L0 neuron 5 @ 3", neuron(0, 5, token=3), Trace(neuron(0, 5, token=3))):
            asked = kind("p", trace=trace, downstream=trace)
            assert asked.trace == asked.downstream == Trace(neuron(0, 5, token=3))
    assert Ablation("L1 head 2 @ 3").node == Trace("L1 head 2 @ 3", "Q").node == head(1, 2, token=3)


def test_nodes_of_general_requests_are_cells_of_places() -> None:
    spec = AblationSpec(ActivationIndex("resid_ln_f_scale", None, (None, None), "backward"))
    asked = InferenceSubRequest.of(
        "p", ablate=["L1 head 2 @ -1", "L1 head 2 @ -1 -> 0 = 0.5", "L0 mlp latent 5 @ 3 = 2", spec]
    )
    (request,) = infer_request([resolve(asked, {("p", None): 4})]).sub_requests
    cells = [
        ([one.index if one.HasField("index") else None for one in spec.index.tensor_indices], spec.value)
        for spec in request.inference_spec.ablation_specs
    ]
    assert cells == [([3, None, 2], 0), ([3, 0, 2], 0.5), ([3, 5], 2), ([None, None], 0)]
    with pytest.raises(NodeError, match="embedding @ 1 cannot be ablated"):
        infer_request([InferenceSubRequest.of("p", ablate="embedding @ 1")])


def test_an_arrow_means_the_pair_and_no_arrow_the_row() -> None:
    asked = DebugSubRequest.of("p", "t", ablate=["L1 head 2 @ 3", "L1 head 2 @ 3 -> 1", "L0 neuron 5 @ 3"])
    row, pair, neuron_ablation = debug_request([asked]).sub_requests[0].node_ablations
    assert (row.attended_to_token_only, list(row.node_index.tensor_indices)) == (False, [3, 0, 2])
    assert (pair.attended_to_token_only, list(pair.node_index.tensor_indices)) == (True, [3, 1, 2])
    assert not neuron_ablation.attended_to_token_only
    assert [str(one) for one in asked.ablate] == ["L1 head 2 @ 3", "L1 head 2 @ 3 -> 1", "L0 neuron 5 @ 3"]
