"""The plan of a batch: its rows, and what must be kept of them so that every result can be computed.

No tensor is touched here. Rows that ask for the same stand together, as a group: what is computed for them is
computed for all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tdb_server.domain.axes import TOKEN_DIMENSIONS, is_of_autoencoder
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.gradient_need import needs_gradient
from tdb_server.domain.hook_point import NODE_HOOK_POINTS, WHOLE_HOOK_POINTS, HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    AttentionTraceType,
    Circuit,
    ComponentTotalsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    MultipleTopKSpec,
    ProcessingSpec,
    Trace,
    ValueType,
)
from tdb_server.engine.circuits import circuit_interventions
from tdb_server.engine.interventions import Intervention
from tdb_server.engine.keeping import Kept, kept_for, scalars_of
from tdb_server.engine.latents import autoencoder_of
from tdb_server.model.autoencoder import Autoencoder

WRITE_SCALES = frozenset({HookPoint.ATTN_POST_LN_SCALE, HookPoint.MLP_POST_LN_SCALE})
"""What writes are divided by, in models that do that; they are kept wherever anything else is."""
HookSite = tuple[HookPoint, int | None]
"""A hook point in a layer; None for those that no layer has."""


# The order of writes to the residual stream: 0 for the embedding, then four of every layer: attention's, that
# of a dictionary of the stream after attention, the MLP's, that of a dictionary of the stream after it.
# An objective that starts from a stream sees what was written at its depth or before.


def attention_depth(layer_index: int) -> int:
    """Of attention's write."""
    return 4 * layer_index + 1


def mlp_depth(layer_index: int) -> int:
    """Of the MLP's write."""
    return 4 * layer_index + 3


def write_depth(hook_point: HookPoint) -> Callable[[int], int]:
    """From a layer index to the depth of this hook point's write."""
    before_mlp = (
        HookPoint.RESID_POST_ATTN,
        HookPoint.RESID_DELTA_ATTN,
        HookPoint.ATTN_QK_PROBS,
        HookPoint.ATTN_V_OUT,
    )
    return attention_depth if hook_point in before_mlp else mlp_depth


def latent_depth(site: Site, layer_index: int) -> int:
    """Of the write of a dictionary's latents."""
    is_before_mlp = site.is_attention or site is Site.RESID_POST_ATTN
    return (attention_depth if is_before_mlp else mlp_depth)(layer_index) + site.is_stream


@dataclass(frozen=True)
class Stream:
    """The residual stream that a trace starts from.

    Attributes:
        hook_point: which.
        layer_index: its layer; None for the embedding.
        is_behind_dictionary: whether what is set of its dictionary's latents is seen. Only those latents
            themselves read the stream before it.
    """

    hook_point: HookPoint
    layer_index: int | None
    is_behind_dictionary: bool = True

    @property
    def depth(self) -> int:
        """Writes at this depth or before are in it."""
        if self.layer_index is None:
            return 0
        return write_depth(self.hook_point)(self.layer_index) + self.is_behind_dictionary


_STREAMS = {
    NodeType.RESID_POST_ATTN_AUTOENCODER_LATENT: HookPoint.RESID_POST_ATTN,
    NodeType.RESID_POST_MLP_AUTOENCODER_LATENT: HookPoint.RESID_POST_MLP,
}


def trace_stream(trace: Trace, *, is_parallel: bool) -> Stream:
    """Before the MLP, or before the layer for attention; for latents of the stream, that stream.

    Args:
        trace: of a node.
        is_parallel: whether MLPs too read the stream before their layer.
    """
    layer_index, node_type = trace.node.layer_index, trace.node.node_type
    assert layer_index is not None
    if node_type in _STREAMS:
        return Stream(_STREAMS[node_type], layer_index, is_behind_dictionary=False)
    of_attention = (NodeType.ATTENTION_HEAD, NodeType.ATTENTION_AUTOENCODER_LATENT)
    if node_type not in of_attention and not is_parallel:
        return Stream(HookPoint.RESID_POST_ATTN, layer_index)
    if layer_index:
        return Stream(HookPoint.RESID_POST_MLP, layer_index - 1)
    return Stream(HookPoint.RESID_POST_EMB, None)


