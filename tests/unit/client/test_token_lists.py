"""Token lists that are read when somebody looks at them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tdb_client import ResponseError, TopTokens
from tdb_client.token_lists import TokenLists
from transformer_debugger.v1 import result_pb2


def ranked(*tokens: str, n_scores: int | None = None) -> result_pb2.RankedTokens:
    scores = [float(len(tokens) - place) for place in range(len(tokens) if n_scores is None else n_scores)]
    return result_pb2.RankedTokens(
        token_ids=range(len(tokens)), tokens=tokens, scalars=scores, normalized_scalars=scores
    )


def node(top: result_pb2.RankedTokens) -> result_pb2.NodeTopTokens:
    return result_pb2.NodeTopTokens(top_tokens=result_pb2.TopTokens(top=top, bottom=ranked("z")))


def lists() -> TokenLists:
    return TokenLists([node(ranked("a", "b")), result_pb2.NodeTopTokens(), node(ranked())])


def test_they_behave_as_a_tuple() -> None:
    found = lists()
    assert len(found) == 3
    assert [one is None for one in found] == [False, True, False]
    first = found[0]
    assert isinstance(first, TopTokens)
    assert first.top.tokens == ("a", "b")
    assert first.bottom.tokens == ("z",)
    np.testing.assert_array_equal(first.top.scores, [2.0, 1.0])
    assert found[-1] is found[2]
    assert found[:2] == (first, None)
    assert len(found) == 3
    with pytest.raises(IndexError):
        found[3]


def test_what_was_read_is_not_read_again() -> None:
    found = lists()
    assert found[0] is found[0]


def test_numbers_cannot_be_changed() -> None:
    first = lists()[0]
    assert first is not None
    with pytest.raises(ValueError, match="read-only"):
        first.top.scores[0] = 7


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])
def test_copies_are_tuples(copied: object) -> None:
    assert callable(copied)
    found = copied(lists())
    assert type(found) is tuple
    assert found[0].top.tokens == ("a", "b")
    assert found[1] is None


def test_a_malformed_list_is_an_error_for_whoever_looks() -> None:
    found = TokenLists([node(ranked("a")), node(ranked("a", "b", n_scores=1))])
    assert len(found) == 2
    with pytest.raises(ResponseError, match="fewer scores or ids than tokens"):
        found[0]
