"""The plan of a batch: its rows, and what must be kept of them so that every result can be computed.

No tensor is touched here. Rows that ask for the same stand together, as a group: what is computed for them is
computed for all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.gradient_need import needs_gradient
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    ActivationsSpec,
    AttentionTraceType,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    ProcessingSpec,
    Trace,
)
from tdb_server.engine.circuits import circuit_interventions
from tdb_server.engine.interventions import Intervention
from tdb_server.engine.keeping import Keeping, kept_for
from tdb_server.engine.latents import autoencoder_of
from tdb_server.engine.plan_groups import Group
from tdb_server.engine.plan_references import PlannedReferences
from tdb_server.engine.plan_rows import Row
from tdb_server.engine.streams import Stream, objective_stream, trace_stream
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.hooks import HookSite

WRITE_SCALES = frozenset({HookPoint.ATTN_POST_LN_SCALE, HookPoint.MLP_POST_LN_SCALE})
"""What writes are divided by, in models that do that; they are kept wherever anything else is."""


@dataclass(frozen=True)
class Plan:
    """What a batch computes.

    Attributes:
        calls: what is asked.
        rows: those that ask for the same stand together.
        groups: of the rows, in order.
        kept: of its passes.
        is_parallel: whether MLPs read the stream before their layer.
        n_tokens: rows are padded to so many.
        n_layers: of the model.
        autoencoders: that are loaded.
        references: the prompts that rows are compared with, which are run forward alone.
    """

    calls: tuple[Call, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    kept: Keeping
    is_parallel: bool
    n_tokens: int
    n_layers: int
    autoencoders: tuple[Autoencoder, ...]
    references: Plan | None = None

    @cached_property
    def needs_gradient(self) -> bool:
        """Whether anything is made of a gradient of some row's objective."""
        has_objective = any(row.inference.loss or row.inference.trace for row in self.rows)
        return has_objective and any(needs_gradient(one) for call in self.calls for one in call.sub_requests)

    @cached_property
    def interventions(self) -> dict[HookSite, list[Intervention]]:
        """What is set where, in the order of rows; of a circuit first."""
        by_site: dict[HookSite, list[Intervention]] = {}
        for row_index, row in enumerate(self.rows):
            of_circuit = circuit_interventions(row, row_index, self.n_layers, self.autoencoders)
            ablations = (Intervention(row_index, row.n_tokens, one) for one in row.inference.ablations)
            for intervention in (*of_circuit, *ablations):
                site = (intervention.hook_point, intervention.ablation.index.layer_index)
                by_site.setdefault(site, []).append(intervention)
        return by_site

    @cached_property
    def circuit_pairs(self) -> list[tuple[int, int]]:
        """Rows of circuits, each with the references whose loss is wanted: its prompt, then its baselines."""
        return [
            (row_index, reference)
            for row_index, row in enumerate(self.rows)
            if (compared := row.circuit_references) is not None
            for reference in (compared.prompt, *compared.baselines)
        ]

    @cached_property
    def divergence_targets(self) -> dict[tuple[tuple[int, ...], int], int]:
        """What losses diverge from: sets of baselines, each with a token, numbered in the order of rows."""
        targets = dict.fromkeys(one.divergence for one in self.rows if one.divergence is not None)
        return {target: number for number, target in enumerate(targets)}

    @cached_property
    def divergences(self) -> list[tuple[int, int]]:
        """The rows whose loss is a divergence, each with the number of its target."""
        targets = [(index, row.divergence) for index, row in enumerate(self.rows)]
        return [(index, self.divergence_targets[one]) for index, one in targets if one is not None]

    @cached_property
    def circuit_divergences(self) -> list[tuple[int, int]]:
        """The same of `circuit_pairs`, by their indices there."""
        by_row = dict(self.divergences)
        return [(index, by_row[row]) for index, (row, _) in enumerate(self.circuit_pairs) if row in by_row]

    @cached_property
    def traces(self) -> dict[Trace, list[int]]:
        """Rows by their trace, which stands without its indices: those that differ in these go together."""
        found: dict[Trace, list[int]] = {}
        for row_index, row in enumerate(self.rows):
            if row.trace is not None:
                found.setdefault(_without_indices(row.trace), []).append(row_index)
        return found

    @cached_property
    def losses_along_directions(self) -> dict[Stream, list[int]]:
        """The rows whose loss is along a direction, by the residual stream that has it."""
        found: dict[Stream, list[int]] = {}
        for row_index, row in enumerate(self.rows):
            if row.trace is None and row.stream is not None:
                found.setdefault(row.stream, []).append(row_index)
        return found

    @cached_property
    def objective_streams(self) -> dict[Stream, set[int]]:
        """The residual streams that objectives start from, each with the rows whose objective it is."""
        found = {stream: set(rows) for stream, rows in self.losses_along_directions.items()}
        for trace, rows in self.traces.items():
            found.setdefault(self.trace_stream(trace), set()).update(rows)
            if trace.downstream is not None:
                found.setdefault(self.trace_stream(trace.downstream), set())
        return found

    def trace_stream(self, trace: Trace) -> Stream:
        """The residual stream that a trace starts from."""
        return trace_stream(trace, is_parallel=self.is_parallel)

    @cached_property
    def rows_of(self) -> list[list[int]]:
        """Of each call, its rows in the order of its sub-requests, one for each."""
        found: list[list[int]] = [[] for _ in self.calls]
        for index in sorted(range(len(self.rows)), key=lambda index: self.rows[index].sub_request_index):
            if self.rows[index].embedding_share == 1:
                found[self.rows[index].call_index].append(index)
        return found

    @cached_property
    def interpolated(self) -> list[int]:
        """The rows that start between their baselines' embeddings and their own."""
        return [index for index, row in enumerate(self.rows) if row.embedding_share != 1]

    def steps_of(self, row_index: int) -> list[int]:
        """The rows whose gradients count for a row: itself, and those that start on the way to it."""
        steps = ((one, self.rows[one]) for one in self.interpolated)
        own = self.rows[row_index]
        place = own.call_index, own.sub_request_index
        return [row_index, *(at for at, one in steps if (one.call_index, one.sub_request_index) == place)]

    @cached_property
    def group_of(self) -> list[int]:
        """Of each row, which group it belongs to."""
        return [index for index, group in enumerate(self.groups) for _ in range(group.start, group.stop)]


