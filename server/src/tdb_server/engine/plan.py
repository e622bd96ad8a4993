"""The plan of a batch: its rows, and what must be kept of them so that every result can be computed.

No tensor is touched here. Rows that ask for the same stand together, as a group: what is computed for them is
computed for all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.requests import (
    AttentionTraceType,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
)
from tdb_server.engine.interventions import Intervention
from tdb_server.model.autoencoder import Autoencoder

HookSite = tuple[HookPoint, int | None]
"""A hook point in a layer; None for those that no layer has."""
TOKEN_DIMENSIONS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
_ERRORS = frozenset(
    {
        HookPoint.ONLINE_AUTOENCODER_ERROR,
        HookPoint.ONLINE_MLP_AUTOENCODER_ERROR,
        HookPoint.ONLINE_ATTENTION_AUTOENCODER_ERROR,
    }
)
_AUTOENCODERS = {  # the hook point or node type: whether it is the MLP's, None for whichever is loaded
    HookPoint.ONLINE_AUTOENCODER_LATENT: None,
    HookPoint.ONLINE_MLP_AUTOENCODER_LATENT: True,
    HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT: False,
    HookPoint.ONLINE_AUTOENCODER_ERROR: None,
    HookPoint.ONLINE_MLP_AUTOENCODER_ERROR: True,
    HookPoint.ONLINE_ATTENTION_AUTOENCODER_ERROR: False,
    NodeType.AUTOENCODER_LATENT: None,
    NodeType.MLP_AUTOENCODER_LATENT: True,
    NodeType.ATTENTION_AUTOENCODER_LATENT: False,
}


def is_error(hook_point: HookPoint) -> bool:
    """Whether it is what an autoencoder fails to reconstruct."""
    return hook_point in _ERRORS


def is_of_autoencoder(hook_point: HookPoint) -> bool:
    """Whether it exists only with an autoencoder."""
    return hook_point in _AUTOENCODERS


def autoencoder_of(named: HookPoint | NodeType, autoencoders: Sequence[Autoencoder]) -> Autoencoder:
    """The loaded autoencoder that a hook point or a node type means; requests were checked before."""
    is_mlp = _AUTOENCODERS[named]
    return next(one for one in autoencoders if is_mlp is None or one.site.is_mlp == is_mlp)


_ATTENTION_WRITES = frozenset(
    {HookPoint.RESID_POST_ATTN, HookPoint.RESID_DELTA_ATTN, HookPoint.ATTN_QK_PROBS}
)
"""Hook points that stand before their layer's MLP."""


def attention_depth(layer_index: int) -> int:
    """Where attention's write stands among all writes to the residual stream, the embedding being 0."""
    return 2 * layer_index + 1


def mlp_depth(layer_index: int) -> int:
    """Where the MLP's write stands among all writes to the residual stream."""
    return 2 * layer_index + 2


def write_depth(hook_point: HookPoint) -> Callable[[int], int]:
    """Of a layer index, where the write that a hook point keeps of it stands among all writes."""
    return attention_depth if hook_point in _ATTENTION_WRITES else mlp_depth


def trace_site(trace: Trace) -> HookSite:
    """The residual stream that a trace starts from: before the MLP, or before the layer for attention."""
    layer_index = trace.node.layer_index
    assert layer_index is not None
    if trace.node.node_type in (NodeType.ATTENTION_HEAD, NodeType.ATTENTION_AUTOENCODER_LATENT):
        return (
            (HookPoint.RESID_POST_EMB, None)
            if layer_index == 0
            else (HookPoint.RESID_POST_MLP, layer_index - 1)
        )
    return HookPoint.RESID_POST_ATTN, layer_index


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
    """

    scalar: DerivedScalar
    pass_types: tuple[PassType, ...]
    keep: tuple[Dimension, ...]


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        call_index: whose it is.
        sub_request_index: of that call.
        inference: how it is run.
        processing: what is wanted of it, by name.
        trace: its trace, with "whichever autoencoder is loaded" spelled out.
        logit_tokens: the tokens whose logits are wanted, in order, the last one always among them.
    """

    call_index: int
    sub_request_index: int
    inference: InferenceSpec
    processing: dict[str, ProcessingSpec]
    trace: Trace | None
    logit_tokens: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.inference.token_ids)

    @property
    def direction_tokens(self) -> Sequence[int]:
        """The tokens at which the direction of interest can be other than zero."""
        everywhere = range(self.n_tokens)
        if any(
            one.index.pass_type is PassType.BACKWARD and one.value != 0 for one in self.inference.ablations
        ):
            return everywhere
        if self.trace is None:
            return (self.n_tokens - 1,)
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
        if self.trace is None:
            return None
        hook_point, layer_index = trace_site(self.trace)
        if layer_index is None:
            return 0
        return (
            attention_depth(layer_index)
            if hook_point is HookPoint.RESID_POST_ATTN
            else mlp_depth(layer_index)
        )


