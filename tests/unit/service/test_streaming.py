from __future__ import annotations

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.node import Dimension, NodeIndex, Nodes, NodeType
from tdb_server.domain.results import (
    GroupResult,
    LabelledArray,
    MultipleTopKResult,
    NamedResult,
    ScoredTokensResult,
    TopTokens,
)
from tdb_server.service.streaming import NODES_PER_PART, TOKENS_PER_PART, result_parts


def nodes(n: int) -> Nodes:
    return Nodes(NodeIndex(NodeType.MLP_NEURON, 0, (0, i)) for i in range(n))


@pytest.mark.parametrize("n_nodes", [0, 1, NODES_PER_PART, NODES_PER_PART + 1, 3 * NODES_PER_PART])
def test_rankings_are_cut_by_nodes_and_keep_groups_in_the_first_part(n_nodes):
    sums = {DerivedScalar.MLP_POST_ACT: LabelledArray(np.zeros(3), (Dimension.SEQUENCE_TOKENS,))}
    groups = {GroupId.ACTIVATION: GroupResult(np.zeros(n_nodes), sums)}
    whole = NamedResult(1, "top", MultipleTopKResult(nodes(n_nodes), groups))
    parts = list(result_parts(whole))
    assert sum((part.result.nodes for part in parts), ()) == whole.result.nodes
    assert [bool(part.result.groups) for part in parts] == [True] + [False] * (len(parts) - 1)
    assert all((part.sub_request_index, part.name) == (1, "top") for part in parts)


def test_token_lists_follow_their_nodes():
    n_nodes = 2 * NODES_PER_PART + 5
    rows = np.arange(n_nodes) % 7 - 1  # shared rows, and none for some nodes
    columns = [np.arange(12).reshape(6, 2) + 100 * i for i in range(6)]
    whole = NamedResult(0, "tokens", ScoredTokensResult(nodes(n_nodes), rows, TopTokens(*columns)))
    seen = []
    for part in result_parts(whole):
        tokens = part.result.tokens.top_ids
        assert len(tokens) <= len(part.result.nodes)
        seen += [None if row < 0 else tokens[row].tolist() for row in part.result.rows]
    assert seen == [None if row < 0 else columns[0][row].tolist() for row in rows]


def test_long_token_lists_leave_in_smaller_parts():
    columns = [np.zeros((100, 1000), np.int32)] * 6
    whole = NamedResult(0, "tokens", ScoredTokensResult(nodes(100), np.arange(100), TopTokens(*columns)))
    parts = list(result_parts(whole))
    assert max(part.result.tokens.top_ids.size for part in parts) <= TOKENS_PER_PART / 2
    assert sum((part.result.nodes for part in parts), ()) == whole.result.nodes