def plan_batch(
    calls: Sequence[Call],
    autoencoders: Sequence[Autoencoder],
    absent: frozenset[HookPoint] = WRITE_SCALES,
    *,
    n_layers: int,
) -> Plan:
    """Makes the plan of a batch of calls.

    Args:
        calls: what is asked.
        autoencoders: that are loaded.
        absent: the hook points that the model does not have.
        n_layers: of the model.
    """
    is_parallel, scales = HookPoint.RESID_POST_ATTN in absent, WRITE_SCALES - absent
    by_specs: dict[tuple[object, ...], list[Row]] = {}
    kept, references = Keeping(), PlannedReferences(autoencoders, is_parallel)
    for call_index, call in enumerate(calls):
        for row in _rows_of(call_index, call, autoencoders, is_parallel):
            row = references.with_references(row)
            by_specs.setdefault(_group_key(row), []).append(row)
            if row.trace is not None and row.trace.attention_trace_type is AttentionTraceType.V:
                kept.add(HookPoint.ATTN_QK_PROBS)
                if row.trace.downstream is None:
                    kept.add(HookPoint.RESID_LN_F_SCALE)
        for one in call.sub_requests:
            for what, with_gradient in kept_for(one, autoencoders, is_parallel=is_parallel):
                kept.add(what, with_gradient)
    if kept.values or any(one.processing for call in calls for one in call.sub_requests):
        kept.values |= scales
    rows: list[Row] = []
    groups = []
    for together in by_specs.values():
        first = together[0]
        groups.append(Group(len(rows), len(rows) + len(together), first.top_k_specs, first.totals))
        rows += together
    model = is_parallel, max(row.n_tokens for row in rows), n_layers, tuple(autoencoders)
    compared = None
    if references.rows:
        references.kept.values |= scales
        group = Group(0, len(references.rows), {})
        compared = Plan((), references.rows, (group,), references.kept, *model)
    return Plan(tuple(calls), tuple(rows), tuple(groups), kept, *model, compared)