@dataclass(frozen=True)
class Ranking:
    """Which nodes of a derived scalar are wanted.

    Attributes:
        pass_type: of the numbers that are ranked.
        largest: the largest, or the smallest.
        token_of: the spec at whose `token_index` they are, where it names one token.
        first_layer_index: only those of this layer and later ones, where given.
    """

    scalar: DerivedScalar
    pass_type: PassType
    largest: bool
    token_of: str | None
    first_layer_index: int | None


@dataclass(frozen=True)
class Summing:
    """A derived scalar's sum over all layers and all axes but some.

    Attributes:
        pass_types: those that are added up.
        keep: the axes that are left, in node order.
        by_layer: whether layers are kept apart.
    """

    scalar: DerivedScalar
    pass_types: tuple[PassType, ...]
    keep: tuple[Dimension, ...]
    by_layer: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        call_index: whose it is.
        sub_request_index: of that call.
        inference: how it is run.
        processing: what is wanted of it, by name.
        trace: its trace, with "whichever autoencoder is loaded" spelled out.
        logit_tokens: the tokens whose logits are wanted, in order, the loss's always among them.
        is_parallel: whether MLPs read the stream before their layer.
        baselines: of `Plan.references`, those whose mean it is compared with.
        circuit_between: where only a circuit is kept, of the same the prompt itself and what stands for its
            baseline.
        embedding_share: its embedding is so much of the way from that of its baselines to its own. Rows where
            that is not all of it are there for the gradients that another row of the sub-request needs.
    """

    call_index: int
    sub_request_index: int
    inference: InferenceSpec
    processing: dict[str, ProcessingSpec]
    trace: Trace | None
    logit_tokens: tuple[int, ...]
    is_parallel: bool
    baselines: tuple[int, ...] = ()
    circuit_between: tuple[int, tuple[int, ...]] | None = None
    embedding_share: float = 1.0

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.inference.token_ids)

    @property
    def loss_token(self) -> int:
        """The token whose logits a loss is of."""
        return loss_token(self.inference)

    @property
    def stream(self) -> Stream | None:
        """The residual stream that the objective is of; None for a loss of logits."""
        if self.trace is not None:
            return trace_stream(self.trace, is_parallel=self.is_parallel)
        loss = self.inference.loss
        if loss is None or loss.direction is None:
            return None
        return Stream(loss.direction.hook_point, loss.direction.layer_index)

    @property
    def direction_tokens(self) -> Sequence[int]:
        """The tokens at which the direction of interest can be other than zero."""
        everywhere = range(self.n_tokens)
        if any(
            one.index.pass_type is PassType.BACKWARD and one.value != 0 for one in self.inference.ablations
        ):
            return everywhere
        if self.trace is None:
            return (self.loss_token,)
        token, *others = self.trace.node.tensor_indices
        if self.trace.node.node_type is NodeType.ATTENTION_AUTOENCODER_LATENT:
            return everywhere[: token + 1]
        if self.trace.node.node_type is not NodeType.ATTENTION_HEAD:
            return (token,)
        keys = everywhere[: token + 1] if self.trace.post_act else (others[0],)
        match self.trace.attention_trace_type:
            case AttentionTraceType.Q:
                return (token,)
            case AttentionTraceType.K:
                return keys
            case AttentionTraceType.V:
                return (others[0],)
            case _:
                return sorted({token, *keys})

    @property
    def direction_depth(self) -> int | None:
        """Writes at this depth or before are seen by the objective directly; None: all are."""
        return None if self.stream is None else self.stream.depth


def loss_token(inference: InferenceSpec) -> int:
    """The token whose logits the loss of a run is of; without a loss the last."""
    told = None if inference.loss is None else inference.loss.token_index
    return len(inference.token_ids) - 1 if told is None else told


@dataclass(frozen=True)
class Group:
    """Rows of a batch that stand together and ask for the same rankings and sums.

    Attributes:
        start: the first row.
        stop: the row behind the last one.
        specs: the multiple-top-k specs of the first row; others differ in k and in the token they look at.
        totals: derived scalars that are summed by component.
    """

    start: int
    stop: int
    specs: dict[str, MultipleTopKSpec]
    totals: tuple[DerivedScalar, ...] = ()

    @property
    def rows(self) -> slice:
        """The rows."""
        return slice(self.start, self.stop)

    def rankings(self, *, only_logits: bool) -> list[Ranking]:
        """All rankings that some spec wants, of specs that do (not) rank logits alone."""
        found = (
            ranking
            for name, spec in self.specs.items()
            for group, scalars in spec.groups
            for scalar in scalars
            for ranking in rankings_of(name, spec, group, scalar)
            if ranks_only_logits(spec) == only_logits
        )
        return list(dict.fromkeys(found))

    def sums(self, *, only_logits: bool) -> list[Summing]:
        """All sums that some spec wants."""
        found = (
            summing_of(spec, scalar)
            for spec in self.specs.values()
            for scalar in scalars_of(spec)
            if ranks_only_logits(spec) == only_logits
        )
        by_component = () if only_logits else map(total_of, self.totals)
        return list(dict.fromkeys([*found, *by_component]))


def total_of(scalar: DerivedScalar) -> Summing:
    """The sum by component: by layer, and of heads by head."""
    keep = tuple(one for one in scalar.declared.dimensions if one is Dimension.ATTN_HEADS)
    return Summing(scalar, (PassType.FORWARD,), keep, by_layer=True)


def rankings_of(name: str, spec: MultipleTopKSpec, group: GroupId, scalar: DerivedScalar) -> list[Ranking]:
    """The best nodes, and the worst where the group has them.

    A hook point read backward still ranks its activations; that is what the reference answers.
    """
    pass_type = ranked_pass(spec, scalar)
    token_of = None if spec.token_index is None else name
    return [
        Ranking(scalar, pass_type, largest, token_of, spec.first_layer_index)
        for largest in ((True, False) if group.has_bottom else (True,))
    ]


def ranked_pass(spec: MultipleTopKSpec, scalar: DerivedScalar) -> PassType:
    """The pass whose numbers are ranked, and told of each node."""
    return spec.pass_type if scalar.declared.is_previous_layer else PassType.FORWARD


def summing_of(spec: MultipleTopKSpec, scalar: DerivedScalar) -> Summing:
    """The sum that a spec wants: a hook point read backward adds its gradients to its activations."""
    declared = scalar.declared
    kept = spec.dimensions_to_keep or TOKEN_DIMENSIONS
    keep = tuple(one for one in declared.dimensions if one in kept)
    if declared.reads is None or spec.pass_type is PassType.FORWARD:
        return Summing(scalar, (spec.pass_type,), keep)
    return Summing(scalar, (PassType.FORWARD, PassType.BACKWARD), keep)


def ranks_only_logits(spec: MultipleTopKSpec) -> bool:
    """Whether it can be answered before the backward pass."""
    return spec.pass_type is PassType.FORWARD and set(scalars_of(spec)) <= {DerivedScalar.LOGITS}


@dataclass(frozen=True)
class Plan:
    """What a batch computes.

    Attributes:
        calls: what is asked.
        rows: those that ask for the same stand together.
        groups: of the rows, in order.
        values: hook points that are kept, in every layer.
        gradients: hook points whose gradients are kept.
        sites: the dictionaries' sites of which it is kept what is read.
        site_gradients: those whose gradients are kept, behind the splice.
        is_parallel: whether MLPs read the stream before their layer.
        n_tokens: rows are padded to so many.
        n_layers: of the model.
        autoencoders: that are loaded.
        references: the prompts that rows are compared with, which are run forward alone.
    """

    calls: tuple[Call, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    values: frozenset[HookPoint]
    gradients: frozenset[HookPoint]
    sites: frozenset[Site]
    site_gradients: frozenset[Site]
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
        """What is set where, in the order of rows."""
        found: dict[HookSite, list[Intervention]] = {}
        for row_index, row in enumerate(self.rows):
            own = [Intervention(row_index, row.n_tokens, one) for one in row.inference.ablations]
            for one in (*self._circuit(row_index), *own):
                site = (one.hook_point, one.ablation.index.layer_index)
                found.setdefault(site, []).append(one)
        return found

    def _circuit(self, row_index: int) -> Iterator[Intervention]:
        row = self.rows[row_index]
        if row.inference.circuit is not None:
            yield from circuit_interventions(
                row.inference.circuit,
                row_index,
                row.n_tokens,
                self.n_layers,
                self.autoencoders,
                has_baselines=bool(row.baselines),
            )

    @cached_property
    def circuit_pairs(self) -> list[tuple[int, int]]:
        """Rows of circuits, each with the references whose loss is wanted: its prompt, then its baselines."""
        return [
            (row_index, reference)
            for row_index, row in enumerate(self.rows)
            if row.circuit_between is not None
            for reference in (row.circuit_between[0], *row.circuit_between[1])
        ]

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
    def trace_streams(self) -> dict[Stream, set[int]]:
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
        row = self.rows[row_index]
        place = row.call_index, row.sub_request_index
        others = (self.rows[one] for one in self.interpolated)
        own = [(one.call_index, one.sub_request_index) == place for one in others]
        return [row_index, *(one for one, is_own in zip(self.interpolated, own, strict=True) if is_own)]

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
    is_parallel = HookPoint.RESID_POST_ATTN in absent
    by_specs: dict[tuple[object, ...], list[Row]] = {}
    values: set[HookPoint] = set()
    gradients: set[HookPoint] = set()
    sites: set[Site] = set()
    site_gradients: set[Site] = set()
    references = _References(autoencoders, is_parallel)
    for call_index, call in enumerate(calls):
        for row in _rows_of(call_index, call, autoencoders, is_parallel):
            row = references.compared(row)
            by_specs.setdefault(_group_key(row), []).append(row)
            if row.trace is not None and row.trace.attention_trace_type is AttentionTraceType.V:
                values.add(HookPoint.ATTN_QK_PROBS)
        for one in call.sub_requests:
            for kept, with_gradient in kept_for(one, autoencoders, is_parallel=is_parallel):
                values.add(kept.hook_point if isinstance(kept, Site) else kept)
                if isinstance(kept, Site):
                    sites.add(kept)
                    site_gradients.update({kept} if with_gradient else ())
                elif with_gradient:
                    gradients.add(kept)
    if values or any(one.processing for call in calls for one in call.sub_requests):
        values |= WRITE_SCALES - absent
    rows: list[Row] = []
    groups = []
    for together in by_specs.values():
        first = together[0]
        groups.append(Group(len(rows), len(rows) + len(together), top_k_specs(first), _totals(first)))
        rows += together
    n_tokens = max(row.n_tokens for row in rows)
    kept_sets = frozenset(values), frozenset(gradients), frozenset(sites), frozenset(site_gradients)
    model = is_parallel, n_tokens, n_layers, tuple(autoencoders)
    scales = WRITE_SCALES - absent
    return Plan(tuple(calls), tuple(rows), tuple(groups), *kept_sets, *model, references.plan(model, scales))


class _References:
    """Collects the prompts that rows are compared with: equal ones are run once."""

    def __init__(self, autoencoders: Sequence[Autoencoder], is_parallel: bool) -> None:
        self._autoencoders, self._is_parallel = autoencoders, is_parallel
        self._places: dict[tuple[tuple[int, ...], Circuit | None], int] = {}
        self._values: set[HookPoint] = set()
        self._sites: set[Site] = set()

    def compared(self, row: Row) -> Row:
        """A row, with what it is compared with."""
        inference, circuit = row.inference, row.inference.circuit
        if not inference.baselines and circuit is None:
            return row
        baselines = tuple(self._place(one, None) for one in inference.baselines)
        circuit_between = None
        if circuit is not None:
            nothing = Circuit(circuit.node_types, ())
            stand_in = baselines or (self._place(inference.token_ids, nothing),)
            circuit_between = self._place(inference.token_ids, None), stand_in
            if row.stream is not None:
                self._values.add(row.stream.hook_point)
        if baselines:
            self._keep_for(row)
        return replace(row, baselines=baselines, circuit_between=circuit_between)

    def plan(
        self, model: tuple[bool, int, int, tuple[Autoencoder, ...]], scales: frozenset[HookPoint]
    ) -> Plan | None:
        """Their plan; None where there are none."""
        if not self._places:
            return None
        rows = tuple(
            Row(
                0,
                at,
                InferenceSpec(token_ids, circuit=circuit),
                {},
                None,
                (len(token_ids) - 1,),
                self._is_parallel,
            )
            for (token_ids, circuit), at in self._places.items()
        )
        values, nothing = frozenset(self._values | scales), frozenset[HookPoint]()
        kept_sets = values, nothing, frozenset(self._sites), frozenset[Site]()
        return Plan((), rows, (Group(0, len(rows), {}),), *kept_sets, *model)

    def _place(self, token_ids: tuple[int, ...], circuit: Circuit | None) -> int:
        return self._places.setdefault((token_ids, circuit), len(self._places))

    def _keep_for(self, row: Row) -> None:
        """Notes what of its baselines a row is compared with, or is set to."""
        whole = InferenceSubRequest(row.inference, row.processing)
        kept = [one for one, _ in kept_for(whole, self._autoencoders, is_parallel=self._is_parallel)]
        for ablation in row.inference.ablations:
            if ablation.value_type is ValueType.BASELINE:
                kept.append(self._kept(ablation.index.hook_point))
                if ablation.attended_to_token is not None:
                    kept += [HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V]
        if row.inference.circuit is not None:
            hook_points = WHOLE_HOOK_POINTS | NODE_HOOK_POINTS
            kept += [self._kept(hook_points[one]) for one in row.inference.circuit.node_types]
        for one in kept:
            self._values.add(one.hook_point if isinstance(one, Site) else one)
            self._sites.update({one} if isinstance(one, Site) else ())

    def _kept(self, hook_point: HookPoint) -> Kept:
        """A hook point; of latents, the site that they are read at."""
        return (
            autoencoder_of(hook_point, self._autoencoders).site
            if is_of_autoencoder(hook_point)
            else hook_point
        )


def top_k_specs(row: Row) -> dict[str, MultipleTopKSpec]:
    """The multiple-top-k specs of a row, by name."""
    return {name: spec for name, spec in row.processing.items() if isinstance(spec, MultipleTopKSpec)}


def _totals(row: Row) -> tuple[DerivedScalar, ...]:
    """The derived scalars that a row wants by component."""
    specs = (one for one in row.processing.values() if isinstance(one, ComponentTotalsSpec))
    return tuple(dict.fromkeys(scalar for one in specs for scalar in one.derived_scalars))


def _group_key(row: Row) -> tuple[object, ...]:
    """What rows of a group have in common. Those without baselines go the shorter way, by themselves."""
    specs = (
        (name, replace(spec, top_and_bottom_k=0, token_index=None if spec.token_index is None else 0))
        for name, spec in top_k_specs(row).items()
    )
    return bool(row.baselines), _totals(row), *specs


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
            range(n_tokens) if logit_tokens is None else sorted({*logit_tokens, loss_token(one.inference)})
        )
        row = Row(call_index, index, one.inference, processing, trace, tuple(tokens), is_parallel)
        rows.append(row)
        shares = (step / one.n_rows for step in range(1, one.n_rows))
        last = (loss_token(one.inference),)
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
            if isinstance(spec, MultipleTopKSpec) and DerivedScalar.LOGITS in scalars_of(spec):
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
