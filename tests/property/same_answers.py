"""Whether two answers to one request are the same, but for rounding and for what rounding decides.

A node that one answer lists and the other does not must have been at the edge of every ranking, so its
numbers tie with a node that is listed; token lists may swap tokens whose scores tie.
"""

from __future__ import annotations

import numpy as np
import pytest
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.results import (
    FloatArray,
    MultipleTopKResult,
    ProcessingResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
)

from tests.property.requests import Answer


def assert_same_answers(one: Answer, other: Answer, tolerance: float, same_nodes: bool = True) -> None:
    """Every number agrees within `tolerance` of the largest of its kind.

    Args:
        same_nodes: whether the lists of nodes must be the same; else only nodes that both list are compared.
    """
    assert one.results.keys() == other.results.keys()
    for value, other_value in ((one.loss, other.loss), (one.activation_value, other.activation_value)):
        assert (value is None) == (other_value is None)
        if value is not None:
            assert value == pytest.approx(other_value, rel=tolerance, abs=tolerance)
    for name, result in one.results.items():
        nodes, other_nodes = result.nodes, other.results[name].nodes
        if same_nodes:
            assert nodes == other_nodes, name
        _assert_same_results(result, other.results[name], tolerance)


def _assert_same_results(one: ProcessingResult, other: ProcessingResult, tolerance: float) -> None:
    rows, other_rows = _common_rows(one.nodes, other.nodes)
    match one, other:
        case MultipleTopKResult(), MultipleTopKResult():
            assert one.groups.keys() == other.groups.keys()
            for group, of_one in one.groups.items():
                of_other = other.groups[group]
                _assert_close(of_one.activations[rows], of_other.activations[other_rows], tolerance)
                for scalar, total in of_one.sums.items():
                    assert total.dimensions == of_other.sums[scalar].dimensions
                    _assert_close(total.array, of_other.sums[scalar].array, tolerance)
        case ScoredTokensResult(), ScoredTokensResult():
            listed, other_listed = one.rows[rows], other.rows[other_rows]
            assert ((listed < 0) == (other_listed < 0)).all()
            listed, other_listed = listed[listed >= 0], other_listed[other_listed >= 0]
            tokens, other_tokens = one.tokens, other.tokens
            for scores, other_scores in (
                (tokens.top_scalars, other_tokens.top_scalars),
                (tokens.bottom_scalars, other_tokens.bottom_scalars),
                (tokens.top_normalized, other_tokens.top_normalized),
                (tokens.bottom_normalized, other_tokens.bottom_normalized),
            ):
                if len(listed):
                    _assert_close(scores[listed], other_scores[other_listed], max(tolerance, 1e-6))
        case TokenPairAttributionResult(), TokenPairAttributionResult():
            listed, other_listed = one.rows[rows], other.rows[other_rows]
            assert ((listed < 0) == (other_listed < 0)).all()
            listed, other_listed = listed[listed >= 0], other_listed[other_listed >= 0]
            if len(listed):
                _assert_close(
                    one.attributions[listed], other.attributions[other_listed], max(tolerance, 1e-6)
                )
        case _:
            raise AssertionError(f"{type(one)} and {type(other)}")


def _common_rows(
    nodes: tuple[NodeIndex, ...], other_nodes: tuple[NodeIndex, ...]
) -> tuple[list[int], list[int]]:
    where = {node: row for row, node in enumerate(other_nodes)}
    common = [(row, where[node]) for row, node in enumerate(nodes) if node in where]
    assert len(common) >= 0.8 * max(len(nodes), len(other_nodes))
    return [row for row, _ in common], [row for _, row in common]


def _assert_close(one: FloatArray, other: FloatArray, tolerance: float) -> None:
    assert one.shape == other.shape
    if one.size:
        scale = max(np.abs(one).max(), np.abs(other).max())
        assert np.abs(one.astype(np.float64) - other).max() <= tolerance * scale + 1e-9
