"""The answers of a batch's calls: their named results, in the order in which they become ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from tdb_server.domain.node import LATENT_NODE_TYPES, NodeType
from tdb_server.domain.requests import (
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)
from tdb_server.domain.results import (
    CallEvent,
    Finished,
    MultipleTopKResult,
    NamedResult,
    ObjectiveValues,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.engine.components import derived_attention_scalars, derived_scalars
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
from tdb_server.engine.nodes import (
    NodeTable,
    derive,
    group_of,
    look_ups,
    top_k_results,
    union_of_nodes,
)
from tdb_server.engine.passes import Cache, Gradients, Inputs, Model
from tdb_server.engine.plan import Plan
from tdb_server.engine.rank_tokens import Scoring, TokenRanker, no_tokens
from tdb_server.engine.rows import Rows
from tdb_server.engine.stage_clock import StageClock
from tdb_server.engine.token_pairs import token_pair_attribution
from tdb_server.engine.transfers import Array, download, upload
from tdb_server.model.precomputed import Precomputed

Event = tuple[str, CallEvent]


@dataclass(frozen=True)
class Answers:
    """What answers are made of.

    Attributes:
        is_wanted: asked with a call's id, before something is computed for it alone.
        check_cancelled: ends the work of the batch when nobody wants it any more.
    """

    model: Model
    precomputed: Precomputed
    ranker: TokenRanker
    plan: Plan
    inputs: Inputs
    clock: StageClock
    is_wanted: Callable[[str], bool]
    check_cancelled: Callable[[], None]

    def ranked_logits(self, cache: Cache) -> Ranked:
        """The rankings that need the forward pass's logits alone."""
        found = self._top_k(
            self._groups(cache, None), [], None, [{} for _ in self.plan.calls], only_logits=True
        )
        self.clock.end("derive")
        return found

    def logits(self, found: Ranked) -> Iterator[Event]:
        """What needs the forward pass's logits alone."""
        for call_index, call in enumerate(self.plan.calls):
            yield from ((call.call_id, one) for one in self._named(found.results, call_index))

    def others(self, cache: Cache, gradients: Gradients, logits: Ranked) -> Iterator[Event]:
        """Everything else: objectives, top nodes, single components, and what depends on the nodes."""
        groups = self._groups(cache, gradients)
        is_one_group = len(groups) == 1
        everything = (
            groups[0] if is_one_group else self._scalars(cache, gradients, slice(0, len(self.plan.rows)))
        )
        objectives = [gradients.losses, *(one.reshape(1) for one in gradients.traced.values())]
        found = self._top_k(groups, objectives, everything, logits.tables, only_logits=False)
        losses, *traced = found.more
        self.clock.end("derive")
        lists: list[_Lists] = []
        for call_index, call in enumerate(self.plan.calls):
            if not self.is_wanted(call.call_id):
                continue
            self.clock.start()
            if not any(call_index in one.to_score.calls for one in lists):
                lists = [
                    self._token_lists(everything, to_score, uploaded)
                    for to_score, uploaded in found.to_score
                    if call_index in to_score.calls
                ]
            for event in self._of_call(call_index, groups, found, lists, gradients, losses, traced):
                yield call.call_id, event
            self.clock.end("score")
            yield call.call_id, Finished()

    def _of_call(
        self,
        call_index: int,
        groups: Sequence[Rows],
        found: Ranked,
        lists: Sequence[_Lists],
        gradients: Gradients,
        losses: Array,
        traced: Sequence[Array],
    ) -> Iterator[CallEvent]:
        """A call's events."""
        values = dict(zip(gradients.traced, traced, strict=True))
        for row in self.plan.rows_of(call_index):
            yield self._objective_values(row, losses, values)
        yield from self._named(found.results, call_index)
        yield from self._components(groups, call_index)
        yield from self._dependents(groups, found, call_index, lists)

    def _groups(self, cache: Cache, gradients: Gradients | None) -> list[Rows]:
        return [self._scalars(cache, gradients, group.rows) for group in self.plan.groups]

    def _scalars(self, cache: Cache, gradients: Gradients | None, rows: slice) -> Rows:
        return Rows(self.model, self.precomputed, self.plan, self.inputs, cache, gradients, rows)

    def _top_k(
        self,
        groups: Sequence[Rows],
        more: Sequence[Tensor],
        everything: Rows | None,
        known: Sequence[dict[str, NodeTable]],
        *,
        only_logits: bool,
    ) -> Ranked:
        """Every multiple top-k of every row: one copy to the device and one to the host.

        Args:
            more: what else is brought to the host.
            everything: all rows, where token lists will be wanted.
            known: tables of each call that there are already.
        """
        plan = self.plan
        pairs = list(zip(plan.groups, groups, strict=True))
        derived = derive(plan, pairs, only_logits=only_logits, check_cancelled=self.check_cancelled)
        tables = [
            union_of_nodes(plan, derived, call_index, only_logits=only_logits)
            for call_index in range(len(plan.calls))
        ]
        looked_up = look_ups(plan, derived, tables, only_logits=only_logits)
        all_tables = [before | own for before, own in zip(known, tables, strict=True)]
        to_score = [] if everything is None else self._to_score(all_tables)
        on_device = [*looked_up.arrays, *(array for one in to_score for array in one.arrays)]
        uploaded = iter(upload(on_device, self.model.decoder.device))
        values = looked_up.values([next(uploaded) for _ in looked_up.arrays])
        sums = [total for one in derived for total in one.sums.values()]
        on_host = download([*values, *sums, *more])
        of_sums = iter(on_host[len(values) :])
        totals = [{key: next(of_sums) for key in one.sums} for one in derived]
        results = top_k_results(
            plan, looked_up, tables, on_host[: len(values)], totals, only_logits=only_logits
        )
        scored = [(one, [next(uploaded) for _ in one.arrays]) for one in to_score]
        return Ranked(results, all_tables, scored, list(of_sums))

    def _named(
        self, results: dict[tuple[int, str], MultipleTopKResult], call_index: int
    ) -> Iterator[NamedResult]:
        """A call's rankings, sub-request by sub-request, in the order of their names."""
        for row in self.plan.rows_of(call_index):
            planned = self.plan.rows[row]
            for name in planned.processing:
                if (row, name) in results:
                    yield NamedResult(planned.sub_request_index, name, results[row, name])

    def _objective_values(self, row: int, losses: Array, traced: dict[int, Array]) -> ObjectiveValues:
        planned = self.plan.rows[row]
        return ObjectiveValues(
            planned.sub_request_index,
            None if planned.inference.loss is None else float(losses[row]),
            float(traced[row][0]) if row in traced else None,
        )

    def _components(self, groups: Sequence[Rows], call_index: int) -> Iterator[NamedResult]:
        """What is asked of single components."""
        for row in self.plan.rows_of(call_index):
            planned, group = self.plan.rows[row], group_of(self.plan, row)
            scalars, own_row = groups[group], row - self.plan.groups[group].start
            for name, spec in planned.processing.items():
                if isinstance(spec, DerivedScalarsSpec):
                    result = derived_scalars(scalars, own_row, spec, self.ranker)
                    yield NamedResult(planned.sub_request_index, name, result)
                elif isinstance(spec, DerivedAttentionScalarsSpec):
                    pairs = derived_attention_scalars(scalars, own_row, spec)
                    yield NamedResult(planned.sub_request_index, name, pairs)

    def _dependents(
        self,
        groups: Sequence[Rows],
        found: Ranked,
        call_index: int,
        lists: Sequence[_Lists],
    ) -> Iterator[NamedResult]:
        """What depends on the nodes."""
        for row in self.plan.rows_of(call_index):
            planned, group = self.plan.rows[row], group_of(self.plan, row)
            for name, spec in planned.processing.items():
                result: ScoredTokensResult | TokenPairAttributionResult
                match spec:
                    case ScoredTokensSpec():
                        own_lists = next(one for one in lists if one.to_score.n_tokens == spec.n_tokens)
                        result = own_lists.of(row, spec)
                    case TokenPairAttributionSpec(depends_on, n_tokens):
                        table = found.tables[call_index][depends_on]
                        own_row = row - self.plan.groups[group].start
                        result = token_pair_attribution(groups[group], own_row, table, n_tokens)
                    case _:
                        continue
                yield NamedResult(planned.sub_request_index, name, result)

    # Token lists

    def _to_score(self, tables: Sequence[dict[str, NodeTable]]) -> list[_ToScore]:
        """The nodes that tokens are scored against, of calls whose lists are made together.

        What an ablation does not reach has the same directions with and without it; and what is ranked on a
        GPU is ranked at once.
        """
        calls = range(len(self.plan.calls))
        found = []
        for together in [[one] for one in calls] if self.ranker.remembers else [list(calls)]:
            asked = [
                _Asked(row, spec, tables[call_index][spec.depends_on])
                for call_index in together
                for row in self.plan.rows_of(call_index)
                for spec in self.plan.rows[row].processing.values()
                if isinstance(spec, ScoredTokensSpec)
            ]
            found += [
                self._nodes_to_score(frozenset(together), n_tokens, asked)
                for n_tokens in dict.fromkeys(one.spec.n_tokens for one in asked)
            ]
        return found

    def _nodes_to_score(self, calls: frozenset[int], n_tokens: int, asked: Sequence[_Asked]) -> _ToScore:
        by_scoring = {
            scoring: [one for one in asked if one.spec.scoring is scoring and one.spec.n_tokens == n_tokens]
            for scoring in TokenScoringType
        }
        mlp_latents = frozenset(node_type for node_type in LATENT_NODE_TYPES if self._is_of_mlp(node_type))
        nodes = {
            scoring: nodes_to_score([(one.row, one.table) for one in own], scoring, mlp_latents)
            for scoring, own in by_scoring.items()
        }
        config = self.model.decoder.config
        heads = heads_to_read(
            nodes.pop(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
            nodes.pop(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K),
            config.n_heads,
            config.n_heads_per_group,
        )
        return _ToScore(calls, n_tokens, by_scoring, nodes, heads)

    def _is_of_mlp(self, node_type: NodeType) -> bool:
        """Whether latents of this type are loaded, and are the MLP's."""
        is_mlp = [one.site.is_mlp for one in self.model.autoencoders]
        if node_type is NodeType.AUTOENCODER_LATENT:
            return is_mlp[:1] == [True]
        return any(is_mlp) and node_type is NodeType.MLP_AUTOENCODER_LATENT

    def _token_lists(self, everything: Rows, to_score: _ToScore, uploaded: Sequence[Tensor]) -> _Lists:
        """Vocabulary tokens scored against every node that has a direction of the kind asked for."""
        waiting = iter(uploaded)
        directions: dict[TokenScoringType, list[Directions]] = {}
        for scoring, nodes in to_score.nodes.items():
            directions[scoring] = [
                node_directions(everything, DeviceNodes(own, [next(waiting) for _ in own.arrays]), scoring)
                for own in nodes
            ]
        if to_score.heads is not None:
            queries, keys = head_read_directions(everything, to_score.heads, list(waiting))
            directions[TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q] = [queries]
            directions[TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K] = [keys]
        scorings = [
            Scoring(part.vectors, part.which, part.scales, to_score.n_tokens, is_output=_is_output(scoring))
            for scoring, parts in directions.items()
            for part in parts
        ]
        return _Lists(to_score, directions, self.ranker.score(scorings) if scorings else iter(()), {})


@dataclass(frozen=True)
class _Asked:
    """Token lists that a row wants."""

    row: int
    spec: ScoredTokensSpec
    table: NodeTable


@dataclass(frozen=True)
class _ToScore:
    """What token lists of some calls want: the nodes of each kind, over all their rows."""

    calls: frozenset[int]
    n_tokens: int
    asked: dict[TokenScoringType, list[_Asked]]
    nodes: dict[TokenScoringType, list[NodesOfType]]
    heads: HeadReads | None

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device."""
        of_nodes = [array for nodes in self.nodes.values() for own in nodes for array in own.arrays]
        return of_nodes + ([] if self.heads is None else self.heads.arrays)


@dataclass(frozen=True)
class _Lists:
    """Token lists of some calls, which come kind by kind while they are asked for."""

    to_score: _ToScore
    directions: dict[TokenScoringType, list[Directions]]
    waiting: Iterator[TopTokens]
    ready: dict[TokenScoringType, tuple[Array, TopTokens]]

    def of(self, row: int, spec: ScoredTokensSpec) -> ScoredTokensResult:
        """The lists of one row."""
        for scoring, parts in self.directions.items():
            if spec.scoring in self.ready or spec.scoring not in self.directions:
                break
            if scoring not in self.ready:
                lists = [next(self.waiting) for _ in parts]
                places = [part.places for part in parts]
                self.ready[scoring] = (
                    np.concatenate(places) if places else np.zeros(0, np.int64),
                    _joined(lists) if lists else no_tokens(),
                )
        start = 0
        for one in self.to_score.asked[spec.scoring]:
            if one.row == row and one.spec is spec:
                break
            start += len(one.table.nodes)
        rows = np.full(len(one.table.nodes), -1, np.int32)
        if spec.scoring not in self.ready:
            return ScoredTokensResult(one.table.nodes, rows, no_tokens())
        found, tokens = self.ready[spec.scoring]
        own = np.flatnonzero((found >= start) & (found < start + len(rows)))
        rows[found[own] - start] = np.arange(len(own))
        return ScoredTokensResult(one.table.nodes, rows, _some(tokens, own))


@dataclass(frozen=True)
class Ranked:
    """The rankings' results by row and name, each call's nodes, what is to be scored, and what else came."""

    results: dict[tuple[int, str], MultipleTopKResult]
    tables: list[dict[str, NodeTable]]
    to_score: list[tuple[_ToScore, list[Tensor]]]
    more: list[Array]


def _is_output(scoring: TokenScoringType) -> bool:
    return scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS


def _some(lists: TopTokens, which: Array) -> TopTokens:
    """The lists of some nodes."""
    if not len(which):
        return no_tokens()
    return TopTokens(*(getattr(lists, one.name)[which] for one in fields(TopTokens)))


def _joined(lists: Sequence[TopTokens]) -> TopTokens:
    """The lists of several kinds of nodes, one below the other."""
    if len(lists) == 1:
        return lists[0]
    names = [one.name for one in fields(TopTokens)]
    return TopTokens(*(np.concatenate([getattr(one, name) for one in lists]) for name in names))
