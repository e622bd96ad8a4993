"""How much memory a batch takes beside the weights, at the most, from its shape alone.

Letters: T tokens, L layers, d channels, H heads, G key/value heads, e channels of a head, F neurons,
N latents, V vocabulary, all times the bytes of a number. For each row, which
is a sub-request or a prompt that one is compared with, padded to the longest:

    of every layer, for the backward pass, with gradients and what is kept:
        residual-sized    8 · T · d
        per head          T · e · (6 H + 4 G)
        per token pair    5 · H · T²
        per neuron        4 · T · F
    logits                2 · T · V
    ranking               4 · (H · T² + T · F) for one layer, or as many as are ranked together
    one layer's softmax   4 · H · T² in half precision, which is widened there
    derived scalars wider than those, such as what all heads write between two tokens (T² · d):
                          L + 2 times their entries, each
    latents               6 · T · N of one layer at a time, 8 · T · N of each layer where some are ablated,
                          and 128 bytes + 24 numbers for each active one of every layer, of a sub-request
                          alone: twice as many with baselines, in which others may be active
    read by dictionaries  4 · T · s of each layer, in float32 at least, where what is read is a copy: of all
                          heads side by side (s = H · e), or what a transcoder reads of a norm (s = d)

Where objectives alone are wanted there is no way back, and one layer at a time is held,
with 6 · V for the last token's logits; and as many for each loss that a circuit is compared with,
for each loss (the row's, and those of its circuit) that is a divergence from baselines, and for
each baseline that it is from.

    edges                 3 · T · (H + 2 G) · e of every layer for each of its rows; once 2 · T · d of every
                          layer, the writes of all components at a few tokens, and the gradients of a layer's
                          readers there

and once for the batch

    the unembedding       V · d in float32, of half precision, where a value may be traced towards the loss
    token lists           3 · V for each direction that is scored at once, 512 at the most
    chosen nodes          2 · d + 8 numbers for each token of a list, for each list that a node is given,
                          and 256 bytes for itself
    widened weights       in half precision, 4 bytes for each number of one layer's matrices (as many as there
                          are when gated), of one layer of a dictionary, or of a part of the vocabulary,
                          whichever is most

How many nodes are chosen and how many latents are active is known afterwards only. Nodes are counted as if
all that are chosen differed, as far as there are so many. Of a TopK autoencoder k latents are active; of one
with ReLU it is counted in a trial when it is loaded, and four times as many are reckoned with: that is the
one thing here which is no bound but a guess. `tests/property/test_memory_estimate.py` compares all this with
what torch allocates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from tdb_server.domain.answer_bytes import n_activations
from tdb_server.domain.axes import is_of_autoencoder, n_cells, scalar_axes
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.edges import EdgeShape, EdgesSpec
from tdb_server.domain.gradient_need import wanted_scalars
from tdb_server.domain.model_info import AutoencoderInfo, ModelInfo, Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    ActivationsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    LensSpec,
    LossName,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenScoringType,
)

DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
SCORED_DIRECTIONS = 512
"""Nodes whose vocabularies are scored at once."""
RANKED_TOGETHER = 2**25
"""Numbers up to which all layers are ranked as one tensor, on the device that joins the most."""
EDGE_WRITES = 2**26
"""Numbers up to which the writes of several tokens are made at once; one token's are, however many."""
WIDENED_NUMBERS = 2**24
"""Of a vocabulary in half precision, numbers that are float32 at a time: 64 MiB."""
_MIN_SCORED = 64
_ACTIVITY_MARGIN = 4
"""How many times as many ReLU latents may be active in a prompt as were in the trial."""

_RESIDUALS, _PAIRS, _NEURONS, _LOGITS, _LOGITS_OF_LAST = 8, 5, 4, 2, 6
_COPIES = 3
LENSES_TOGETHER = 64
"""Vectors whose logits are computed at once."""
_WAYS = 3
"""How many times as long a pass forward and back takes, with what is made of it, as one forward alone."""
_RANKED, _WIDENED, _WIDE, _SCORED = 4, 4, 2, 3
_ENCODED, _ABLATED, _COPIED = 6, 8, 4
_EDGE_PRODUCTS, _EDGE_RESIDUALS, _EDGE_READERS, _EDGE_SCORES = 3, 2, 3, 3
_WIDE_BYTES = 4
_ACTIVE_BYTES, _ACTIVE_NUMBERS = 128, 24
_NODE_BYTES, _NODE_VECTORS, _NODE_TOKENS = 256, 2, 8
_EITHER = NodeType.AUTOENCODER_LATENT
_TOP_K = re.compile(r"topk\((\d+)\)")


