"""Vocabulary tokens scored against every node that has a direction of the kind asked for.

What an ablation does not reach has the same directions with and without it: so a call's rows go together. On
a GPU, what all calls of a batch ask for is ranked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from torch import Tensor

from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import ScoredTokensSpec, TokenScoringType
from tdb_server.domain.results import ScoredTokensResult, TopTokens
from tdb_server.engine.node_directions import (
    DeviceNodes,
    Directions,
    HeadReads,
    NodesOfType,
    head_read_directions,
    heads_to_read,
    node_directions,
    nodes_to_score,
)
from tdb_server.engine.node_tables import NodeTable
from tdb_server.engine.plan import Plan
from tdb_server.engine.rank_tokens import DirectionsToRank, TokenRanker, no_tokens
from tdb_server.engine.rows import Rows
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.engine.transfers import Array

_Q = TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q
_K = TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K


@dataclass(frozen=True)
class ToScore:
    """What token lists of some calls want.

    Attributes:
        calls: these calls.
        n_tokens: at each end of a list.
        tables: by row and name, the nodes asked for, and how many stand before them in lists of their kind.
        nodes: the nodes of each kind, over all rows.
        heads: those that are read through queries and keys.
    """

    calls: frozenset[int]
    n_tokens: int
    tables: dict[tuple[int, str], tuple[int, NodeTable]]
    nodes: dict[TokenScoringType, list[NodesOfType]]
    heads: HeadReads | None

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device."""
        of_nodes = [array for nodes in self.nodes.values() for own in nodes for array in own.arrays]
        return of_nodes + ([] if self.heads is None else self.heads.arrays)


def nodes_of_calls(
    plan: Plan, model: SplicedModel, calls: Sequence[int], tables: Sequence[dict[str, NodeTable]]
) -> list[ToScore]:
    """The nodes that tokens are scored against, for each length of lists. Tables are by call and name."""
    specs = [
        (row, name, spec, tables[call_index][spec.depends_on])
        for call_index in calls
        for row in plan.rows_of[call_index]
        for name, spec in plan.rows[row].processing.items()
        if isinstance(spec, ScoredTokensSpec)
    ]
    sites, config = [one.site for one in model.autoencoders], model.decoder.config
    mlp_latents = {one.node_type for one in sites if one.is_mlp}
    mlp_latents |= {NodeType.AUTOENCODER_LATENT for one in sites[:1] if one.is_mlp}
    found = []
    for n_tokens in dict.fromkeys(spec.n_tokens for _, _, spec, _ in specs):
        places: dict[tuple[int, str], tuple[int, NodeTable]] = {}
        nodes = {}
        for scoring in TokenScoringType:
            tables_of_rows, start = [], 0
            for row, name, spec, table in specs:
                if spec.scoring is scoring and spec.n_tokens == n_tokens:
                    tables_of_rows.append((row, table))
                    places[row, name] = start, table
                    start += len(table.nodes)
            nodes[scoring] = nodes_to_score(tables_of_rows, scoring, frozenset(mlp_latents))
        heads = heads_to_read(nodes.pop(_Q), nodes.pop(_K), config.n_heads, config.n_heads_per_group)
        found.append(ToScore(frozenset(calls), n_tokens, places, nodes, heads))
    return found


@dataclass(frozen=True)
class TokenLists:
    """Token lists of some calls, which come kind by kind while they are asked for."""

    to_score: ToScore
    waiting: Iterator[tuple[TokenScoringType, Array, TopTokens]]
    ready: dict[TokenScoringType, tuple[Array, TopTokens]] = field(default_factory=dict)

    def of(self, row: int, name: str, scoring: TokenScoringType) -> ScoredTokensResult:
        """The lists that a row wants under a name."""
        while scoring not in self.ready:
            kind, places, tokens = next(self.waiting)
            self.ready[kind] = places, tokens
        places, tokens = self.ready[scoring]
        start, table = self.to_score.tables[row, name]
        rows = np.full(len(table.nodes), -1, np.int32)
        own = np.flatnonzero((places >= start) & (places < start + len(rows)))
        rows[places[own] - start] = np.arange(len(own))
        return ScoredTokensResult(table.nodes, rows, _some(tokens, own))


def token_lists(
    all_rows: Rows,
    ranker: TokenRanker,
    to_score: ToScore,
    uploaded: Sequence[Tensor],
    check_cancelled: Callable[[], None],
) -> TokenLists:
    """Begins to score. `uploaded` are the arrays on the device.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between kinds of lists, and while they are ranked.
    """
    waiting = iter(uploaded)
    directions: dict[TokenScoringType, list[Directions]] = {}
    for scoring, nodes in to_score.nodes.items():
        check_cancelled()
        directions[scoring] = [
            node_directions(all_rows, DeviceNodes(own, [next(waiting) for _ in own.arrays]), scoring)
            for own in nodes
        ]
    directions |= {_Q: [], _K: []}
    if to_score.heads is not None:
        check_cancelled()
        queries, keys = head_read_directions(all_rows, to_score.heads, list(waiting))
        directions |= {_Q: [queries], _K: [keys]}
    return TokenLists(to_score, _ranked(directions, ranker, to_score.n_tokens, check_cancelled))


def _ranked(
    directions: dict[TokenScoringType, list[Directions]],
    ranker: TokenRanker,
    n_tokens: int,
    check_cancelled: Callable[[], None],
) -> Iterator[tuple[TokenScoringType, Array, TopTokens]]:
    """Of each kind, where its nodes are among those that were asked for, and their lists."""
    to_rank = [
        DirectionsToRank(
            part.vectors, part.which, part.scales, n_tokens, scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS
        )
        for scoring, parts in directions.items()
        for part in parts
    ]
    ranked = ranker.token_lists(to_rank, check_cancelled)
    for scoring, parts in directions.items():
        places = np.concatenate([np.zeros(0, np.int64), *(part.places for part in parts)])
        yield scoring, places, _joined([next(ranked) for _ in parts])


def _some(lists: TopTokens, which: Array) -> TopTokens:
    """The lists of some nodes."""
    if not len(which):
        return no_tokens()
    return TopTokens(*(getattr(lists, one.name)[which] for one in fields(TopTokens)))


def _joined(lists: Sequence[TopTokens]) -> TopTokens:
    """The lists of several kinds of nodes, one below the other."""
    if len(lists) < 2:
        return lists[0] if lists else no_tokens()
    names = [one.name for one in fields(TopTokens)]
    return TopTokens(*(np.concatenate([getattr(one, name) for one in lists]) for name in names))
