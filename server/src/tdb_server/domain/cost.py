"""What a call would cost, estimated from its shape before anything is computed.

See `activation_cost.py` and `answer_bytes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.activation_cost import activation_bytes, computed_bytes
from tdb_server.domain.answer_bytes import answer_bytes
from tdb_server.domain.gradient_need import needs_gradient
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.requests import InferenceSubRequest


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, in bytes.

    Attributes:
        activation_bytes: what is held at once beside the weights, at the most.
        response_bytes: the whole answer, at the most.
        least_response_bytes: the whole answer, at the least.
        computed_bytes: activations that are computed, held or not; no more than those held, where 0.
        needs_gradient: whether there is a backward pass, for which a batch holds much of every row.
    """

    activation_bytes: int
    response_bytes: int
    least_response_bytes: int
    computed_bytes: int = 0
    needs_gradient: bool = True


def estimated_cost(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> Cost:
    """What running these sub-requests as one batch takes."""
    return Cost(
        activation_bytes(info, sub_requests),
        *answer_bytes(info, sub_requests),
        computed_bytes(info, sub_requests),
        any(map(needs_gradient, sub_requests)),
    )
