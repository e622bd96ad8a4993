"""What must be kept of a batch's passes, so that all that is wanted of its rows can be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.derived_scalar import DerivedScalar, Measure
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.gradient_need import wanted_scalars
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    DerivedAttentionScalarsSpec,
    InferenceSubRequest,
    LensSpec,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)
from tdb_server.engine.latents import autoencoder_of
from tdb_server.model.autoencoder import Autoencoder

Kept = HookPoint | Site
"""A hook point or, of an autoencoder's site, its values and the gradient behind the splice."""
_TIMES_GRADIENT = (Measure.ACT_TIMES_GRAD, Measure.VECTOR_TIMES_GRAD)
_WRITES = {
    NodeType.LAYER: [HookPoint.RESID_POST_EMB],
    NodeType.MLP_NEURON: [HookPoint.MLP_POST_ACT],
    NodeType.ATTENTION_HEAD: [HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT],
    NodeType.WHOLE_HEAD: [HookPoint.ATTN_V_OUT],
    NodeType.WHOLE_MLP: [HookPoint.RESID_DELTA_MLP],
}
_BEFORE_LAYERS = [HookPoint.RESID_POST_EMB, HookPoint.RESID_POST_MLP]
_READ_BY_EDGES = [HookPoint.ATTN_Q, HookPoint.ATTN_K, HookPoint.ATTN_V, HookPoint.RESID_POST_MLP]
_WRITTEN_TO_EDGES = [HookPoint.RESID_POST_EMB, HookPoint.ATTN_V_OUT, HookPoint.RESID_DELTA_MLP]
_HEAD_READ_DIRECTIONS = [*_BEFORE_LAYERS, HookPoint.ATTN_Q, HookPoint.ATTN_K]


@dataclass
class Keeping:
    """What is kept of a batch's passes.

    Attributes:
        values: hook points, in every layer.
        gradients: hook points whose gradients are kept.
        sites: the dictionaries' sites of which it is kept what is read.
        site_gradients: those whose gradients are kept, behind the splice.
    """

    values: set[HookPoint] = field(default_factory=set)
    gradients: set[HookPoint] = field(default_factory=set)
    sites: set[Site] = field(default_factory=set)
    site_gradients: set[Site] = field(default_factory=set)

    def add(self, kept: Kept, with_gradient: bool = False) -> None:
        """Keeps a hook point, or what a dictionary reads; with its gradient where that is wanted."""
        if isinstance(kept, Site):
            self.values.add(kept.hook_point)
            self.sites.add(kept)
            self.site_gradients.update({kept} if with_gradient else ())
        else:
            self.values.add(kept)
            self.gradients.update({kept} if with_gradient else ())


def kept_at(hook_point: HookPoint, autoencoders: Sequence[Autoencoder]) -> Kept:
    """The hook point itself, or the site of the dictionary that it is of."""
    return autoencoder_of(hook_point, autoencoders).site if is_of_autoencoder(hook_point) else hook_point


def kept_for(
    sub_request: InferenceSubRequest, autoencoders: Sequence[Autoencoder], *, is_parallel: bool
) -> Iterator[tuple[Kept, bool]]:
    """What a sub-request's results are made of, and whether its gradient is wanted too.

    Args:
        sub_request: what is asked.
        autoencoders: that are loaded.
        is_parallel: whether MLPs read the stream before their layer.
    """
    for scalar, pass_type in wanted_scalars(sub_request):
        yield from _kept_for_scalar(scalar, pass_type, autoencoders)
    for spec in sub_request.processing.values():
        match spec:
            case LensSpec():
                yield from ((HookPoint.RESID_POST_EMB, False), (spec.hook_point, False))
            case ActivationsSpec():
                yield kept_at(spec.hook_point, autoencoders), spec.pass_type is PassType.BACKWARD
            case DerivedAttentionScalarsSpec():
                latent = sub_request.inference.within_layer_gradient
                if latent is not None:
                    yield autoencoder_of(latent.hook_point, autoencoders).site, False
            case ScoredTokensSpec(depends_on, scoring):
                types = _node_types(sub_request, depends_on)
                yield from ((one, False) for one in _kept_for_scoring(scoring, types, is_parallel))
            case TokenPairAttributionSpec(depends_on):
                if any(one.is_latent for one in _node_types(sub_request, depends_on)):
                    yield from ((HookPoint.ATTN_QK_PROBS, False), (HookPoint.ATTN_V, False))
            case EdgesSpec():
                yield from ((one, True) for one in _READ_BY_EDGES)
                yield from ((one, False) for one in _WRITTEN_TO_EDGES)
                if not is_parallel:
                    yield HookPoint.RESID_POST_ATTN, False


def _kept_for_scalar(
    scalar: DerivedScalar, pass_type: PassType, autoencoders: Sequence[Autoencoder]
) -> Iterator[tuple[Kept, bool]]:
    declared = scalar.declared
    hook_point, measure = declared.hook_point, declared.measure
    gradient = pass_type is PassType.BACKWARD or measure in _TIMES_GRADIENT
    if hook_point is None or measure is Measure.ONE:
        return
    if is_of_autoencoder(hook_point):
        yield kept_at(hook_point, autoencoders), gradient
        return
    if declared.is_previous_layer:
        yield HookPoint.RESID_POST_EMB, gradient
    if hook_point is HookPoint.ATTN_V_OUT and measure in (Measure.ACT_TIMES_GRAD, Measure.DIRECT_EFFECT):
        hook_point = HookPoint.ATTN_QK_PROBS  # summed over what is attended to
    yield hook_point, gradient
    if hook_point is HookPoint.ATTN_QK_PROBS and measure not in (Measure.ACTIVATION, Measure.ACT_TIMES_GRAD):
        yield HookPoint.ATTN_V, False


def _kept_for_scoring(
    scoring: TokenScoringType, node_types: set[NodeType], is_parallel: bool
) -> list[HookPoint]:
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return [hook_point for one in node_types for hook_point in _WRITES.get(one, ())]
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return _BEFORE_LAYERS if is_parallel else [HookPoint.RESID_POST_ATTN]
        case _:
            return _HEAD_READ_DIRECTIONS if NodeType.ATTENTION_HEAD in node_types else []


def _node_types(sub_request: InferenceSubRequest, name: str) -> set[NodeType]:
    spec = sub_request.processing[name]
    if not isinstance(spec, MultipleTopKSpec):
        raise TypeError(f"{name} is not a multiple top-k")
    return {scalar.declared.node_type for scalar in spec.derived_scalars}
