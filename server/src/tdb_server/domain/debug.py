"""From a TDB sub-request to what is run: the objective, the ablations and the named results.

A TDB request is compact: it names tokens and nodes. This module spells it out as a general inference
sub-request, whose named results stand in a fixed order. Only the choice of components (neurons or latents,
heads or latents, with or without latents of the residual stream) differs between requests; the four groups
are always the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId, Measure
from tdb_server.domain.hook_point import NODE_HOOK_POINTS, WHOLE_HOOK_POINTS, HookPoint
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionComponent,
    AttentionTraceType,
    Component,
    ComponentTotalsSpec,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    ProcessingSpec,
    ResidualStreamComponent,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
    ValueType,
)

N_OUTPUT_TOKENS = 100

_GROUPS = {
    GroupId.WRITE_NORM: (Measure.WRITE_NORM, Measure.VECTOR_NORM),
    GroupId.ACT_TIMES_GRAD: (Measure.ACT_TIMES_GRAD, Measure.VECTOR_TIMES_GRAD),
    GroupId.DIRECTION_WRITE: (Measure.DIRECT_EFFECT, Measure.VECTOR_EFFECT),
    GroupId.ACTIVATION: (Measure.ACTIVATION, Measure.ONE),
}
"""What each group measures of components, and of embeddings."""
_TOTALS = (GroupId.WRITE_NORM, GroupId.ACT_TIMES_GRAD, GroupId.DIRECTION_WRITE)
"""Whose scalars are also given by component."""
COMPONENT_HOOK_POINTS: dict[Component, HookPoint] = {
    MlpComponent.NEURON: HookPoint.MLP_POST_ACT,
    MlpComponent.AUTOENCODER_LATENT: HookPoint.ONLINE_MLP_AUTOENCODER_LATENT,
    MlpComponent.TRANSCODER_LATENT: HookPoint.ONLINE_MLP_TRANSCODER_LATENT,
    AttentionComponent.ATTENTION_HEAD: HookPoint.ATTN_QK_PROBS,
    AttentionComponent.AUTOENCODER_LATENT: HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    MlpComponent.WHOLE_MLP: HookPoint.RESID_DELTA_MLP,
    AttentionComponent.WHOLE_HEAD: HookPoint.ATTN_V_OUT,
    ResidualStreamComponent.POST_ATTN_LATENT: HookPoint.ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT,
    ResidualStreamComponent.POST_MLP_LATENT: HookPoint.ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT,
}
"""Where the activations of each kind of component are."""
_WHOLE_NODE_TYPES: dict[Component, NodeType] = {
    MlpComponent.WHOLE_MLP: NodeType.WHOLE_MLP,
    AttentionComponent.WHOLE_HEAD: NodeType.WHOLE_HEAD,
}
"""Components that are measured as vectors, like embeddings."""
_SCALARS = {
    (one.declared.measure, one.declared.hook_point): one
    for one in DerivedScalar
    if one.declared.node_type not in WHOLE_HOOK_POINTS
}
_OF_WHOLE = {
    (one.declared.measure, one.declared.node_type): one
    for one in DerivedScalar
    if one.declared.node_type in WHOLE_HOOK_POINTS
}

HOLD_FINAL_NORM_SCALE = AblationSpec(
    ActivationIndex(HookPoint.RESID_LN_F_SCALE, None, (None, None), PassType.BACKWARD), 0.0
)
"""The gradient does not flow through the final norm's scale."""


def inference_sub_request(request: DebugSubRequest) -> InferenceSubRequest:
    """The run and the named results that a TDB sub-request stands for."""
    return InferenceSubRequest(_inference(request), _processing(request))


def _inference(request: DebugSubRequest) -> InferenceSpec:
    trace = request.upstream_trace
    loss = request.loss
    if loss is None:
        loss = LossConfig(LossName.LOGIT_DIFF, request.target_tokens, request.distractor_tokens)
    ablations = tuple(node_ablation_spec(one) for one in request.node_ablations)
    return InferenceSpec(
        token_ids=request.token_ids,
        loss=loss if trace is None or traces_towards_loss(trace) else None,
        trace=trace,
        ablations=(*ablations, HOLD_FINAL_NORM_SCALE),
        bos_added=request.bos_added,
        baselines=request.baselines,
        circuit=request.circuit,
        backward_rule=request.backward_rule,
        pattern_gradients=request.pattern_gradients,
    )