def _group_key(row: Row) -> tuple[object, ...]:
    """What rows of a group have in common. Those without baselines go the shorter way, by themselves."""
    specs = (
        (name, replace(spec, top_and_bottom_k=0, token_index=None if spec.token_index is None else 0))
        for name, spec in row.top_k_specs.items()
    )
    return bool(row.baselines), row.totals, *specs


def _rows_of(
    call_index: int, call: Call, autoencoders: Sequence[Autoencoder], is_parallel: bool
) -> list[Row]:
    """A call's rows. Layers that one sub-request leaves out, all leave out: all list the same nodes."""
    first_layers: dict[str, int] = {}
    for one in call.sub_requests:
        for name, spec in one.processing.items():
            if isinstance(spec, MultipleTopKSpec) and spec.first_layer_index is not None:
                first_layers[name] = max(first_layers.get(name, 0), spec.first_layer_index)
    logit_tokens = _logit_tokens(call)
    rows = []
    for index, one in enumerate(call.sub_requests):
        processing: dict[str, ProcessingSpec] = {
            name: replace(spec, first_layer_index=first_layers.get(name))
            if isinstance(spec, MultipleTopKSpec)
            else spec
            for name, spec in one.processing.items()
        }
        trace = one.inference.trace and _specific_trace(one.inference.trace, autoencoders)
        n_tokens = len(one.inference.token_ids)
        tokens = (
            range(n_tokens) if logit_tokens is None else sorted({*logit_tokens, one.inference.loss_token})
        )
        stream = objective_stream(one.inference, trace, is_parallel=is_parallel)
        row = Row(call_index, index, one.inference, processing, trace, tuple(tokens), stream)
        rows.append(row)
        shares = (step / one.n_rows for step in range(1, one.n_rows))
        last = (one.inference.loss_token,)
        rows += [replace(row, processing={}, logit_tokens=last, embedding_share=share) for share in shares]
    return rows


def _logit_tokens(call: Call) -> set[int] | None:
    """The tokens whose logits any sub-request of the call wants; None for all tokens."""
    tokens: set[int | None] = set()
    for sub_request in call.sub_requests:
        for spec in sub_request.processing.values():
            if isinstance(spec, DerivedScalarsSpec) and spec.derived_scalar is DerivedScalar.LOGITS:
                return None
            if isinstance(spec, ActivationsSpec) and spec.hook_point is HookPoint.LOGITS:
                return None
            if isinstance(spec, MultipleTopKSpec) and DerivedScalar.LOGITS in spec.derived_scalars:
                tokens.add(spec.token_index)
    return None if None in tokens else {one for one in tokens if one is not None}


def _specific_trace(trace: Trace, autoencoders: Sequence[Autoencoder]) -> Trace:
    """The trace with "whichever autoencoder is loaded" spelled out."""
    node = trace.node
    if node.node_type is NodeType.AUTOENCODER_LATENT:
        node = replace(node, node_type=autoencoder_of(node.node_type, autoencoders).site.node_type)
    downstream = trace.downstream and _specific_trace(trace.downstream, autoencoders)
    return replace(trace, node=node, downstream=downstream)


def _without_indices(trace: Trace) -> Trace:
    downstream = trace.downstream and _without_indices(trace.downstream)
    return replace(trace, node=replace(trace.node, tensor_indices=()), downstream=downstream)
