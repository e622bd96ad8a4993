"""One call's answer: its named results, in the order in which they become ready."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeIndex, Nodes
from tdb_server.domain.requests import (
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)
from tdb_server.domain.results import (
    NamedResult,
    ObjectiveValues,
    ScoredTokensResult,
    TokenPairAttributionResult,
)
from tdb_server.scalars.directions import Directions, LayerNodes, by_layer
from tdb_server.scalars.read_directions import read_directions
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.single_component import derived_attention_scalars, derived_scalars
from tdb_server.scalars.token_pairs import token_pair_attribution
from tdb_server.scalars.token_scores import Scoring, TokenScorer, no_tokens
from tdb_server.scalars.top_k import TopKPass
from tdb_server.scalars.write_directions import write_directions

Specs = dict[str, MultipleTopKSpec]


class CallAnswer:
    """The results of one call, computed from its rows of a run."""

    def __init__(self, call: Call, runs: Sequence[RowRun], scorer: TokenScorer) -> None:
        self.call = call
        self.derive_seconds = self.score_seconds = 0.0
        self._runs = runs
        self._scorer = scorer
        self._nodes: dict[str, Nodes] = {}

    def logits(self) -> Iterator[NamedResult]:
        """What needs the forward pass's logits alone."""
        yield from self._top_k(self._specs(only_logits=True))

    def events(self) -> Iterator[NamedResult | ObjectiveValues]:
        """Everything else: objectives, top nodes, single components, and what depends on the nodes."""
        for index, run in enumerate(self._runs):
            yield ObjectiveValues(index, run.loss, run.traced_value)
        yield from self._top_k(self._specs(only_logits=False))
        yield from self._single_components()
        yield from self._dependents()

    def _specs(self, *, only_logits: bool) -> list[Specs]:
        """The multiple-top-k specs of each sub-request that do (not) rank logits alone.

        Layers that one sub-request leaves out, all leave out, so that all list the same nodes under a name.
        """
        first_layers: dict[str, int] = {}
        for one in self.call.sub_requests:
            for name, spec in one.processing.items():
                if isinstance(spec, MultipleTopKSpec) and spec.first_layer_index is not None:
                    first_layers[name] = max(first_layers.get(name, 0), spec.first_layer_index)
        return [
            {
                name: replace(spec, first_layer_index=first_layers.get(name))
                for name, spec in one.processing.items()
                if isinstance(spec, MultipleTopKSpec) and _ranks_only_logits(spec) == only_logits
            }
            for one in self.call.sub_requests
        ]

    def _top_k(self, specs: Sequence[Specs]) -> Iterator[NamedResult]:
        """Ranks every sub-request, joins the nodes chosen under each name, reports all of them for each."""
        start = perf_counter()
        passes = [TopKPass(run, list(own.values())) for run, own in zip(self._runs, specs, strict=True)]
        chosen: dict[str, dict[NodeIndex, None]] = {}
        for top_k, own in zip(passes, specs, strict=True):
            for index, name in enumerate(own):
                chosen.setdefault(name, {}).update(dict.fromkeys(top_k.nodes(index)))
        nodes = {name: Nodes(found) for name, found in chosen.items()}
        results = [
            NamedResult(row, name, top_k.result(index, nodes[name]))
            for row, (top_k, own) in enumerate(zip(passes, specs, strict=True))
            for index, name in enumerate(own)
        ]
        self._nodes |= nodes
        self.derive_seconds += perf_counter() - start
        yield from results

    def _single_components(self) -> Iterator[NamedResult]:
        for index, (run, sub_request) in enumerate(zip(self._runs, self.call.sub_requests, strict=True)):
            for name, spec in sub_request.processing.items():
                if isinstance(spec, DerivedScalarsSpec):
                    yield NamedResult(index, name, derived_scalars(run, spec, self._scorer))
                elif isinstance(spec, DerivedAttentionScalarsSpec):
                    yield NamedResult(index, name, derived_attention_scalars(run, spec))

    def _dependents(self) -> Iterator[NamedResult]:
        rows = list(zip(self._runs, self.call.sub_requests, strict=True))
        scored = scored_tokens(
            [
                (run, spec, self._nodes[spec.depends_on])
                for run, sub_request in rows
                for spec in sub_request.processing.values()
                if isinstance(spec, ScoredTokensSpec)
            ],
            self._scorer,
        )
        for index, (run, sub_request) in enumerate(rows):
            for name, spec in sub_request.processing.items():
                start = perf_counter()
                result: ScoredTokensResult | TokenPairAttributionResult
                match spec:
                    case ScoredTokensSpec():
                        result = next(scored)
                    case TokenPairAttributionSpec(depends_on, n_tokens):
                        result = token_pair_attribution(run, self._nodes[depends_on], n_tokens)
                    case _:
                        continue
                self.score_seconds += perf_counter() - start
                yield NamedResult(index, name, result)


def _ranks_only_logits(spec: MultipleTopKSpec) -> bool:
    return all(scalar is DerivedScalar.LOGITS for _, scalars in spec.groups for scalar in scalars)


def scored_tokens(
    asked: Sequence[tuple[RowRun, ScoredTokensSpec, Nodes]], scorer: TokenScorer
) -> Iterator[ScoredTokensResult]:
    """Vocabulary tokens scored against every node that has a direction of the kind asked for.

    Rows are scored together: what an ablation does not reach has the same directions in both.
    """
    layers = {(run, nodes): by_layer(run, nodes) for run, _, nodes in asked}
    found = [_directions(run, layers[run, nodes], spec.scoring) for run, spec, nodes in asked]
    scorings = [
        Scoring(one.vectors, one.scales, spec.n_tokens, is_output=_is_output(spec.scoring))
        for one, (_, spec, _) in zip(found, asked, strict=True)
    ]
    for one, (_, _, nodes), tokens in zip(found, asked, scorer.score(scorings), strict=True):
        rows = np.full(len(nodes), -1, np.int32)
        rows[one.positions] = np.arange(len(one.positions))
        yield ScoredTokensResult(nodes, rows, tokens if one.positions else no_tokens())


def _is_output(scoring: TokenScoringType) -> bool:
    return scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS


def _directions(run: RowRun, layers: Sequence[LayerNodes], scoring: TokenScoringType) -> Directions:
    return write_directions(run, layers) if _is_output(scoring) else read_directions(run, layers, scoring)
