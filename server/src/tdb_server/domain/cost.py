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
counted at the most there can be, and, for what is refused before it is computed, at the least
(`tdb_server.domain.answer_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.answer_bytes import answer_bytes
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.requests import InferenceSubRequest

SCORED_NODES = 512
"""Nodes whose vocabularies are scored at once."""
_DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
_RESIDUALS, _PAIRS, _NEURONS, _LATENTS = 8, 4, 4, 4
_RANKED, _SCORED = 3, 3


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, in bytes.

    Attributes:
        activation_bytes: activations and gradients held at once.
        response_bytes: the whole answer, at the most.
        least_response_bytes: the whole answer, at the least.
    """

    activation_bytes: int
    response_bytes: int
    least_response_bytes: int


def estimated_cost(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> Cost:
    """What running these sub-requests as one batch takes."""
    n_tokens = max((len(one.inference.token_ids) for one in sub_requests), default=0)
    elements = len(sub_requests) * _elements_per_row(info, n_tokens)
    elements += _SCORED * SCORED_NODES * info.vocabulary_size
    return Cost(elements * _DTYPE_BYTES.get(info.dtype, 4), *answer_bytes(info, sub_requests))


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