@dataclass(frozen=True)
class Group:
    """Rows of a batch that stand together and ask for the same rankings and sums.

    Attributes:
        start: the first row.
        stop: the row behind the last one.
        specs: the multiple-top-k specs of the first row; others differ in k and in the token they look at.
    """

    start: int
    stop: int
    specs: dict[str, MultipleTopKSpec]

    @property
    def rows(self) -> slice:
        """The rows."""
        return slice(self.start, self.stop)

    def rankings(self, *, only_logits: bool) -> list[Ranking]:
        """All rankings that some spec wants, of specs that do (not) rank logits alone."""
        found = {
            ranking: None
            for name, spec in self._specs(only_logits=only_logits)
            for group, scalars in spec.groups
            for scalar in scalars
            for ranking in rankings_of(name, spec, group, scalar)
        }
        return list(found)

    def sums(self, *, only_logits: bool) -> list[Summing]:
        """All sums that some spec wants."""
        found = {
            summing_of(spec, scalar): None
            for _, spec in self._specs(only_logits=only_logits)
            for _, scalars in spec.groups
            for scalar in scalars
        }
        return list(found)

    def _specs(self, *, only_logits: bool) -> list[tuple[str, MultipleTopKSpec]]:
        return [one for one in self.specs.items() if ranks_only_logits(one[1]) == only_logits]


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
    if declared.has_backward_pass and not declared.is_previous_layer:
        both = (PassType.FORWARD, PassType.BACKWARD)
        return Summing(scalar, both if spec.pass_type is PassType.BACKWARD else both[:1], keep)
    return Summing(scalar, (spec.pass_type,), keep)


def ranks_only_logits(spec: MultipleTopKSpec) -> bool:
    """Whether it can be answered before the backward pass."""
    return spec.pass_type is PassType.FORWARD and all(
        scalar is DerivedScalar.LOGITS for _, scalars in spec.groups for scalar in scalars
    )


