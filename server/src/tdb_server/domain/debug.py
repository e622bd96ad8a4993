"""From a TDB sub-request to what is run: the objective, the ablations and the named results.

A TDB request is compact: it names tokens and nodes. This module spells it out as a general inference
sub-request, whose named results stand in a fixed order. Only the choice of components (neurons or latents,
heads or latents) differs between requests; the four groups are always the same.
"""

from __future__ import annotations

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import DICTIONARY_HOOK_POINTS, HookPoint
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionComponent,
    AttentionTraceType,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
)

N_OUTPUT_TOKENS = 100

_EMBEDDING_SCALARS = {
    GroupId.WRITE_NORM: DerivedScalar.RESID_POST_EMBEDDING_NORM,
    GroupId.ACT_TIMES_GRAD: DerivedScalar.TOKEN_ATTRIBUTION,
    GroupId.DIRECTION_WRITE: DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
    GroupId.ACTIVATION: DerivedScalar.ALWAYS_ONE,
}
_MLP_SCALARS = {
    MlpComponent.NEURON: {
        GroupId.WRITE_NORM: DerivedScalar.MLP_WRITE_NORM,
        GroupId.ACT_TIMES_GRAD: DerivedScalar.MLP_ACT_TIMES_GRAD,
        GroupId.DIRECTION_WRITE: DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
        GroupId.ACTIVATION: DerivedScalar.MLP_POST_ACT,
    },
    MlpComponent.AUTOENCODER_LATENT: {
        GroupId.WRITE_NORM: DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_NORM,
        GroupId.ACT_TIMES_GRAD: DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
        GroupId.DIRECTION_WRITE: DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        GroupId.ACTIVATION: DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT,
    },
}
_ATTENTION_SCALARS = {
    AttentionComponent.ATTENTION_HEAD: {
        GroupId.WRITE_NORM: DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM,
        GroupId.ACT_TIMES_GRAD: DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
        GroupId.DIRECTION_WRITE: DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
        GroupId.ACTIVATION: DerivedScalar.ATTN_QK_PROBS,
    },
    AttentionComponent.AUTOENCODER_LATENT: {
        GroupId.WRITE_NORM: DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM,
        GroupId.ACT_TIMES_GRAD: DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
        GroupId.DIRECTION_WRITE: DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        GroupId.ACTIVATION: DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    },
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
    loss = LossConfig(LossName.LOGIT_DIFF, request.target_tokens, request.distractor_tokens)
    ablations = tuple(node_ablation_spec(one) for one in request.node_ablations)
    return InferenceSpec(
        token_ids=request.token_ids,
        loss=loss if trace is None or traces_towards_loss(trace) else None,
        trace=trace,
        ablations=(*ablations, HOLD_FINAL_NORM_SCALE),
        bos_added=request.bos_added,
    )


def traces_towards_loss(trace: Trace) -> bool:
    """Only a value traced with no downstream node needs the loss: for its direction."""
    return trace.attention_trace_type is AttentionTraceType.V and trace.downstream is None


def node_ablation_spec(ablation: NodeAblation) -> AblationSpec:
    """A node's ablation as cells of a hook point.

    A head writes through its whole attention pattern, so that ablating one of its nodes sets the pattern at
    every attended-to token of that query, unless the pair alone is meant.
    """
    node = ablation.node
    indices: tuple[int | None, ...] = node.tensor_indices
    match node.node_type:
        case NodeType.ATTENTION_HEAD:
            attended_to = indices[1] if ablation.attended_to_token_only else None
            hook_point, indices = HookPoint.ATTN_QK_PROBS, (indices[0], attended_to, indices[2])
        case NodeType.MLP_NEURON:
            hook_point = HookPoint.MLP_POST_ACT
        case latent if latent.is_latent:
            hook_point, _ = DICTIONARY_HOOK_POINTS[latent]
        case other:
            raise ValueError(f"nodes of type {other.value} cannot be ablated")
    return AblationSpec(ActivationIndex(hook_point, node.layer_index, indices), ablation.value)


def _processing(request: DebugSubRequest) -> dict[str, ProcessingSpec]:
    token_index = _current_token_index(request)
    ablated_layers = [one.node.layer_index or 0 for one in request.node_ablations]
    hide_before = min(ablated_layers, default=None) if request.hide_early_layers_when_ablating else None

    def scored(scoring: TokenScoringType) -> ScoredTokensSpec:
        return ScoredTokensSpec("topKComponents", scoring)

    return {
        "topKComponents": MultipleTopKSpec(
            _component_groups(request.mlp_component, request.attention_component),
            request.top_and_bottom_k,
            first_layer_index=hide_before,
        ),
        "componentSumsForTokenDisplay": MultipleTopKSpec(
            _component_groups(MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD),
            top_and_bottom_k=1,
            first_layer_index=hide_before,
        ),
        "upvotedOutputTokens": scored(TokenScoringType.UPVOTED_OUTPUT_TOKENS),
        "inputTokensThatUpvoteMlp": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP),
        "inputTokensThatUpvoteAttnQ": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
        "inputTokensThatUpvoteAttnK": scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K),
        "tokenPairAttribution": TokenPairAttributionSpec("topKComponents"),
        "topOutputTokenLogits": MultipleTopKSpec(
            ((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), N_OUTPUT_TOKENS, token_index
        ),
    }


def _component_groups(
    mlp: MlpComponent, attention: AttentionComponent
) -> tuple[tuple[GroupId, tuple[DerivedScalar, ...]], ...]:
    return tuple(
        (group, (_EMBEDDING_SCALARS[group], _MLP_SCALARS[mlp][group], _ATTENTION_SCALARS[attention][group]))
        for group in (GroupId.WRITE_NORM, GroupId.ACT_TIMES_GRAD, GroupId.DIRECTION_WRITE, GroupId.ACTIVATION)
    )


def _current_token_index(request: DebugSubRequest) -> int:
    if request.upstream_trace is not None:
        return request.upstream_trace.node.tensor_indices[0]
    return len(request.token_ids) - 1