def traces_towards_loss(trace: Trace) -> bool:
    """Only a value traced with no downstream node needs the loss: for its direction."""
    return trace.attention_trace_type is AttentionTraceType.V and trace.downstream is None


def node_ablation_spec(ablation: NodeAblation) -> AblationSpec:
    """A node's ablation as cells of a hook point.

    A head writes through its whole attention pattern, so that ablating one of its nodes sets the pattern at
    every attended-to token of that query, unless the pair alone is meant.
    """
    node, value_type = ablation.node, ablation.value_type
    indices: tuple[int | None, ...] = node.tensor_indices
    attended_to_token = None
    if node.node_type in WHOLE_HOOK_POINTS:
        hook_point = WHOLE_HOOK_POINTS[node.node_type]
        is_mlp = node.node_type is NodeType.WHOLE_MLP
        indices = (indices[0], None) if is_mlp else (*indices, None)
    elif node.node_type is NodeType.ATTENTION_HEAD and value_type is ValueType.BASELINE:
        # What the head writes is set, and not its pattern, which says nothing without the values.
        hook_point, (query, key, head) = HookPoint.ATTN_V_OUT, node.tensor_indices
        indices = (query, head, None)
        attended_to_token = key if ablation.attended_to_token_only else None
    else:
        hook_point = NODE_HOOK_POINTS[node.node_type]
        if node.node_type is NodeType.ATTENTION_HEAD and not ablation.attended_to_token_only:
            indices = (indices[0], None, indices[2])
    index = ActivationIndex(hook_point, node.layer_index, indices)
    return AblationSpec(index, ablation.value, value_type, attended_to_token=attended_to_token)


def _processing(request: DebugSubRequest) -> dict[str, ProcessingSpec]:
    token_index = _current_token_index(request)
    ablated_layers = [one.node.layer_index or 0 for one in request.node_ablations]
    hide_before = min(ablated_layers, default=None) if request.hide_early_layers_when_ablating else None

    def scored(scoring: TokenScoringType) -> ScoredTokensSpec:
        return ScoredTokensSpec("topKComponents", scoring)

    groups = _component_groups(
        (request.mlp_component, request.attention_component, *request.residual_stream_components)
    )
    totals: dict[str, ProcessingSpec] = {}
    if request.wants_component_totals:
        of_components = [own for group, own in groups if group in _TOTALS]
        totals["componentTotals"] = ComponentTotalsSpec(tuple(one for own in of_components for one in own))
    lists: dict[str, ProcessingSpec] = {}
    if not request.omits_token_lists:
        lists = {
            "upvotedOutputTokens": scored(TokenScoringType.UPVOTED_OUTPUT_TOKENS),
            "inputTokensThatUpvoteMlp": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP),
            "inputTokensThatUpvoteAttnQ": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
            "inputTokensThatUpvoteAttnK": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K),
            "tokenPairAttribution": TokenPairAttributionSpec("topKComponents"),
        }
    return {
        "topKComponents": MultipleTopKSpec(
            groups,
            request.top_and_bottom_k,
            first_layer_index=hide_before,
            omits_sums=request.omits_top_k_sums,
        ),
        "componentSumsForTokenDisplay": MultipleTopKSpec(
            _component_groups((MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD)),
            top_and_bottom_k=1,
            first_layer_index=hide_before,
        ),
        **lists,
        "topOutputTokenLogits": MultipleTopKSpec(
            ((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), N_OUTPUT_TOKENS, token_index
        ),
        **totals,
    }


def _component_groups(
    components: Iterable[Component],
) -> tuple[tuple[GroupId, tuple[DerivedScalar, ...]], ...]:
    def scalar(component: Component, measure: Measure, of_vectors: Measure) -> DerivedScalar:
        if component in _WHOLE_NODE_TYPES:
            return _OF_WHOLE[of_vectors, _WHOLE_NODE_TYPES[component]]
        return _SCALARS[measure, COMPONENT_HOOK_POINTS[component]]

    return tuple(
        (
            group,
            (
                _SCALARS[of_vectors, HookPoint.RESID_POST_EMB],
                *(scalar(one, measure, of_vectors) for one in components),
            ),
        )
        for group, (measure, of_vectors) in _GROUPS.items()
    )


def _current_token_index(request: DebugSubRequest) -> int:
    if request.upstream_trace is not None:
        return request.upstream_trace.node.tensor_indices[0]
    if request.loss is not None and request.loss.token_index is not None:
        return request.loss.token_index
    return len(request.token_ids) - 1