def activation_bytes(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> int:
    """What running these sub-requests as one batch takes beside the weights, in bytes."""
    n_tokens = max((len(one.inference.token_ids) for one in sub_requests), default=0)
    number = DTYPE_BYTES.get(info.dtype, 4)
    n_active = sum(n_tokens * _most_active(one) * len(one.layers) for one in info.autoencoders)
    of_objectives = not any(one.processing for one in sub_requests)
    per_row = number * _numbers_per_row(info, n_tokens)
    per_row += max(number, _WIDE_BYTES) * sum(_copied(info, one, n_tokens) for one in info.autoencoders)
    n_bytes = per_row * n_references(sub_requests)
    if of_objectives:
        n_bytes += number * _numbers_of_objective(info, n_tokens) * len(sub_requests)
    else:
        n_with_latents = sum(2 if one.inference.baselines else 1 for one in sub_requests)
        of_latents = n_with_latents * n_active * (_ACTIVE_BYTES + _ACTIVE_NUMBERS * number)
        n_bytes += per_row * sum(one.n_rows for one in sub_requests) + of_latents
    n_bytes += number * _LOGITS_OF_LAST * info.vocabulary_size * _n_compared_losses(sub_requests)
    n_bytes += number * sum(_wide_numbers(info, one, n_tokens) for one in sub_requests)
    n_bytes += number * sum(_ablated_latents(info, one, n_tokens) for one in sub_requests)
    n_bytes += number * sum(_numbers_of_results(info, one, n_tokens) for one in sub_requests)
    n_bytes += number * max((_edge_numbers(info, one, n_tokens) for one in sub_requests), default=0)
    return n_bytes + _list_bytes(info, sub_requests, number) + _widened_bytes(info)


def n_references(sub_requests: Sequence[InferenceSubRequest]) -> int:
    """Prompts that these are compared with, at the most: equal ones are run once."""
    baselines = {one for sub_request in sub_requests for one in sub_request.inference.baselines}
    circuits = {
        (one.inference.token_ids, one.inference.circuit.node_types)
        for one in sub_requests
        if one.inference.circuit is not None
    }
    return len(baselines) + 2 * len(circuits)


def computed_bytes(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> int:
    """What is computed, held or not: where layers are let go of, what would be held if they were not.

    That says how long it takes. Of a pass forward alone as much counts as it has of one forward and back.
    """
    held = activation_bytes(info, sub_requests)
    if any(one.processing for one in sub_requests):
        return held
    n_tokens = max((len(one.inference.token_ids) for one in sub_requests), default=0)
    of_row = info.n_layers * _numbers_of_layer(info, n_tokens) // _WAYS
    return max(held, len(sub_requests) * DTYPE_BYTES.get(info.dtype, 4) * of_row)


def _numbers_of_objective(info: ModelInfo, n_tokens: int) -> int:
    """Per row that only its objective is wanted of."""
    encoded = _ENCODED * n_tokens * max((one.n_latents for one in info.autoencoders), default=0)
    widened = _WIDENED * info.n_heads * n_tokens**2 if info.dtype == "bfloat16" else 0
    last_logits = _LOGITS_OF_LAST * info.vocabulary_size
    return _numbers_of_layer(info, n_tokens) + encoded + widened + last_logits


def _numbers_of_layer(info: ModelInfo, n_tokens: int) -> int:
    return (
        _RESIDUALS * n_tokens * info.d_model
        + n_tokens * info.d_head * (6 * info.n_heads + 4 * info.n_key_value_heads)
        + _PAIRS * info.n_heads * n_tokens**2
        + _NEURONS * n_tokens * info.n_neurons
    )


def _n_compared_losses(sub_requests: Sequence[InferenceSubRequest]) -> int:
    """Losses of prompts that circuits are compared with: each circuit has its own for each of its prompts.

    And those that diverge from baselines, with these.
    """
    found = 0
    for one in sub_requests:
        run = one.inference
        of_circuit = 0 if run.circuit is None else 1 + max(1, len(run.baselines))
        found += of_circuit
        if run.loss is not None and run.loss.name is LossName.KL_FROM_BASELINE:
            found += one.n_rows + of_circuit + len(run.baselines)
    return found


def _numbers_per_row(info: ModelInfo, n_tokens: int) -> int:
    per_layer = _numbers_of_layer(info, n_tokens)
    of_layer = info.n_heads * n_tokens**2 + n_tokens * info.n_neurons
    ranked = _RANKED * max(of_layer, min(info.n_layers * of_layer, RANKED_TOGETHER))
    encoded = _ENCODED * n_tokens * max((one.n_latents for one in info.autoencoders), default=0)
    if info.dtype == "bfloat16":
        ranked += _WIDENED * info.n_heads * n_tokens**2
    return info.n_layers * per_layer + ranked + encoded + _LOGITS * n_tokens * info.vocabulary_size


def _copied(info: ModelInfo, autoencoder: AutoencoderInfo, n_tokens: int) -> int:
    """Numbers that are kept of what a dictionary reads, where no hook point has them in that order."""
    if autoencoder.site not in (Site.ATTN_V_OUT, Site.MLP_TRANSCODER):
        return 0
    return _COPIED * n_tokens * _width(info, autoencoder.site) * len(autoencoder.layers)


def _width(info: ModelInfo, site: Site) -> int:
    """How many numbers a dictionary reads at a token."""
    match site:
        case Site.MLP_POST_ACT:
            return info.n_neurons
        case Site.ATTN_V_OUT:
            return info.n_heads * info.d_head
        case _:
            return info.d_model


def _widened_bytes(info: ModelInfo) -> int:
    """Weights in half precision of which something is derived: float32 while they are used."""
    if info.dtype != "bfloat16":
        return 0
    of_heads = (2 * info.n_heads + 2 * info.n_key_value_heads) * info.d_head
    of_layer = (of_heads + 3 * info.n_neurons) * info.d_model
    of_dictionary = max((2 * one.n_latents * _width(info, one.site) for one in info.autoencoders), default=0)
    part = min(info.vocabulary_size * info.d_model, WIDENED_NUMBERS)
    return _WIDE_BYTES * max(of_layer, of_dictionary, part)


def _most_active(autoencoder: AutoencoderInfo) -> int:
    """Latents that are active at one token, at the most."""
    if match := _TOP_K.fullmatch(autoencoder.activation):
        return min(int(match[1]), autoencoder.n_latents)
    if autoencoder.n_active is None:
        return autoencoder.n_latents
    return min(_ACTIVITY_MARGIN * autoencoder.n_active, autoencoder.n_latents)


def _wide_numbers(info: ModelInfo, sub_request: InferenceSubRequest, n_tokens: int) -> int:
    """Of derived scalars that have more entries than what the run itself keeps of a layer."""
    usual = info.n_heads * n_tokens**2 + n_tokens * (info.n_neurons + info.d_model)
    found: dict[tuple[DerivedScalar, object], int] = {}
    for scalar, pass_type in wanted_scalars(sub_request):
        shape = scalar.declared
        if not shape.node_type.is_latent:
            n_entries = math.prod(scalar_axes(scalar, info, n_tokens))
            if n_entries > usual:
                found[scalar, pass_type] = n_entries * (_WIDE + (info.n_layers if shape.is_per_layer else 1))
    return sum(found.values())


def _numbers_of_results(info: ModelInfo, sub_request: InferenceSubRequest, n_tokens: int) -> int:
    """Of places given as they are, which wait until they are sent, and of a lens's logits."""
    found = 0
    for spec in sub_request.processing.values():
        match spec:
            case ActivationsSpec():
                found += _COPIES * n_activations(spec, info, n_tokens)
            case LensSpec():
                n_rows = (1 + len(spec.layers)) * len(spec.token_indices)
                found += _LOGITS_OF_LAST * min(n_rows, LENSES_TOGETHER) * info.vocabulary_size
                found += _COPIES * n_rows * (info.d_model + spec.n_top_tokens + len(spec.vocabulary_tokens))
    return found


def _edge_numbers(info: ModelInfo, sub_request: InferenceSubRequest, n_tokens: int) -> int:
    """Of a sub-request's edges, which are made after those of others."""
    if not any(isinstance(one, EdgesSpec) for one in sub_request.processing.values()):
        return 0
    shape = EdgeShape.of(info)
    products = _EDGE_PRODUCTS * sub_request.n_rows * n_tokens * shape.n_head_readers * info.d_head
    per_layer = products + _EDGE_RESIDUALS * n_tokens * info.d_model
    n_together = min(n_tokens, max(1, EDGE_WRITES // (shape.n_writers * info.d_model)))
    of_readers = _EDGE_READERS * shape.n_head_readers * n_together * info.d_model
    writes = 2 * shape.n_writers * n_together * info.d_model
    scores = _EDGE_SCORES * shape.n_writers * shape.n_readers
    return info.n_layers * per_layer + writes + of_readers + scores


def _ablated_latents(info: ModelInfo, sub_request: InferenceSubRequest, n_tokens: int) -> int:
    layers = {
        (one.index.hook_point, one.index.layer_index)
        for one in sub_request.inference.ablations
        if is_of_autoencoder(one.index.hook_point)
    }
    n_layers, circuit = len(layers), sub_request.inference.circuit
    if circuit is not None:  # which sets them in all layers, without baselines in its prompt's other run too
        kept = [one for one in info.autoencoders if circuit.node_types & {one.site.node_type, _EITHER}]
        n_layers += sum(len(one.layers) for one in kept) * (1 if sub_request.inference.baselines else 2)
    n_latents = max((one.n_latents for one in info.autoencoders), default=0)
    return _ABLATED * n_tokens * n_latents * n_layers


def _list_bytes(info: ModelInfo, sub_requests: Sequence[InferenceSubRequest], number: int) -> int:
    """Chosen nodes, and the token lists along their directions."""
    n_bytes = n_directions = 0
    for sub_request in sub_requests:
        for spec in sub_request.processing.values():
            n_nodes = n_tokens = 0
            match spec:
                case MultipleTopKSpec():
                    n_bytes += sum(_n_nodes_by_type(info, spec, sub_requests).values()) * _NODE_BYTES
                case ScoredTokensSpec():
                    ranking = sub_request.processing.get(spec.depends_on)
                    if isinstance(ranking, MultipleTopKSpec):
                        by_type = _n_nodes_by_type(info, ranking, sub_requests)
                        n_nodes = sum(n for one, n in by_type.items() if _has_list(one, spec.scoring))
                        n_tokens = spec.n_tokens
                case DerivedScalarsSpec() if spec.n_top_tokens:
                    n_nodes, n_tokens = len(sub_request.inference.token_ids), spec.n_top_tokens
            n_directions += n_nodes
            n_bytes += n_nodes * (_NODE_VECTORS * info.d_model + _NODE_TOKENS * n_tokens) * number
    n_scored = min(SCORED_DIRECTIONS, max(n_directions, _MIN_SCORED)) if n_directions else 0
    return n_bytes + _SCORED * n_scored * info.vocabulary_size * number


def _n_nodes_by_type(
    info: ModelInfo, spec: MultipleTopKSpec, sub_requests: Sequence[InferenceSubRequest]
) -> dict[NodeType, int]:
    """The most nodes of each type that the sub-requests can choose together."""
    n_tokens = max(len(one.inference.token_ids) for one in sub_requests)
    chosen: Counter[NodeType] = Counter()
    there_are: Counter[NodeType] = Counter()
    for scalar, n_chosen in spec.chosen:
        shape = scalar.declared
        chosen[shape.node_type] += len(sub_requests) * n_chosen
        if shape.node_type.is_latent:
            n = n_tokens * sum(_most_active(one) * len(one.layers) for one in info.autoencoders)
            n *= len(sub_requests)
        else:
            n = n_cells(scalar, info, n_tokens)
        there_are[shape.node_type] = max(n, there_are[shape.node_type])
    return {one: min(n, there_are[one]) for one, n in chosen.items()}


def _has_list(node_type: NodeType, scoring: TokenScoringType) -> bool:
    """Whether nodes of this type have directions of that kind."""
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return True
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return node_type not in (NodeType.ATTENTION_HEAD, NodeType.ATTENTION_AUTOENCODER_LATENT)
        case _:
            return node_type is not NodeType.MLP_NEURON
