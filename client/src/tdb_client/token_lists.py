"""Lists of vocabulary tokens, read from an answer when somebody looks at them.

A debug call answers with some thousand lists, and most callers look at few of them. To make arrays of all
takes longer than to read everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import overload

from transformer_debugger.v1 import result_pb2

from tdb_client import results
from tdb_client.errors import ResponseError
from tdb_client.tensors import floats, integers


class TokenLists(Sequence[results.TopTokens | None]):
    """The token lists of several nodes; None where a node has none. It behaves as a tuple does.

    All are read when one is first looked at, which raises `ResponseError` if one of them is malformed.
    """

    def __init__(self, messages: Sequence[result_pb2.NodeTopTokens]) -> None:
        self._messages: Sequence[result_pb2.NodeTopTokens] = messages
        self._lists: tuple[results.TopTokens | None, ...] | None = None

    def __len__(self) -> int:
        return len(self._messages) if self._lists is None else len(self._lists)

    @overload
    def __getitem__(self, index: int) -> results.TopTokens | None: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[results.TopTokens | None, ...]: ...

    def __getitem__(
        self, index: int | slice
    ) -> results.TopTokens | tuple[results.TopTokens | None, ...] | None:
        if self._lists is None:
            self._lists = _top_tokens_of_nodes(self._messages)
            self._messages = ()
        return self._lists[index]

    def __repr__(self) -> str:
        return repr(self[:])

    def __reduce__(self) -> tuple[object, ...]:
        """Copies, and what is stored, are plain tuples."""
        return tuple, (self[:],)


def _top_tokens_of_nodes(
    messages: Sequence[result_pb2.NodeTopTokens],
) -> tuple[results.TopTokens | None, ...]:
    lists = [one.top_tokens if one.HasField("top_tokens") else None for one in messages]
    found = iter(top_tokens([one for one in lists if one is not None]))
    return tuple(None if one is None else next(found) for one in lists)


def top_tokens(messages: Sequence[result_pb2.TopTokens]) -> list[results.TopTokens]:
    """Both ends of rankings.

    Raises:
        ResponseError: a list is malformed.
    """
    ranked = iter(_ranked_tokens([end for one in messages for end in (one.top, one.bottom)]))
    return [results.TopTokens(top, next(ranked)) for top in ranked]


def _ranked_tokens(messages: Sequence[result_pb2.RankedTokens]) -> list[results.RankedTokens]:
    """Lists of tokens. Their arrays are parts of a few: to make thousands of short ones takes longer."""
    tokens, starts = [], [0]
    all_ids: list[int] = []
    all_scores: list[float] = []
    all_normalized: list[float] = []
    for one in messages:  # slices are lists, which are read faster than the fields themselves
        tokens.append(tuple(one.tokens[:]))
        all_ids += one.token_ids[:]
        all_scores += one.scalars[:]
        all_normalized += one.normalized_scalars[:]
        starts.append(starts[-1] + len(tokens[-1]))
    ids, scores, normalized = integers(all_ids), floats(all_scores), floats(all_normalized)
    if not len(ids) == len(scores) == len(normalized) == starts[-1]:
        raise ResponseError("a list of tokens has fewer scores or ids than tokens, or more")
    return [
        results.RankedTokens(ids[start:end], texts, scores[start:end], normalized[start:end])
        for texts, (start, end) in zip(tokens, pairwise(starts), strict=True)
    ]
