"""The answers of a batch's calls: their named results, in the order in which they become ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.requests import (
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    LensSpec,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)
from tdb_server.domain.results import (
    CallEvent,
    ComponentTotalsResult,
    Finished,
    MultipleTopKResult,
    NamedResult,
    ObjectiveValues,
    ProcessingResult,
)
from tdb_server.engine.cache import Gradients
from tdb_server.engine.component_scalars import derived_attention_scalars, derived_scalars
from tdb_server.engine.derive import derive
from tdb_server.engine.edges import edges
from tdb_server.engine.lens import lens
from tdb_server.engine.look_ups import look_ups
from tdb_server.engine.node_results import component_totals, top_k_results
from tdb_server.engine.node_tables import NodeTable, union_of_nodes
from tdb_server.engine.plan import Plan
from tdb_server.engine.rank_tokens import TokenRanker
from tdb_server.engine.raw_activations import activations
from tdb_server.engine.references import circuit_losses, circuit_values
from tdb_server.engine.rows import Rows
from tdb_server.engine.stage_clock import StageClock
from tdb_server.engine.token_lists import TokenLists, ToScore, nodes_of_calls, token_lists
from tdb_server.engine.token_pairs import token_pair_attribution
from tdb_server.engine.transfers import Array, download, upload

Event = tuple[str, CallEvent]
_FROM_RANKING = (MultipleTopKSpec, ComponentTotalsSpec)
_WITHOUT_NODES = (DerivedScalarsSpec, DerivedAttentionScalarsSpec, LensSpec, ActivationsSpec, EdgesSpec)
_OF_LISTED_NODES = (ScoredTokensSpec, TokenPairAttributionSpec)


@dataclass(frozen=True)
class Ranked:
    """The best nodes.

    Attributes:
        results: by row and name, also the sums by component.
        tables: each call's nodes, by name.
        to_score: what tokens are scored against, with its arrays on the device.
        extra_arrays: what else was brought to the host.
    """

    results: dict[tuple[int, str], MultipleTopKResult | ComponentTotalsResult]
    tables: list[dict[str, NodeTable]]
    to_score: list[tuple[ToScore, list[Tensor]]]
    extra_arrays: list[Array]


@dataclass(frozen=True)
class Answers:
    """What answers are made of.

    Attributes:
        is_wanted: asked with a call's id, before something is computed for it alone.
        check_cancelled: ends the work of the batch when nobody wants it any more.
    """

    plan: Plan
    ranker: TokenRanker
    clock: StageClock
    is_wanted: Callable[[str], bool]
    check_cancelled: Callable[[], None]

    def rank_logits(self, all_rows: Rows) -> Ranked:
        """The rankings that need the forward pass's logits alone. Of all rows, before the backward pass."""
        ranked = self._top_k(all_rows, self._groups(all_rows), [], [{} for _ in self.plan.calls])
        self.clock.end("derive")
        return ranked

    def logit_results(self, ranked: Ranked) -> Iterator[Event]:
        """What needs the forward pass's logits alone."""
        for call_index, call in enumerate(self.plan.calls):
            for event in self._named(_FROM_RANKING, call_index, [], ranked, []):
                yield call.call_id, event

    def results_after_backward(
        self, all_rows: Rows, gradients: Gradients, ranked_logits: Ranked
    ) -> Iterator[Event]:
        """Everything else: objectives, top nodes, single components, and what depends on the nodes."""
        groups = self._groups(all_rows)
        of_circuits = circuit_losses(self.plan, all_rows.inputs, all_rows.references)
        objectives = [gradients.losses, of_circuits, *gradients.traced]
        ranked = self._top_k(all_rows, groups, objectives, ranked_logits.tables)
        losses, reference_losses, *of_traces = ranked.extra_arrays
        traced = {
            row: float(value)
            for rows, values in zip(self.plan.traces.values(), of_traces, strict=True)
            for row, value in zip(rows, values, strict=True)
        }
        self.clock.end("derive")
        lists: list[TokenLists] = []
        for call_index, call in enumerate(self.plan.calls):
            if not self.is_wanted(call.call_id):
                continue
            self.clock.start()
            if not any(call_index in one.to_score.calls for one in lists):
                lists = [
                    token_lists(all_rows, self.ranker, to_score, uploaded, self.check_cancelled)
                    for to_score, uploaded in ranked.to_score
                    if call_index in to_score.calls
                ]
            for row in self.plan.rows_of[call_index]:
                planned = self.plan.rows[row]
                loss = None if planned.inference.loss is None else float(losses[row])
                circuit = circuit_values(self.plan, row, losses, reference_losses)
                values = ObjectiveValues(planned.sub_request_index, loss, traced.get(row), circuit)
                yield call.call_id, values
            for kinds in (_FROM_RANKING, _WITHOUT_NODES, _OF_LISTED_NODES):
                for event in self._named(kinds, call_index, groups, ranked, lists):
                    yield call.call_id, event
            self.clock.end("score")
            yield call.call_id, Finished()

    def _groups(self, all_rows: Rows) -> list[Rows]:
        if len(self.plan.groups) == 1:  # what is made of all rows is made once
            return [all_rows]
        return [all_rows.part(group.rows) for group in self.plan.groups]

    def _top_k(
        self,
        all_rows: Rows,
        groups: Sequence[Rows],
        extra_tensors: Sequence[Tensor],
        known: Sequence[dict[str, NodeTable]],
    ) -> Ranked:
        """Every multiple top-k of every row: one copy to the device and one to the host.

        Args:
            all_rows: before the backward pass, logits alone are ranked.
            extra_tensors: what else is brought to the host.
            known: tables of each call that there are already.
        """
        plan, only_logits, check_cancelled = self.plan, all_rows.backward is None, self.check_cancelled
        pairs = list(zip(plan.groups, groups, strict=True))
        derived = derive(plan, pairs, only_logits=only_logits, check_cancelled=check_cancelled)
        calls = range(len(plan.calls))
        tables = [
            union_of_nodes(plan, derived, one, only_logits=only_logits, check_cancelled=check_cancelled)
            for one in calls
        ]
        looked_up = look_ups(plan, derived, tables, only_logits=only_logits)
        all_tables = [before | own for before, own in zip(known, tables, strict=True)]
        together = [[one] for one in calls] if self.ranker.remembers else [list(calls)]
        to_score = [
            one
            for own in ([] if only_logits else together)
            for one in nodes_of_calls(plan, all_rows.model, own, all_tables)
        ]
        on_device = [*looked_up.arrays, *(array for one in to_score for array in one.arrays)]
        uploaded = iter(upload(on_device, all_rows.model.decoder.device))
        values = looked_up.values([next(uploaded) for _ in looked_up.arrays])
        sums = [total for one in derived for total in one.sums.values()]
        on_host = download([*values, *sums, *extra_tensors])
        of_sums = iter(on_host[len(values) :])
        totals = [{key: next(of_sums) for key in one.sums} for one in derived]
        numbers = on_host[: len(values)]
        results: dict[tuple[int, str], MultipleTopKResult | ComponentTotalsResult] = {
            **top_k_results(plan, looked_up, tables, numbers, totals, only_logits=only_logits)
        }
        if not only_logits:
            n_layers = len(all_rows.model.decoder.blocks)
            results |= component_totals(plan, derived, totals, n_layers)
        scored = [(one, [next(uploaded) for _ in one.arrays]) for one in to_score]
        return Ranked(results, all_tables, scored, list(of_sums))

    def _named(
        self,
        kinds: tuple[type, ...],
        call_index: int,
        groups: Sequence[Rows],
        ranked: Ranked,
        lists: Sequence[TokenLists],
    ) -> Iterator[NamedResult]:
        """A call's results of some kinds, sub-request by sub-request, in the order of their names."""
        for row in self.plan.rows_of[call_index]:
            planned = self.plan.rows[row]
            for name, spec in planned.processing.items():
                if not isinstance(spec, kinds):
                    continue
                result: ProcessingResult | None
                if isinstance(spec, _FROM_RANKING):  # of logits alone or of all others, as they are ready
                    result = ranked.results.get((row, name))
                else:
                    result = self._result(row, name, groups, ranked.tables[call_index], lists)
                if result is not None:
                    yield NamedResult(planned.sub_request_index, name, result)

    def _result(
        self,
        row: int,
        name: str,
        groups: Sequence[Rows],
        tables: dict[str, NodeTable],
        lists: Sequence[TokenLists],
    ) -> ProcessingResult:
        """What a row wants of single components, or of the nodes that were found."""
        group = self.plan.group_of[row]
        rows, own_row = groups[group], row - self.plan.groups[group].start
        match self.plan.rows[row].processing[name]:
            case DerivedScalarsSpec() as spec:
                return derived_scalars(rows, own_row, spec, self.ranker)
            case DerivedAttentionScalarsSpec() as spec:
                return derived_attention_scalars(rows, own_row, spec)
            case EdgesSpec() as spec:
                all_rows = rows.part(slice(0, len(self.plan.rows)))
                return edges(all_rows, row, spec, self.check_cancelled)
            case LensSpec() as spec:
                return lens(rows, own_row, spec)
            case ActivationsSpec() as spec:
                return activations(rows, own_row, spec)
            case ScoredTokensSpec(_, scoring, n_tokens):
                own_lists = next(one for one in lists if one.to_score.n_tokens == n_tokens)
                return own_lists.of(row, name, scoring)
            case TokenPairAttributionSpec(depends_on, n_tokens):
                return token_pair_attribution(rows, own_row, tables[depends_on], n_tokens)
            case other:
                raise TypeError(f"{name} is a {type(other).__name__}")
