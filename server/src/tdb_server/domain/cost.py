"""What a call would cost, estimated from its shape before anything is computed.

See `activation_cost.py` and `answer_bytes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.activation_cost import activation_bytes
from tdb_server.domain.answer_bytes import answer_bytes
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.requests import InferenceSubRequest


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate, in bytes.

    Attributes:
        activation_bytes: what is held at once beside the weights, at the most.
        response_bytes: the whole answer, at the most.
        least_response_bytes: the whole answer, at the least.
    """

    activation_bytes: int
    response_bytes: int
    least_response_bytes: int


def estimated_cost(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> Cost:
    """What running these sub-requests as one batch takes."""
    return Cost(activation_bytes(info, sub_requests), *answer_bytes(info, sub_requests))
