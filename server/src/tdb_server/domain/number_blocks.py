"""Results that are one block of numbers, held against how much of them one answer may have.

These are the matrix of all edges and the values of a hook point: a request of a few words can ask for more of
them than any caller can take, so that it is refused by the name of its field, with how much there may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tdb_server.domain.answer_bytes import FLOAT_BYTES, n_activations
from tdb_server.domain.edges import EdgeShape, EdgesSpec
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.requests import ActivationsSpec, InferenceSubRequest


def too_many_numbers(
    info: ModelInfo, sub_requests: Sequence[InferenceSubRequest], max_bytes: int
) -> tuple[str, str] | None:
    """The first block with which the blocks of a call together have more bytes than they may.

    Args:
        info: the model.
        sub_requests: of the call.
        max_bytes: what they may have.

    Returns:
        The path of its field, and what is wrong; None where all fit.
    """
    n_before, allowed = 0, max_bytes // FLOAT_BYTES
    for field, n_numbers, shape in _blocks(info, sub_requests):
        if n_before + n_numbers > allowed:
            description = (
                f"{shape} are {n_numbers} numbers in {FLOAT_BYTES * n_numbers} bytes, after {n_before} such "
                f"numbers before them in the call; its answer may have {allowed} in {max_bytes} bytes"
            )
            return field, description
        n_before += n_numbers
    return None


def _blocks(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> Iterator[tuple[str, int, str]]:
    """Of each block the path of its field, how many numbers it has, and how they are arranged."""
    edges = EdgeShape.of(info)
    for i, one in enumerate(sub_requests):
        n_tokens = len(one.inference.token_ids)
        for j, spec in enumerate(one.processing.values()):
            match spec:
                case EdgesSpec(whole_matrix=True):
                    shape = f"scores of {edges.n_writers} writers and {edges.n_readers} readers"
                    yield f"sub_requests[{i}].whole_matrix", edges.n_writers * edges.n_readers, shape
                case ActivationsSpec():
                    n_layers, n_rows = len(spec.layers), len(spec.token_indices)
                    shape = f"{n_layers} layers of {spec.hook_point.value} at {n_rows} tokens"
                    field = f"sub_requests[{i}].processing_specs[{j}].activations"
                    yield field, n_activations(spec, info, n_tokens), shape
