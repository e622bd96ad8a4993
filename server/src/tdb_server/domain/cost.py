"""What a call would cost, estimated from its shape before anything is computed.

Activations. Letters: T tokens, L layers, d channels, H heads, G key/value heads, e channels of a head, F
neurons, N latents, V vocabulary, b bytes per element. For each sub-request, of every layer, what the
backward pass needs and the gradients that are kept:

    residual-sized    6 forward, 2 gradients             8 · T · d
    per head          q, k, v, their rotation, outputs   T · e · (6 H + 4 G)
    per token pair    logits, probabilities, gradients   4 · H · T²
    per neuron        before, after, up, gradient        4 · T · F
    per latent        before, after, gradient            4 · T · N

summed over L layers; once, the derived scalars of the layer that is being ranked, 3 · (H · T² + T · F);
and the logits, T · V. Once per call, scoring tokens: 3 · SCORED_NODES · V. All times b. Real use was seen
at a third of this for long prompts, and near it for the shortest; the estimate is for refusing what cannot
fit, and for not putting too much into one batch.

Answers. Sums that keep two token axes have T² entries, those that keep one T; nodes and token lists are
counted at the most there can be. `tensor_bytes`, the sums alone, are certain; the rest is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import Dimension
from tdb_server.domain.requests import (
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)

SCORED_NODES = 512
"""Nodes whose vocabularies are scored at once."""
_DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
_RESIDUALS, _PAIRS, _NEURONS, _LATENTS = 8, 4, 4, 4
_RANKED, _SCORED = 3, 3
_FLOAT_BYTES = 4  # numbers of an answer
_NODE_BYTES = 24  # a node index on the wire
_TOKEN_BYTES = 20  # a scored token on the wire: id, text and two numbers
_TOKEN_AXES = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, in bytes.

    Attributes:
        activation_bytes: activations and gradients held at once.
        response_bytes: the whole answer, at the most.
        tensor_bytes: the part of the answer whose size is known beforehand.
    """

    activation_bytes: int
    response_bytes: int
    tensor_bytes: int


def estimated_cost(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> Cost:
    """What running these sub-requests as one batch takes."""
    n_tokens = max((len(one.inference.token_ids) for one in sub_requests), default=0)
    tensors = sum(_tensor_bytes(spec, n_tokens) for one in sub_requests for spec in one.processing.values())
    lists = sum(_list_bytes(one, len(sub_requests), n_tokens) for one in sub_requests)
    elements = len(sub_requests) * _elements_per_row(info, n_tokens)
    elements += _SCORED * SCORED_NODES * info.vocabulary_size
    return Cost(elements * _DTYPE_BYTES.get(info.dtype, 4), tensors + lists, tensors)


def _elements_per_row(info: ModelInfo, n_tokens: int) -> int:
    latents = sum(one.n_latents * len(one.layers) for one in info.autoencoders)
    per_layer = (
        _RESIDUALS * n_tokens * info.d_model
        + n_tokens * info.d_head * (6 * info.n_heads + 4 * info.n_key_value_heads)
        + _PAIRS * info.n_heads * n_tokens**2
        + _NEURONS * n_tokens * info.n_neurons
    )
    ranked = _RANKED * (info.n_heads * n_tokens**2 + n_tokens * max(info.n_neurons, latents))
    logits = n_tokens * info.vocabulary_size
    return info.n_layers * per_layer + _LATENTS * n_tokens * latents + ranked + logits


def _tensor_bytes(spec: ProcessingSpec, n_tokens: int) -> int:
    match spec:
        case MultipleTopKSpec():
            kept = set(_TOKEN_AXES if spec.dimensions_to_keep is None else spec.dimensions_to_keep)
            return sum(
                _FLOAT_BYTES * _kept_entries(scalar, kept, n_tokens)
                for _, scalars in spec.groups
                for scalar in scalars
            )
        case DerivedScalarsSpec():
            return 2 * _FLOAT_BYTES * n_tokens
        case DerivedAttentionScalarsSpec():
            return _FLOAT_BYTES * (2 * n_tokens**2 + 8 * n_tokens)
        case _:
            return 0


def _kept_entries(scalar: DerivedScalar, kept: set[Dimension], n_tokens: int) -> int:
    """Entries of a sum; only token axes are counted, as others may have any size."""
    axes = DERIVED_SCALAR_SHAPES[scalar].dimensions
    entries: int = n_tokens ** sum(axis in kept and axis in _TOKEN_AXES for axis in axes)
    return entries


def _list_bytes(sub_request: InferenceSubRequest, n_sub_requests: int, n_tokens: int) -> int:
    """Nodes, token lists and the prompt. A ranking's nodes are those that any sub-request chose."""
    total = n_tokens * _TOKEN_BYTES
    for spec in sub_request.processing.values():
        match spec:
            case MultipleTopKSpec():
                n_nodes = n_sub_requests * _n_nodes(spec)
                total += n_nodes * (_NODE_BYTES + _FLOAT_BYTES * len(spec.groups))
            case DerivedScalarsSpec():
                total += n_tokens * _NODE_BYTES + 2 * (spec.n_top_tokens or 0) * _TOKEN_BYTES
            case ScoredTokensSpec() | TokenPairAttributionSpec():
                ranking = sub_request.processing.get(spec.depends_on)
                n_nodes = n_sub_requests * _n_nodes(ranking) if isinstance(ranking, MultipleTopKSpec) else 0
                per_node = (
                    2 * spec.n_tokens if isinstance(spec, ScoredTokensSpec) else spec.n_tokens_attended_to
                )
                total += n_nodes * (_NODE_BYTES + per_node * _TOKEN_BYTES)
            case DerivedAttentionScalarsSpec():
                total += n_tokens * _TOKEN_BYTES
    return total


def _n_nodes(spec: MultipleTopKSpec) -> int:
    """The most nodes that one sub-request can choose."""
    ends = sum(len(scalars) * (2 if group.has_bottom else 1) for group, scalars in spec.groups)
    return spec.top_and_bottom_k * ends