@dataclass(frozen=True)
class Plan:
    """What a batch computes.

    Attributes:
        calls: what is asked.
        rows: those that ask for the same stand together.
        groups: of the rows, in order.
        values: hook points that are kept, in every layer.
        gradients: hook points whose gradients are kept.
        site_gradients: the autoencoders' sites whose gradients are kept, behind the splice.
    """

    calls: tuple[Call, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    values: frozenset[HookPoint]
    gradients: frozenset[HookPoint]
    site_gradients: frozenset[Site]

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the longest row."""
        return max((row.n_tokens for row in self.rows), default=0)

    @property
    def has_objective(self) -> bool:
        """Whether there is anything to differentiate."""
        return any(row.inference.loss or row.inference.trace for row in self.rows)

    @cached_property
    def interventions(self) -> dict[HookSite, list[Intervention]]:
        """What is set where, in the order of rows."""
        found: dict[HookSite, list[Intervention]] = {}
        for row_index, row in enumerate(self.rows):
            for one in row.inference.ablations:
                site = (one.index.hook_point, one.index.layer_index)
                found.setdefault(site, []).append(Intervention(row_index, row.n_tokens, one))
        return found

    def rows_of(self, call_index: int) -> list[int]:
        """The rows of a call, in the order of its sub-requests."""
        found = [
            (row.sub_request_index, index)
            for index, row in enumerate(self.rows)
            if row.call_index == call_index
        ]
        return [index for _, index in sorted(found)]


def plan_batch(calls: Sequence[Call], autoencoders: Sequence[Autoencoder]) -> Plan:
    """Makes the plan of a batch of calls."""
    rows = [row for call_index, call in enumerate(calls) for row in _rows_of(call_index, call, autoencoders)]
    by_key: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault(_group_key(row), []).append(row)
    ordered = [row for together in by_key.values() for row in together]
    groups, start = [], 0
    for together in by_key.values():
        groups.append(Group(start, start + len(together), top_k_specs(together[0])))
        start += len(together)
    kept = _Kept(set(), set(), set())
    for row in rows:
        for spec in row.processing.values():
            _keep_for_spec(kept, spec, row, autoencoders)
        if row.trace is not None and row.trace.attention_trace_type is AttentionTraceType.V:
            kept.values.add(HookPoint.ATTN_QK_PROBS)
    return Plan(
        tuple(calls),
        tuple(ordered),
        tuple(groups),
        frozenset(kept.values),
        frozenset(kept.gradients),
        frozenset(kept.site_gradients),
    )


def top_k_specs(row: Row) -> dict[str, MultipleTopKSpec]:
    """The multiple-top-k specs of a row, by name."""
    return {name: spec for name, spec in row.processing.items() if isinstance(spec, MultipleTopKSpec)}


def _group_key(row: Row) -> tuple[object, ...]:
    return tuple(
        (name, replace(spec, top_and_bottom_k=0, token_index=None if spec.token_index is None else 0))
        for name, spec in top_k_specs(row).items()
    )


def _rows_of(call_index: int, call: Call, autoencoders: Sequence[Autoencoder]) -> list[Row]:
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
        trace = one.inference.trace
        n_tokens = len(one.inference.token_ids)
        tokens = range(n_tokens) if logit_tokens is None else sorted({*logit_tokens, n_tokens - 1})
        rows.append(
            Row(
                call_index,
                index,
                one.inference,
                processing,
                None if trace is None else _specific_trace(trace, autoencoders),
                tuple(tokens),
            )
        )
    return rows


def _logit_tokens(call: Call) -> set[int] | None:
    """The tokens whose logits any sub-request of the call wants; None for all tokens."""
    tokens: set[int] = set()
    for sub_request in call.sub_requests:
        for spec in sub_request.processing.values():
            if isinstance(spec, DerivedScalarsSpec) and spec.derived_scalar is DerivedScalar.LOGITS:
                return None
            if isinstance(spec, MultipleTopKSpec) and any(
                DerivedScalar.LOGITS in one for _, one in spec.groups
            ):
                if spec.token_index is None:
                    return None
                tokens.add(spec.token_index)
    return tokens


def _specific_trace(trace: Trace, autoencoders: Sequence[Autoencoder]) -> Trace:
    """The trace with "whichever autoencoder is loaded" spelled out."""
    node, downstream = trace.node, trace.downstream
    if node.node_type is NodeType.AUTOENCODER_LATENT:
        node = replace(node, node_type=autoencoder_of(node.node_type, autoencoders).site.node_type)
    if downstream is not None:
        downstream = _specific_trace(downstream, autoencoders)
    return replace(trace, node=node, downstream=downstream)


# What is kept


@dataclass(frozen=True)
class _Kept:
    values: set[HookPoint]
    gradients: set[HookPoint]
    site_gradients: set[Site]


def _keep_for_spec(kept: _Kept, spec: ProcessingSpec, row: Row, autoencoders: Sequence[Autoencoder]) -> None:
    match spec:
        case MultipleTopKSpec():
            for _, scalars in spec.groups:
                for scalar in scalars:
                    _keep_for_scalar(kept, scalar, spec.pass_type, autoencoders)
        case DerivedScalarsSpec():
            _keep_for_scalar(kept, spec.derived_scalar, spec.pass_type, autoencoders)
        case DerivedAttentionScalarsSpec():
            _keep_for_scalar(kept, spec.derived_scalar, PassType.FORWARD, autoencoders)
            within = row.inference.within_layer_gradient
            if within is not None:
                kept.values.add(autoencoder_of(within.hook_point, autoencoders).site.hook_point)
        case ScoredTokensSpec():
            kept.values.update(_kept_for_scoring(spec.scoring, _node_types(row, spec.depends_on)))
        case TokenPairAttributionSpec():
            if any(one.is_latent for one in _node_types(row, spec.depends_on)):
                kept.values.update({HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V})


def _keep_for_scalar(
    kept: _Kept, scalar: DerivedScalar, pass_type: PassType, autoencoders: Sequence[Autoencoder]
) -> None:
    declared = scalar.declared
    hook_point, measure = declared.hook_point, declared.measure
    wants_gradient = pass_type is PassType.BACKWARD or measure in (
        Measure.ACT_TIMES_GRAD,
        Measure.VECTOR_TIMES_GRAD,
    )
    if hook_point is None or measure is Measure.ONE:
        return
    if is_of_autoencoder(hook_point):
        site = autoencoder_of(hook_point, autoencoders).site
        kept.values.add(site.hook_point)
        kept.site_gradients.update({site} if wants_gradient else ())
        return
    read = {hook_point}
    if declared.is_previous_layer:
        read.add(HookPoint.RESID_POST_EMB)
    if hook_point is HookPoint.ATTN_V_OUT and measure in (Measure.ACT_TIMES_GRAD, Measure.DIRECT_EFFECT):
        read = {HookPoint.ATTN_QK_PROBS}  # summed over what is attended to
    kept.values.update(read)
    kept.gradients.update(read if wants_gradient else ())
    if read == {HookPoint.ATTN_QK_PROBS} and measure not in (Measure.ACTIVATION, Measure.ACT_TIMES_GRAD):
        kept.values.add(HookPoint.ATTN_V)


def _node_types(row: Row, name: str) -> set[NodeType]:
    spec = row.processing[name]
    if not isinstance(spec, MultipleTopKSpec):
        raise TypeError(f"{name} is not a multiple top-k")
    return {scalar.declared.node_type for _, scalars in spec.groups for scalar in scalars}


_WRITES = {
    NodeType.LAYER: {HookPoint.RESID_POST_EMB},
    NodeType.MLP_NEURON: {HookPoint.MLP_POST_ACT},
    NodeType.ATTENTION_HEAD: {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT},
}


def _kept_for_scoring(scoring: TokenScoringType, node_types: set[NodeType]) -> set[HookPoint]:
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return set().union(*(_WRITES.get(one, set()) for one in node_types))
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return {HookPoint.RESID_POST_ATTN}
        case _ if NodeType.ATTENTION_HEAD in node_types:
            return {HookPoint.RESID_POST_EMB, HookPoint.RESID_POST_MLP, HookPoint.ATTN_Q, HookPoint.ATTN_K}
        case _:
            return set()
