"""How many bytes an answer has, at the most and at the least, from what is asked for alone.

At the most, every ranking of every sub-request chooses nodes that no other one chooses; how many there can be
of a kind in the model is the limit. At the least, all choose the same. Zeros are not listed: so at the least
only those kinds count whose numbers are not zero but by chance, at half of what there is of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from tdb_server.domain.axes import hook_point_axes, n_cells, scalar_axes
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.derived_scalar import DerivedScalar, Measure
from tdb_server.domain.edges import EdgeShape, EdgesSpec
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import WRITERS, Dimension, NodeType, PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    LensSpec,
    LossName,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)

FLOAT_BYTES = 4
"""Of a number in an answer."""
_NODE_BYTES, _LEAST_NODE_BYTES = 32, 6  # a node index on the wire, with the text of a vocabulary token
_TOKEN_BYTES, _LEAST_TOKEN_BYTES = 24, 11  # a scored token on the wire: id, two numbers, text of ten bytes
_ATTENDED_TO_BYTES = 8  # an attended-to token on the wire: index and number
_EDGE_BYTES = 12  # an edge on the wire: writer, reader and score
_EDGE_END_BYTES = 14  # a writer or a reader on the wire
_RESULT_BYTES = 192  # what is around a result
_PAIRS_AND_HEAD = ("query", "key", "head")
_TOKEN_AXES = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
_LARGE_VALUE = 1e3
_NEVER_ZERO = frozenset({NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD})
"""But by chance. Latents are, mostly; and of other kinds there are few."""
_MAY_ALL_BE_POSITIVE = (Measure.ACTIVATION, Measure.WRITE_NORM)
"""Of attention, for one: then no node is among the smallest, where masked cells, which are none, are 0."""


def answer_bytes(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> tuple[int, int]:
    """Bytes of the whole answer on the wire: at the most, and at the least."""
    most = sum(len(one.inference.token_ids) * _TOKEN_BYTES for one in sub_requests)
    least = 0
    most_nodes: dict[tuple[int, str], NodeCounts] = {}
    least_nodes: dict[tuple[int, str], dict[Kind, int]] = {}
    for one in sub_requests:
        for name in one.processing:
            if _ranking_name(one, name) == name:  # others depend on it, and need not be gone through
                most_nodes[id(one), name] = _most_nodes(one, name, info)
                least_nodes[id(one), name] = _least_nodes(one, name, info)
    for name in dict.fromkeys(name for one in sub_requests for name in one.processing):
        # The sub-requests' rankings of one name are joined, and each lists all of their nodes.
        users = [one for one in sub_requests if name in one.processing]
        rankings = [_ranking_name(one, name) for one in users]
        chosen = _joined(most_nodes[id(one), ranked] for one, ranked in zip(users, rankings, strict=True))
        for one, ranked in zip(users, rankings, strict=True):
            spec = one.processing[name]
            tensors = _tensor_bytes(spec, info, len(one.inference.token_ids))
            most += _RESULT_BYTES + len(name.encode()) + tensors
            most += _list_bytes(spec, chosen, info, _NODE_BYTES, _TOKEN_BYTES)
            if isinstance(spec, DerivedScalarsSpec | DerivedAttentionScalarsSpec):
                most += len(one.inference.token_ids) * _NODE_BYTES  # of the tokens, or of each a node
            surely = least_nodes[id(one), ranked]
            least += tensors
            if not isinstance(spec, DerivedScalarsSpec | EdgesSpec):  # not all have a list, or as long a one
                least += _list_bytes(spec, surely, info, _LEAST_NODE_BYTES, _LEAST_TOKEN_BYTES)
    return most, least


def _ranking_name(sub_request: InferenceSubRequest, name: str) -> str:
    """The spec that a spec depends on, or itself."""
    spec = sub_request.processing[name]
    return spec.depends_on if isinstance(spec, ScoredTokensSpec | TokenPairAttributionSpec) else name


Kind = tuple[NodeType, int]
"""A kind of node, and how many indices it has."""
NodeCounts = dict[Kind, tuple[int, int]]
"""Of each kind of node, how many are chosen, and how many there are."""


def _most_nodes(sub_request: InferenceSubRequest, name: str, info: ModelInfo) -> NodeCounts:
    ranking = sub_request.processing[name]
    if not isinstance(ranking, MultipleTopKSpec):
        return {}
    n_tokens = len(sub_request.inference.token_ids)
    chosen: Counter[Kind] = Counter()
    there: Counter[Kind] = Counter()
    for scalar, n_chosen in ranking.chosen:
        kind = _kind(scalar)
        chosen[kind] += n_chosen
        there[kind] = max(there[kind], n_cells(scalar, info, n_tokens))
    return {kind: (min(number, there[kind]), there[kind]) for kind, number in chosen.items()}


def _joined(counts: Iterable[NodeCounts]) -> dict[Kind, int]:
    chosen: Counter[Kind] = Counter()
    there: Counter[Kind] = Counter()
    for one in counts:
        for kind, (number, in_all) in one.items():
            chosen[kind] += number
            there[kind] = max(there[kind], in_all)
    return {kind: min(number, there[kind]) for kind, number in chosen.items()}


def _least_nodes(sub_request: InferenceSubRequest, name: str, info: ModelInfo) -> dict[Kind, int]:
    ranking = sub_request.processing[name]
    least: dict[Kind, int] = {}
    if not isinstance(ranking, MultipleTopKSpec) or ranking.first_layer_index is not None:
        return least
    if _sets_much(sub_request.inference):
        return least
    for scalar, n_chosen in ranking.chosen:
        kind = _kind(scalar)
        if kind[0] in _NEVER_ZERO:
            has_zeros = Dimension.ATTENDED_TO_SEQUENCE_TOKENS in scalar.declared.dimensions
            if has_zeros and scalar.declared.measure in _MAY_ALL_BE_POSITIVE:
                n_chosen = min(n_chosen, ranking.top_and_bottom_k)
            found = min(n_chosen, _n_sure_cells(scalar, ranking, sub_request.inference, info))
            least[kind] = max(least.get(kind, 0), found)
    return least


def _kind(scalar: DerivedScalar) -> Kind:
    shape = scalar.declared
    return shape.node_type, len(shape.dimensions)


def _sets_much(inference: InferenceSpec) -> bool:
    """Whether there may be zeros, or what is no number, in more than a few cells.

    Ablations and circuits set cells. What a baseline prompt has in common with the prompt differs by zero,
    from the first token on.
    """
    return bool(inference.baselines or inference.circuit) or any(
        None in one.index.tensor_indices
        or one.index.pass_type is PassType.BACKWARD
        or abs(one.value) > _LARGE_VALUE
        for one in inference.ablations
        if one != HOLD_FINAL_NORM_SCALE
    )


def _n_sure_cells(
    scalar: DerivedScalar, ranking: MultipleTopKSpec, inference: InferenceSpec, info: ModelInfo
) -> int:
    """Half of the cells that are not zero, but for chance."""
    n_tokens = len(inference.token_ids)
    n = n_cells(scalar, info, n_tokens)
    if Dimension.ATTENDED_TO_SEQUENCE_TOKENS in scalar.declared.dimensions:  # no token attends to later ones
        n = n // 2 if ranking.token_index is None else n * (ranking.token_index + 1) // n_tokens
    if scalar.declared.needs_objective(ranking.pass_type):
        loss = inference.loss
        if loss is None or loss.name is LossName.ZERO or loss.target_tokens == loss.distractor_tokens:
            return 0
        if inference.trace is not None or loss.direction is not None:
            return 0  # nothing after the traced node, or the direction's place, counts
        if loss.token_index is not None or loss.target_weights is not None:
            return 0  # nor do later tokens; and weights may be 0
        if "to_final_residual_grad" in scalar.value or info.n_layers == 1:
            n //= n_tokens  # the loss sees the last token
        else:
            n = n * (info.n_layers - 1) // info.n_layers
    if ranking.token_index is not None:
        n //= n_tokens
    return n // 2


def _tensor_bytes(spec: ProcessingSpec, info: ModelInfo, n_tokens: int) -> int:
    match spec:
        case MultipleTopKSpec(omits_sums=True):
            return 0  # nodes are counted apart
        case MultipleTopKSpec():
            kept = set(_TOKEN_AXES if spec.dimensions_to_keep is None else spec.dimensions_to_keep)
            return sum(FLOAT_BYTES * _kept_entries(scalar, kept, info, n_tokens) for scalar, _ in spec.chosen)
        case DerivedScalarsSpec():
            return 2 * FLOAT_BYTES * n_tokens
        case LensSpec():
            n_rows = (1 + len(spec.layers)) * len(spec.token_indices)
            return FLOAT_BYTES * n_rows * len(spec.vocabulary_tokens)
        case ActivationsSpec():
            return FLOAT_BYTES * n_activations(spec, info, n_tokens)
        case ComponentTotalsSpec():
            n_numbers = sum(_n_components(one, info) for one in spec.derived_scalars)
            return FLOAT_BYTES * n_numbers * (n_tokens if spec.by_token else 1)
        case DerivedAttentionScalarsSpec():
            return FLOAT_BYTES * (2 * n_tokens**2 + 8 * n_tokens)
        case EdgesSpec(whole_matrix=True):
            shape = EdgeShape.of(info)
            return FLOAT_BYTES * shape.n_writers * shape.n_readers
        case _:
            return 0


def n_activations(spec: ActivationsSpec, info: ModelInfo, n_tokens: int) -> int:
    """Numbers of a place in all its layers, at the tokens asked for."""
    sizes = hook_point_axes(spec.hook_point, info, n_tokens)
    return len(spec.layers) * len(spec.token_indices) * math.prod(sizes[1:])


def _n_components(scalar: DerivedScalar, info: ModelInfo) -> int:
    """Entries of a total."""
    n_layers = info.n_layers if scalar.declared.is_per_layer else 1
    return n_layers * _kept_entries(scalar, {Dimension.ATTN_HEADS}, info, 1)


def _kept_entries(scalar: DerivedScalar, kept: set[Dimension], info: ModelInfo, n_tokens: int) -> int:
    """Entries of a sum."""
    sizes = zip(scalar.declared.dimensions, scalar_axes(scalar, info, n_tokens), strict=True)
    return math.prod(size for axis, size in sizes if axis in kept)


def _list_bytes(
    spec: ProcessingSpec, chosen: dict[Kind, int], info: ModelInfo, node_bytes: int, token_bytes: int
) -> int:
    """Nodes, and the token lists of those that have one."""
    n_nodes = sum(chosen.values())
    match spec:
        case MultipleTopKSpec():
            return n_nodes * (node_bytes + FLOAT_BYTES * len(spec.groups))
        case ScoredTokensSpec():
            n_scored = sum(number for kind, number in chosen.items() if _has_list(kind, spec.scoring))
            n_listed = 2 * min(spec.n_tokens, info.vocabulary_size)
            return n_nodes * node_bytes + n_scored * n_listed * token_bytes
        case TokenPairAttributionSpec():
            n_latents = sum(number for (node_type, _), number in chosen.items() if node_type.is_latent)
            return n_nodes * node_bytes + n_latents * spec.n_tokens_attended_to * _ATTENDED_TO_BYTES
        case DerivedScalarsSpec():
            return 2 * min(spec.n_top_tokens or 0, info.vocabulary_size) * token_bytes
        case LensSpec():
            n_rows = (1 + len(spec.layers)) * len(spec.token_indices)
            # Of which each has one number, where tokens of other lists have two.
            return n_rows * min(spec.n_top_tokens, info.vocabulary_size) * (token_bytes - FLOAT_BYTES)
        case DerivedAttentionScalarsSpec() | ComponentTotalsSpec() | ActivationsSpec():
            return 0
        case EdgesSpec():
            shape = EdgeShape.of(info)
            return spec.top_k * _EDGE_BYTES + (shape.n_writers + shape.n_readers) * _EDGE_END_BYTES


def _has_list(kind: Kind, scoring: TokenScoringType) -> bool:
    """Whether nodes of a kind may have a token list of a kind; neurons and heads have one if so."""
    node_type, n_indices = kind
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return node_type in WRITERS
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return node_type.is_latent or node_type is NodeType.MLP_NEURON
        case _:
            return node_type is NodeType.ATTENTION_HEAD and n_indices == len(_PAIRS_AND_HEAD)
