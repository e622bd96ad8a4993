"""What a batch must keep so that every named result of its calls can be computed."""

from __future__ import annotations

from collections.abc import Sequence

from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import (
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.scalars.derived import needs_of
from tdb_server.scalars.latents import autoencoder_of
from tdb_server.scalars.run import Needs

_WRITES = {
    NodeType.LAYER: {Place.RESID_POST_EMB},
    NodeType.MLP_NEURON: {Place.MLP_POST_ACT},
    NodeType.ATTENTION_HEAD: {Place.ATTN_QK_PROBS, Place.ATTN_V, Place.ATTN_V_OUT},
}


def needs_of_calls(calls: Sequence[Call], autoencoders: Sequence[Autoencoder]) -> Needs:
    """The places to keep, over all sub-requests of all calls."""
    needs = Needs()
    for call in calls:
        for sub_request in call.sub_requests:
            for spec in sub_request.processing.values():
                needs.update(_of_spec(spec, sub_request, autoencoders))
    return needs


def _of_spec(spec: object, sub_request: InferenceSubRequest, autoencoders: Sequence[Autoencoder]) -> Needs:
    needs = Needs()
    match spec:
        case MultipleTopKSpec():
            for _, scalars in spec.groups:
                for scalar in scalars:
                    needs.update(needs_of(scalar, spec.pass_type, autoencoders))
        case DerivedScalarsSpec():
            needs.update(needs_of(spec.derived_scalar, spec.pass_type, autoencoders))
        case DerivedAttentionScalarsSpec():
            needs.update(needs_of(spec.derived_scalar, PassType.FORWARD, autoencoders))
            within = sub_request.inference.within_layer_gradient
            if within is not None:
                needs.values.add(autoencoder_of(within.place, autoencoders).site.place)
        case ScoredTokensSpec():
            needs.values |= _of_scoring(spec.scoring, _node_types(sub_request, spec.depends_on))
        case TokenPairAttributionSpec():
            if any(one.is_latent for one in _node_types(sub_request, spec.depends_on)):
                needs.values |= {Place.ATTN_QK_PROBS, Place.ATTN_V}
    return needs


def _node_types(sub_request: InferenceSubRequest, name: str) -> set[NodeType]:
    spec = sub_request.processing[name]
    if not isinstance(spec, MultipleTopKSpec):
        raise TypeError(f"{name} is not a multiple top-k")
    return {DERIVED_SCALAR_SHAPES[scalar].node_type for _, scalars in spec.groups for scalar in scalars}


def _of_scoring(scoring: TokenScoringType, node_types: set[NodeType]) -> set[Place]:
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return set().union(*(_WRITES.get(one, set()) for one in node_types))
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return {Place.RESID_POST_ATTN}
        case _ if NodeType.ATTENTION_HEAD in node_types:
            return {Place.RESID_POST_EMB, Place.RESID_POST_MLP, Place.ATTN_Q, Place.ATTN_K}
        case _:
            return set()
