"""Whether two answers to one request are the same, but for rounding."""

from __future__ import annotations

from enum import Enum

import numpy as np
import pytest
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.results import (
    FloatArray,
    IntArray,
    MultipleTopKResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
)

from tests.property.requests import Answer

NodesWithRows = ScoredTokensResult | TokenPairAttributionResult
FLOAT32 = 1e-6
"""Token lists and attributions are float32 whatever the model is."""


class Nodes(Enum):
    """How the nodes that two answers list must agree."""

    EQUAL = "the same nodes and tokens in the same order"
    SUBSET = "the second answer has all nodes of the first, and maybe more"
    NOT_ZERO = "all nodes were asked for, so a node that one answer leaves out counts as zero there"


def assert_same_answers(one: Answer, other: Answer, tolerance: float, nodes: Nodes) -> None:
    """Every number agrees within `tolerance` of the largest of its kind."""
    assert one.results.keys() == other.results.keys()
    for value, other_value in ((one.loss, other.loss), (one.activation_value, other.activation_value)):
        assert value == (None if other_value is None else pytest.approx(other_value, abs=tolerance))
    for name, result in one.results.items():
        _assert_same_nodes(result.nodes, other.results[name].nodes, nodes)
        match result, other.results[name]:
            case MultipleTopKResult() as top_k, MultipleTopKResult() as other_top_k:
                _assert_same_numbers(top_k, other_top_k, tolerance, nodes)
            case ScoredTokensResult() as scored, ScoredTokensResult() as other_scored:
                _assert_same_tokens(scored, other_scored, tolerance, nodes)
            case TokenPairAttributionResult() as pairs, TokenPairAttributionResult() as other_pairs:
                _assert_same_pairs(pairs, other_pairs, tolerance)
            case kinds:
                raise AssertionError(f"{name}: {kinds}")


def _assert_same_nodes(one: tuple[NodeIndex, ...], other: tuple[NodeIndex, ...], nodes: Nodes) -> None:
    if nodes is Nodes.EQUAL:
        assert one == other
    if nodes is Nodes.SUBSET:
        assert set(one) <= set(other)


def _assert_same_numbers(
    one: MultipleTopKResult, other: MultipleTopKResult, tolerance: float, nodes: Nodes
) -> None:
    assert one.groups.keys() == other.groups.keys()
    for group, of_one in one.groups.items():
        of_other = other.groups[group]
        numbers = dict(zip(one.nodes, of_one.activations, strict=True))
        other_numbers = dict(zip(other.nodes, of_other.activations, strict=True))
        compared = list(numbers if nodes is Nodes.SUBSET else numbers | other_numbers)
        assert_close(
            np.array([numbers.get(node, 0.0) for node in compared]),
            np.array([other_numbers.get(node, 0.0) for node in compared]),
            tolerance,
        )
        assert of_one.sums.keys() == of_other.sums.keys()
        for scalar, total in of_one.sums.items():
            assert total.dimensions == of_other.sums[scalar].dimensions
            # What many nodes add up to may be next to nothing: all of a block's that a norm follows (Euler).
            largest = max((abs(x) for x in numbers.values() if np.isfinite(x)), default=0.0)
            assert_close(total.array, of_other.sums[scalar].array, tolerance, largest)


def _assert_same_tokens(
    one: ScoredTokensResult, other: ScoredTokensResult, tolerance: float, nodes: Nodes
) -> None:
    rows, other_rows = _listed(one, other)
    if not len(rows):
        return
    for side in ("top", "bottom"):
        if nodes is not Nodes.NOT_ZERO:
            ids = getattr(one.tokens, f"{side}_ids"), getattr(other.tokens, f"{side}_ids")
            assert (ids[0][rows] == ids[1][other_rows]).all()
        for kind in ("scalars", "normalized"):
            scores = getattr(one.tokens, f"{side}_{kind}"), getattr(other.tokens, f"{side}_{kind}")
            assert_close(scores[0][rows], scores[1][other_rows], max(tolerance, FLOAT32))


def _assert_same_pairs(
    one: TokenPairAttributionResult, other: TokenPairAttributionResult, tolerance: float
) -> None:
    rows, other_rows = _listed(one, other)
    assert_close(one.attributions[rows], other.attributions[other_rows], max(tolerance, FLOAT32))


def _listed(one: NodesWithRows, other: NodesWithRows) -> tuple[IntArray, IntArray]:
    """The rows of the nodes that both list, in one and in the other."""
    where = dict(zip(other.nodes, other.rows, strict=True))
    pairs = [(row, where[node]) for node, row in zip(one.nodes, one.rows, strict=True) if node in where]
    assert len(pairs) >= 0.9 * len(one.nodes)
    rows, other_rows = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert ((rows < 0) == (other_rows < 0)).all()
    return rows[rows >= 0], other_rows[other_rows >= 0]


def assert_close(one: FloatArray, other: FloatArray, tolerance: float, least_scale: float = 0.0) -> None:
    assert one.shape == other.shape
    is_finite = np.isfinite(one)  # attention logits that attention does not look at are not
    assert np.array_equal(one[~is_finite], other[~is_finite])
    one, other = one[is_finite], other[is_finite]
    if one.size:
        scale = max(np.abs(one).max(), np.abs(other).max(), least_scale)
        assert np.abs(one.astype(np.float64) - other).max() <= tolerance * scale + 1e-9
