"""Bodies of the reference's API become requests, with nothing lost and nothing unreadable let through."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import BackwardRule, LossName
from tdb_server.errors import InvalidRequest
from tdb_server.gateway.json_requests import (
    debug_request,
    edges_request,
    infer_request,
    single_infer_request,
)
from tdb_server.service.enum_names import (
    ATTENTION_COMPONENTS,
    ATTENTION_TRACE_TYPES,
    BACKWARD_RULES,
    DERIVED_SCALARS,
    DIMENSIONS,
    GROUP_IDS,
    HOOK_POINTS,
    LOSS_NAMES,
    MLP_COMPONENTS,
    NODE_TYPES,
    PASS_TYPES,
)
from transformer_debugger.v1.ablation_pb2 import ABLATION_VALUE_TYPE_ADD, ABLATION_VALUE_TYPE_BASELINE
from transformer_debugger.v1.activation_pb2 import ActivationIndex
from transformer_debugger.v1.edges_pb2 import EDGE_METHOD_EAP_IG, EdgesSubRequest
from transformer_debugger.v1.node_pb2 import NODE_TYPE_WHOLE_HEAD, NODE_TYPE_WHOLE_MLP, NodeIndex
from transformer_debugger.v1.processing_pb2 import (
    ActivationsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    LensSpec,
    MultipleTopKSpec,
)
from transformer_debugger.v1.trace_pb2 import NodeToTrace
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    ComponentTypeForResidualStream,
    DebugRequest,
    DebugSubRequest,
    InferenceSpec,
    InferRequest,
)

GOLDENS = sorted((Path(__file__).parents[2] / "golden").glob("*/*.json.gz"))


def read(path: Path) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return golden


def translated(endpoint: str, body: Any) -> DebugRequest | InferRequest:
    if endpoint == "batched_tdb":
        return debug_request(body)
    return infer_request(body) if endpoint == "batched" else single_infer_request(endpoint, body)


def body_of(message: Any) -> Any:
    """The body that a request must have come from, as far as goldens go."""
    match message:
        case DebugRequest():
            return {"subRequests": [body_of(one) for one in message.sub_requests]}
        case DebugSubRequest():
            return {
                "prompt": message.prompt,
                "targetTokens": list(message.target_tokens),
                "distractorTokens": list(message.distractor_tokens),
                "componentTypeForMlp": MLP_COMPONENTS.members[message.component_type_for_mlp].value,
                "componentTypeForAttention": (
                    ATTENTION_COMPONENTS.members[message.component_type_for_attention].value
                ),
                "topAndBottomKForNodeTable": message.top_and_bottom_k,
                "hideEarlyLayersWhenAblating": message.hide_early_layers_when_ablating,
                "nodeAblations": [
                    {"nodeIndex": body_of(one.node_index), "value": one.value}
                    for one in message.node_ablations
                ],
                "upstreamNodeToTrace": optional(message, "upstream_node_to_trace"),
                "downstreamNodeToTrace": optional(message, "downstream_node_to_trace"),
            }
        case NodeToTrace():
            trace_type = ATTENTION_TRACE_TYPES.members.get(message.attention_trace_type)
            return {
                "nodeIndex": body_of(message.node_index),
                "attentionTraceType": trace_type and trace_type.value,
                "downstreamTraceConfig": None,
            }
        case NodeIndex():
            return {
                "nodeType": NODE_TYPES.members[message.node_type].value,
                "layerIndex": message.layer_index if message.HasField("layer_index") else None,
                "tensorIndices": list(message.tensor_indices),
                "passType": PASS_TYPES.members[message.pass_type].value,
            }
        case ActivationIndex():
            return {
                "activationLocationType": HOOK_POINTS.members[message.activation_location_type].value,
                "layerIndex": message.layer_index if message.HasField("layer_index") else None,
                "tensorIndices": ["All" if one.all else one.index for one in message.tensor_indices],
                "passType": PASS_TYPES.members[message.pass_type].value,
            }
        case InferenceSpec():
            loss = message.loss_fn_config
            return {
                "prompt": message.prompt,
                "lossFnConfig": {
                    "name": LOSS_NAMES.members[loss.name].value,
                    "targetTokens": list(loss.target_tokens),
                    "distractorTokens": list(loss.distractor_tokens),
                },
                "ablationSpecs": [
                    {"index": body_of(one.index), "value": one.value} for one in message.ablation_specs
                ],
                "activationIndexForWithinLayerGrad": optional(
                    message, "activation_index_for_within_layer_grad"
                ),
            }
        case MultipleTopKSpec():
            return {
                "dstListByGroupId": {
                    GROUP_IDS.members[group.group_id].value: [
                        DERIVED_SCALARS.members[scalar].value for scalar in group.derived_scalar_types
                    ]
                    for group in message.groups
                },
                "tokenIndex": message.token_index if message.HasField("token_index") else None,
                "topAndBottomK": message.top_and_bottom_k,
                "passType": pass_name(message.pass_type),
                "dimensionsToKeepForIntermediateSum": [
                    DIMENSIONS.members[one].value for one in message.dimensions_to_keep_for_sum
                ],
            }
        case DerivedScalarsSpec() | DerivedAttentionScalarsSpec():
            body = {
                "dst": DERIVED_SCALARS.members[message.derived_scalar_type].value,
                "layerIndex": message.layer_index if message.HasField("layer_index") else None,
                "activationIndex": message.activation_index,
            }
            if isinstance(message, DerivedScalarsSpec):
                body["passType"] = pass_name(message.pass_type)
                body["numTopTokens"] = message.num_top_tokens if message.HasField("num_top_tokens") else None
            return body
    raise TypeError(type(message))


def optional(message: Any, field: str) -> Any:
    return body_of(getattr(message, field)) if message.HasField(field) else None


def pass_name(number: int) -> str | None:
    return PASS_TYPES.members[number].value if number else None


def without_nothing(value: Any) -> Any:
    """The body less its nulls and empty lists, which mean the same as no key."""
    if isinstance(value, dict):
        kept = {key: without_nothing(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one not in (None, [])}
    return [without_nothing(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_golden_request_without_loss(path: Path) -> None:
    golden = read(path)
    request = translated(golden["endpoint"], golden["request"])
    if isinstance(request, DebugRequest):
        found = body_of(request)
    elif golden["endpoint"] == "batched":
        found = {
            "inferenceSubRequests": [
                {
                    "inferenceRequestSpec": body_of(one.inference_spec),
                    "processingRequestSpecByName": {
                        spec.name: body_of(spec.multiple_top_k) for spec in one.processing_specs
                    },
                }
                for one in request.sub_requests
            ]
        }
    else:
        (sub_request,) = request.sub_requests
        (spec,) = sub_request.processing_specs
        found = {
            "inferenceRequestSpec": body_of(sub_request.inference_spec),
            to_camel(f"{golden['endpoint']}_request_spec"): body_of(
                getattr(spec, spec.WhichOneof("spec") or "")
            ),
        }
    assert without_nothing(found) == without_nothing(golden["request"])


def test_lenses_and_places_as_they_are() -> None:
    specs = {
        "lens": {
            "specType": "lens_request_spec",
            "place": "resid.post_attn",
            "layerIndices": [0, 2],
            "tokenIndices": [-1],
            "vocabTokens": [" Mary"],
            "vocabTokenIds": [7],
            "numTopTokens": 3,
        },
        "place": {
            "activationLocationType": "attn.qk_probs",
            "layerIndices": [1],
            "tokenIndices": [0],
            "passType": "backward",
        },
    }
    request = infer_request({"inferenceSubRequests": [{"processingRequestSpecByName": specs}]})
    lens, place = request.sub_requests[0].processing_specs
    assert lens.lens == LensSpec(
        place=HOOK_POINTS.numbers[HookPoint.RESID_POST_ATTN],
        layer_indices=[0, 2],
        token_indices=[-1],
        vocab_tokens=[" Mary"],
        vocab_token_ids=[7],
        num_top_tokens=3,
    )
    assert place.activations == ActivationsSpec(
        activation_location_type=HOOK_POINTS.numbers[HookPoint.ATTN_QK_PROBS],
        layer_indices=[1],
        token_indices=[0],
        pass_type=PASS_TYPES.numbers[PassType.BACKWARD],
    )


def test_edges() -> None:
    body = {
        "prompt": "a",
        "addBos": False,
        "baselinePrompts": ["b", "c"],
        "lossFnConfig": {"name": "log_prob", "targetTokens": [" x"]},
        "method": "eap_ig",
        "steps": 3,
        "topK": 20,
        "wholeMatrix": True,
    }
    (found,) = edges_request({"subRequests": [body]}).sub_requests
    wanted = EdgesSubRequest(
        prompt="a",
        add_bos=False,
        baseline_prompts=["b", "c"],
        method=EDGE_METHOD_EAP_IG,
        steps=3,
        top_k=20,
        whole_matrix=True,
    )
    wanted.loss_fn_config.name = LOSS_NAMES.numbers[LossName.LOG_PROB]
    wanted.loss_fn_config.target_tokens.append(" x")
    assert found == wanted
    with pytest.raises(InvalidRequest) as caught:
        edges_request({"subRequests": [{**body, "method": "acdc"}]})
    assert [one.field for one in caught.value.violations] == ["subRequests[0].method"]


def test_a_single_spec_is_named_after_its_answer() -> None:
    request = single_infer_request("derived_scalars", {"derivedScalarsRequestSpec": {"dst": "logits"}})
    (spec,) = request.sub_requests[0].processing_specs
    assert spec.name == "derivedScalarsResponseData"
    assert not request.sub_requests[0].HasField("inference_spec")


PAIRS_SPEC = {"dst": "attn_qk_probs", "layerIndex": 0, "activationIndex": 1}


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"dstListByGroupId": {"logits": ["logits"]}}, "multiple_top_k"),
        ({"dst": "logits"}, "derived_scalars"),
        (PAIRS_SPEC, "derived_attention_scalars"),
        ({**PAIRS_SPEC, "specType": "derived_scalars_request_spec"}, "derived_scalars"),
        ({**PAIRS_SPEC, "specType": "derived_attention_scalars_request_spec"}, "derived_attention_scalars"),
        (
            {"tokenScoringType": "upvoted_output_tokens", "numTokens": 3, "dependsOnSpecName": "a"},
            "scored_tokens",
        ),
        ({"numTokensAttendedTo": 3, "dependsOnSpecName": "a"}, "token_pair_attribution"),
    ],
)
def test_spec_types_are_said_or_told(spec: dict[str, Any], kind: str) -> None:
    request = infer_request({"inferenceSubRequests": [{"processingRequestSpecByName": {"x": spec}}]})
    (named,) = request.sub_requests[0].processing_specs
    assert named.WhichOneof("spec") == kind


def test_axes_that_are_left_out_are_all() -> None:
    index = {"activationLocationType": "attn.qk_probs", "layerIndex": 1, "tensorIndices": [3]}
    body = {
        "inferenceSubRequests": [{"inferenceRequestSpec": {"ablationSpecs": [{"index": index, "value": 2}]}}]
    }
    (ablation,) = infer_request(body).sub_requests[0].inference_spec.ablation_specs
    assert [one.WhichOneof("index_kind") for one in ablation.index.tensor_indices] == ["index", "all", "all"]
    assert ablation.value == 2.0


def test_unknown_keys_are_ignored() -> None:
    assert (
        debug_request({"subRequests": [{"prompt": "a", "colour": "red"}], "x": 1}).sub_requests[0].prompt
        == "a"
    )


@pytest.mark.parametrize("rule", [None, *BackwardRule])
def test_backward_rules(rule: BackwardRule | None) -> None:
    words = {"backwardRule": rule and rule.value, "attentionPatternGradients": rule and True}
    debug = debug_request(debug_body(**words)).sub_requests[0]
    infer = infer_request(inference_body(**words)).sub_requests[0].inference_spec
    for message in (debug, infer):
        assert message.backward_rule == BACKWARD_RULES.number(rule)
        assert message.attention_pattern_gradients == (rule is not None)


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_the_token_that_begins_a_text(add_bos: bool | None) -> None:
    debug = debug_request(debug_body(addBos=add_bos)).sub_requests[0]
    infer = infer_request(inference_body(addBos=add_bos)).sub_requests[0].inference_spec
    single = single_infer_request(
        "derived_scalars", {"inferenceRequestSpec": {"prompt": "a", "addBos": add_bos}}
    )
    for message in (debug, infer, single.sub_requests[0].inference_spec):
        assert message.HasField("add_bos") == (add_bos is not None)
        assert message.add_bos == bool(add_bos)


def test_targets_by_index() -> None:
    ids = {"targetTokenIds": [198, 5], "distractorTokenIds": [0]}
    debug = debug_request(debug_body(**ids)).sub_requests[0]
    loss = infer_request(inference_body(lossFnConfig={"name": "logit_diff", **ids})).sub_requests[0]
    for message in (debug, loss.inference_spec.loss_fn_config):
        assert (message.target_token_ids, message.distractor_token_ids) == ([198, 5], [0])


def test_components_of_the_residual_stream() -> None:
    places = {"componentTypesForResidualStream": ["post_mlp_latent", "post_attn_latent"]}
    message = debug_request(debug_body(**places)).sub_requests[0]
    assert message.component_types_for_residual_stream == [
        ComponentTypeForResidualStream.COMPONENT_TYPE_FOR_RESIDUAL_STREAM_POST_MLP_LATENT,
        ComponentTypeForResidualStream.COMPONENT_TYPE_FOR_RESIDUAL_STREAM_POST_ATTN_LATENT,
    ]
    for none in ({}, {"componentTypesForResidualStream": None}, {"componentTypesForResidualStream": []}):
        message = debug_request(debug_body(**none)).sub_requests[0]
        assert not message.component_types_for_residual_stream


def test_baselines_values_and_circuits() -> None:
    node = {"nodeType": "whole_head", "tensorIndices": [1, 2], "layerIndex": 0}
    compared = {
        "baselinePrompts": ["b", "c"],
        "onlyThese": {
            "nodeTypes": ["whole_head", "whole_mlp"],
            "nodes": [{"nodeType": "whole_mlp", "layerIndex": 1, "tokenIndex": 0}],
        },
    }
    patch = {"nodeIndex": node, "valueType": "baseline"}
    debug = debug_request(debug_body(nodeAblations=[patch], **compared)).sub_requests[0]
    (ablation,) = debug.node_ablations
    assert (ablation.value_type, ablation.node_index.node_type) == (
        ABLATION_VALUE_TYPE_BASELINE,
        NODE_TYPE_WHOLE_HEAD,
    )
    index = {"activationLocationType": "resid.post_mlp", "layerIndex": 0}
    steered = {"index": index, "value": 2, "valueType": "add", "direction": [1, 0.5]}
    infer = infer_request(inference_body(ablationSpecs=[steered], **compared)).sub_requests[0].inference_spec
    (ablation,) = infer.ablation_specs
    assert (ablation.value_type, ablation.direction) == (ABLATION_VALUE_TYPE_ADD, [1, 0.5])
    for message in (debug, infer):
        assert message.baseline_prompts == ["b", "c"]
        assert message.only_these.node_types == [NODE_TYPE_WHOLE_HEAD, NODE_TYPE_WHOLE_MLP]
        (kept,) = message.only_these.nodes
        assert (kept.node_type, kept.layer_index, kept.token_index) == (NODE_TYPE_WHOLE_MLP, 1, 0)
        assert kept.HasField("token_index")
    plain = debug_request(debug_body()).sub_requests[0]
    assert not plain.HasField("only_these")
    assert not plain.baseline_prompts


def debug_body(**fields: Any) -> dict[str, Any]:
    return {"subRequests": [{"prompt": "a", **fields}]}


def inference_body(**fields: Any) -> dict[str, Any]:
    return {"inferenceSubRequests": [{"inferenceRequestSpec": {"prompt": "a", **fields}}]}


def processing_body(**spec: Any) -> dict[str, Any]:
    return {"inferenceSubRequests": [{"processingRequestSpecByName": {"top": spec}}]}


def nested(levels: int) -> dict[str, Any] | None:
    return {"downstreamTraceConfig": nested(levels - 1)} if levels else None


SUB, INFERENCE = "subRequests[0]", "inferenceSubRequests[0].inferenceRequestSpec"
SPEC = "inferenceSubRequests[0].processingRequestSpecByName.top"
MALFORMED: list[tuple[str, Any, str, str]] = [
    ("batched_tdb", [], "body", "MALFORMED_REQUEST"),
    ("batched_tdb", {"subRequests": {}}, "subRequests", "MALFORMED_REQUEST"),
    ("batched_tdb", {"subRequests": [3]}, SUB, "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(prompt=3), f"{SUB}.prompt", "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(prompt="\ud800"), f"{SUB}.prompt", "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(targetTokens=" a"), f"{SUB}.targetTokens", "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(targetTokens=[None]), f"{SUB}.targetTokens[0]", "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(targetTokenIds=[" a"]), f"{SUB}.targetTokenIds[0]", "MALFORMED_REQUEST"),
    ("batched_tdb", debug_body(distractorTokenIds=[2**31]), f"{SUB}.distractorTokenIds[0]", "OUT_OF_RANGE"),
    ("batched_tdb", debug_body(addBos="yes"), f"{SUB}.addBos", "MALFORMED_REQUEST"),
    ("batched", inference_body(addBos=1), f"{INFERENCE}.addBos", "MALFORMED_REQUEST"),
    (
        "batched_tdb",
        debug_body(componentTypeForMlp="layer"),
        f"{SUB}.componentTypeForMlp",
        "UNKNOWN_ENUM_VALUE",
    ),
    (
        "batched_tdb",
        debug_body(componentTypeForMlp="\ud800"),
        f"{SUB}.componentTypeForMlp",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(componentTypesForResidualStream="post_mlp_latent"),
        f"{SUB}.componentTypesForResidualStream",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(componentTypesForResidualStream=["post_mlp_latent", "neuron"]),
        f"{SUB}.componentTypesForResidualStream[1]",
        "UNKNOWN_ENUM_VALUE",
    ),
    (
        "batched_tdb",
        debug_body(topAndBottomKForNodeTable=2.5),
        f"{SUB}.topAndBottomKForNodeTable",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(topAndBottomKForNodeTable=True),
        f"{SUB}.topAndBottomKForNodeTable",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(topAndBottomKForNodeTable=2**31),
        f"{SUB}.topAndBottomKForNodeTable",
        "OUT_OF_RANGE",
    ),
    (
        "batched_tdb",
        debug_body(hideEarlyLayersWhenAblating=1),
        f"{SUB}.hideEarlyLayersWhenAblating",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(nodeAblations=[{"value": "1"}]),
        f"{SUB}.nodeAblations[0].value",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(nodeAblations=[{"value": 10**400}]),
        f"{SUB}.nodeAblations[0].value",
        "OUT_OF_RANGE",
    ),
    (
        "batched_tdb",
        debug_body(nodeAblations=[{"nodeIndex": {"tensorIndices": [1, None]}}]),
        f"{SUB}.nodeAblations[0].nodeIndex.tensorIndices[1]",
        "MALFORMED_REQUEST",
    ),
    (
        "batched_tdb",
        debug_body(upstreamNodeToTrace={"downstreamTraceConfig": {}}),
        f"{SUB}.upstreamNodeToTrace.downstreamTraceConfig",
        "FIELD_NOT_ALLOWED",
    ),
    (
        "batched",
        inference_body(traceConfig={"detachLayerNormScale": False}),
        f"{INFERENCE}.traceConfig.detachLayerNormScale",
        "FIELD_NOT_ALLOWED",
    ),
    (
        "batched",
        inference_body(traceConfig=nested(4)),
        f"{INFERENCE}.traceConfig.downstreamTraceConfig.downstreamTraceConfig.downstreamTraceConfig",
        "MALFORMED_REQUEST",
    ),
    (
        "batched",
        inference_body(ablationSpecs=[{"index": {"tensorIndices": ["all"]}}]),
        f"{INFERENCE}.ablationSpecs[0].index.tensorIndices[0]",
        "MALFORMED_REQUEST",
    ),
    ("batched", processing_body(dstListByGroupId=[]), f"{SPEC}.dstListByGroupId", "MALFORMED_REQUEST"),
    (
        "batched",
        processing_body(dstListByGroupId={"token_read": []}),
        f"{SPEC}.dstListByGroupId.token_read",
        "UNKNOWN_ENUM_VALUE",
    ),
    (
        "batched",
        processing_body(dstListByGroupId={"logits": ["logit"]}),
        f"{SPEC}.dstListByGroupId.logits[0]",
        "UNKNOWN_ENUM_VALUE",
    ),
    (
        "batched",
        processing_body(dstListByGroupId={"logits": ["logits"]}, dimensionsToKeepForIntermediateSum=[]),
        f"{SPEC}.dimensionsToKeepForIntermediateSum",
        "MALFORMED_REQUEST",
    ),
    (
        "batched",
        {"inferenceSubRequests": [{"processingRequestSpecByName": {"\ud800": {"dst": "logits"}}}]},
        "inferenceSubRequests[0].processingRequestSpecByName.\ufffd\ufffd\ufffd",
        "MALFORMED_REQUEST",
    ),
    ("batched", processing_body(), f"{SPEC}.specType", "FIELD_REQUIRED"),
    ("batched", processing_body(specType="tdb_request_spec"), f"{SPEC}.specType", "UNKNOWN_ENUM_VALUE"),
    ("derived_scalars", {"derivedScalarsRequestSpec": []}, "derivedScalarsRequestSpec", "MALFORMED_REQUEST"),
]


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        debug_request(debug_body(prompt=3, nodeAblations=[{"value": "1", "nodeIndex": []}]))
    assert [one.field for one in caught.value.violations] == [
        f"{SUB}.prompt",
        f"{SUB}.nodeAblations[0].nodeIndex",
        f"{SUB}.nodeAblations[0].value",
    ]


MANY = 20_000


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("batched_tdb", {"subRequests": [0] * MANY}),
        ("batched_tdb", debug_body(targetTokens=[0] * MANY)),
        ("batched_tdb", debug_body(nodeAblations=[{"nodeIndex": {"tensorIndices": ["x"] * MANY}}] * 3)),
        ("batched", inference_body(ablationSpecs=[{"index": {"tensorIndices": ["x"] * MANY}}] * 3)),
        ("batched", processing_body(dstListByGroupId={str(one): [] for one in range(MANY)})),
        ("batched", processing_body(dstListByGroupId={"logits": ["x"] * MANY})),
        ("batched", processing_body(specType="x" * MANY)),
        ("batched", processing_body(dst="x" * MANY)),
        (
            "batched",
            {"inferenceSubRequests": [{"processingRequestSpecByName": {str(one): 0 for one in range(MANY)}}]},
        ),
    ],
)
def test_of_many_faults_the_first_is_told(endpoint: str, body: Any) -> None:
    """A body of megabytes does not end in a message of megabytes."""
    with pytest.raises(InvalidRequest) as caught:
        translated(endpoint, body)
    assert len(caught.value.violations) == 1
    assert len(caught.value.message) < 3000


@pytest.mark.parametrize(("endpoint", "body", "field", "reason"), MALFORMED)
def test_what_cannot_be_read_is_told_with_its_place(
    endpoint: str, body: Any, field: str, reason: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translated(endpoint, body)
    assert [(one.field, one.reason) for one in caught.value.violations] == [(field, reason)]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"subRequests": [{}] * 1025}, "subRequests: has more than the 1024 entries"),
        (
            {"subRequests": [{"nodeAblations": [{}] * 16_385}]},
            "nodeAblations: has more than the 16384 entries",
        ),
        ({"subRequests": [{"targetTokens": [""] * 16_385}]}, "targetTokens: has more than the 16384 entries"),
    ],
)
def test_lists_that_are_absurd(body: Any, fault: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        debug_request(body)
    assert fault in raised.value.message
    assert len(raised.value.violations) == 1
