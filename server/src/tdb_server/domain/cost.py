"""What a call would cost, estimated from its shape before anything is computed.

Activations: see `activation_cost.py`.

Answers. Sums that keep two token axes have T² entries, those that keep one T; nodes and token lists are
counted at the most there can be. `tensor_bytes`, the sums alone, are certain; the rest is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.activation_cost import activation_bytes, n_chosen_nodes
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

_FLOAT_BYTES = 4  # numbers of an answer
_NODE_BYTES = 24  # a node index on the wire
_TOKEN_BYTES = 20  # a scored token on the wire: id, text and two numbers
_TOKEN_AXES = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, in bytes.

    Attributes:
        activation_bytes: what is held at once beside the weights, at the most.
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
    return Cost(activation_bytes(info, sub_requests), tensors + lists, tensors)


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
                n_nodes = n_sub_requests * n_chosen_nodes(spec)
                total += n_nodes * (_NODE_BYTES + _FLOAT_BYTES * len(spec.groups))
            case DerivedScalarsSpec():
                total += n_tokens * _NODE_BYTES + 2 * (spec.n_top_tokens or 0) * _TOKEN_BYTES
            case ScoredTokensSpec() | TokenPairAttributionSpec():
                ranking = sub_request.processing.get(spec.depends_on)
                n_nodes = (
                    n_sub_requests * n_chosen_nodes(ranking) if isinstance(ranking, MultipleTopKSpec) else 0
                )
                per_node = (
                    2 * spec.n_tokens if isinstance(spec, ScoredTokensSpec) else spec.n_tokens_attended_to
                )
                total += n_nodes * (_NODE_BYTES + per_node * _TOKEN_BYTES)
            case DerivedAttentionScalarsSpec():
                total += n_tokens * _TOKEN_BYTES
    return total
