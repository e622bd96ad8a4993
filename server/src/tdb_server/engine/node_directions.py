"""The directions that nodes write and read along.

A node's write vector is its activation times its component's unit write; of a whole head or MLP, all that it
adds. Its read direction is the gradient of its pre-activation at the residual stream just before its block,
at its own token, with the norm's scale held constant (`tdb_server.model.node_maps`). Both are a vector times
a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import WRITERS, NodeType
from tdb_server.domain.requests import TokenScoringType
from tdb_server.engine.node_tables import NodeTable
from tdb_server.engine.products import NodeCoordinates, spans_of
from tdb_server.engine.row_latents import latents_of_prompts
from tdb_server.engine.rows import Rows
from tdb_server.engine.transfers import Array
from tdb_server.model.node_maps import (
    HeadNodes,
    InLayers,
    fixed_neuron_reads,
    head_reads,
    head_writes,
    latent_reads,
    latent_writes,
    neuron_read_scales,
    neuron_reads,
    neuron_writes,
)


@dataclass(frozen=True)
class Directions:
    """Directions of some nodes.

    Attributes:
        places: where the nodes are among those that were asked for [m], on the host.
        vectors: distinct directions [u, d].
        which: the vector of each node [m], on the host.
        scales: what each node's vector is multiplied with [m].
    """

    places: Array
    vectors: Tensor
    which: Array
    scales: Tensor


_PLACE, _ROW, _LAYER, _INDICES = range(4)


@dataclass(frozen=True)
class NodesOfType:
    """Nodes of one type of some rows, in the order of layers.

    Attributes:
        node_type: of all of them.
        nodes: of each where it is among those that were asked for, its row of the batch, its layer, -1 for
            the embedding, and its indices [m, 3 + n_axes].
        distinct: those of them whose unit write differs from all before them [u].
        which: for each node, which of the distinct ones its own is [m].
    """

    node_type: NodeType
    nodes: Array
    distinct: Array
    which: Array

    @property
    def places(self) -> Array:
        """Where they are among those that were asked for [m]."""
        found: Array = self.nodes[:, _PLACE]
        return found

    @property
    def layers(self) -> Array:
        """Their layers [m]."""
        found: Array = self.nodes[:, _LAYER]
        return found

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device."""
        return [self.distinct, *self.nodes[:, _ROW:].T]


def nodes_to_score(
    tables: Sequence[tuple[int, NodeTable]], scoring: TokenScoringType, mlp_latents: frozenset[NodeType]
) -> list[NodesOfType]:
    """The nodes of some rows that have a direction of a kind.

    Args:
        tables: rows of the batch, each with its nodes.
        mlp_latents: the node types that are latents of the MLP's autoencoder.
    """
    types = {
        key
        for _, table in tables
        for key in table.by_type
        if _has_direction(scoring, *key, is_mlp_latent=key[0] in mlp_latents)
    }
    found = []
    for node_type, n_axes in sorted(types, key=str):
        parts, start = [], 0
        for row, table in tables:
            if (node_type, n_axes) in table.by_type:
                places, layers, indices = table.by_type[node_type, n_axes]
                parts.append(np.column_stack([places + start, np.full(len(places), row), layers, indices]))
            start += len(table.nodes)
        nodes = np.concatenate(parts)
        # Whole layers have no direction of their own, embeddings do.
        is_embedding = scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS and node_type is NodeType.LAYER
        nodes = nodes[(nodes[:, _LAYER] < 0) == is_embedding]
        if not len(nodes):
            continue
        nodes = nodes[np.argsort(nodes[:, _LAYER], kind="stable")]
        key = nodes[:, _what_differs(node_type, n_axes)]
        _, distinct, which = np.unique(key, axis=0, return_index=True, return_inverse=True)
        by_first = np.argsort(distinct, kind="stable")  # in the order of layers again
        rank = np.argsort(by_first)
        found.append(NodesOfType(node_type, nodes, distinct[by_first], rank[which.reshape(-1)]))
    return found


def _has_direction(
    scoring: TokenScoringType, node_type: NodeType, n_axes: int, *, is_mlp_latent: bool
) -> bool:
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            return node_type in WRITERS
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return node_type is NodeType.MLP_NEURON or is_mlp_latent
        case _:
            return node_type is NodeType.ATTENTION_HEAD and n_axes == 3


def _what_differs(node_type: NodeType, n_axes: int) -> Sequence[int]:
    """Columns of nodes that unit writes depend on: of neurons and latents, of the weights alone."""
    if node_type is NodeType.MLP_NEURON or node_type.is_latent:
        return _LAYER, _INDICES + 1
    if node_type is NodeType.ATTENTION_HEAD and n_axes == 3:
        return _ROW, _LAYER, _INDICES + 1, _INDICES + 2
    return range(_ROW, _INDICES + n_axes)


class DeviceNodes:
    """`NodesOfType` on the device.

    Attributes:
        indices: along each axis [m].
        distinct: which nodes are distinct [u].
        where: the nodes, in whatever has all layers.
        where_distinct: the distinct ones.
    """

    def __init__(self, host: NodesOfType, uploaded: Sequence[Tensor]) -> None:
        """Takes the arrays as they were uploaded."""
        self.host = host
        self.distinct, rows, layers, *self.indices = uploaded
        self.where = NodeCoordinates(rows, layers, spans_of(host.layers))
        spans = spans_of(host.layers[host.distinct])
        self.where_distinct = NodeCoordinates(rows[self.distinct], layers[self.distinct], spans)


def node_directions(all_rows: Rows, nodes: DeviceNodes, scoring: TokenScoringType) -> Directions:
    """The write directions of some nodes, or the read directions of neurons and latents."""
    is_write = scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS
    return _writes(all_rows, nodes) if is_write else _reads(all_rows, nodes)


def _writes(all_rows: Rows, nodes: DeviceNodes) -> Directions:
    decoder, distinct, host = all_rows.model.decoder, nodes.distinct, nodes.host
    rows, where = nodes.where.rows, InLayers(nodes.where_distinct.layers, nodes.where_distinct.spans)
    match host.node_type:
        case NodeType.LAYER:
            (embedding,) = all_rows.values(HookPoint.RESID_POST_EMB).tensors
            vectors = embedding[nodes.where_distinct.rows, nodes.indices[0][distinct]]
            scales = torch.ones_like(rows, dtype=vectors.dtype)
        case NodeType.MLP_NEURON:
            tokens, neurons = nodes.indices
            vectors = neuron_writes(decoder, where, neurons[distinct])
            scales = all_rows.values(HookPoint.MLP_POST_ACT).at(nodes.where, tokens, neurons)
            scales = all_rows.divided(scales, HookPoint.MLP_POST_ACT, nodes.where, tokens)
        case NodeType.WHOLE_MLP:
            token = nodes.indices[0][distinct]
            vectors = all_rows.values(HookPoint.RESID_DELTA_MLP).at(nodes.where_distinct, token)
            scales = torch.ones_like(rows, dtype=vectors.dtype)
        case NodeType.WHOLE_HEAD | NodeType.ATTENTION_HEAD if len(nodes.indices) == 2:  # sums of values
            token, head = (one[distinct] for one in nodes.indices)
            read = all_rows.values(HookPoint.ATTN_V_OUT).at(nodes.where_distinct, head, token)
            vectors = head_writes(decoder, where, head, read)
            scales = torch.ones_like(rows, dtype=read.dtype)
            scales = all_rows.divided(scales, HookPoint.ATTN_V_OUT, nodes.where, nodes.indices[0])
        case NodeType.ATTENTION_HEAD:  # of token pairs: values, times attention
            query, key, head = nodes.indices
            heads = head[distinct]
            groups = heads // decoder.config.n_heads_per_group
            read = all_rows.values(HookPoint.ATTN_V).at(nodes.where_distinct, groups, key[distinct])
            vectors = head_writes(decoder, where, heads, read)
            scales = all_rows.values(HookPoint.ATTN_QK_PROBS).at(nodes.where, head, query, key)
            scales = all_rows.divided(scales, HookPoint.ATTN_QK_PROBS, nodes.where, query)
        case latent:
            autoencoder = all_rows.autoencoder(latent)
            vectors = latent_writes(decoder, autoencoder, where, nodes.indices[1][distinct])
            scales = _latent_values(all_rows, nodes)
            scales = all_rows.divided(scales, autoencoder.site.hook_point, nodes.where, nodes.indices[0])
    return Directions(host.places, vectors, host.which, scales)


def _latent_values(all_rows: Rows, nodes: DeviceNodes) -> Tensor:
    """Activations of latents, times what their unit writes are multiplied with [m]."""
    autoencoder = all_rows.autoencoder(nodes.host.node_type)
    (tokens, latents), rows, layers = nodes.indices, nodes.where.rows, sorted(autoencoder.layers)
    where = nodes.where
    if layers != list(range(len(layers))):
        places = np.searchsorted(layers, nodes.host.layers)
        where = NodeCoordinates(rows, torch.from_numpy(places).to(rows.device), spans_of(places))
    ids, values, *_ = latents_of_prompts(all_rows, autoencoder)
    found = (values.at(where, tokens) * (ids.at(where, tokens) == latents[:, None])).sum(dim=1)
    if not any(layer.norms_inputs for layer in autoencoder.layers.values()):
        return found
    return torch.cat(
        [
            autoencoder.layers[layer].times_write_scale(
                found[span, None], all_rows.read_by(autoencoder, layer)[rows[span], tokens[span]]
            )[:, 0]
            for layer, span in nodes.where.spans
        ]
    )


def _reads(all_rows: Rows, nodes: DeviceNodes) -> Directions:
    """Of neurons that read alike at all tokens, only the scale depends on the token, through the norm."""
    decoder, precomputed, host = all_rows.model.decoder, all_rows.precomputed, nodes.host
    tokens, components = nodes.indices
    residual = all_rows.before_mlps().at(nodes.where, tokens)  # [m, d]
    where, which = InLayers(nodes.where.layers, nodes.where.spans), np.arange(len(host.places))
    if host.node_type.is_latent:
        autoencoder = all_rows.autoencoder(host.node_type)
        vectors, scales = latent_reads(decoder, precomputed, autoencoder, where, components, residual)
    elif decoder.neurons_read_alike:
        where, which = InLayers(nodes.where_distinct.layers, nodes.where_distinct.spans), host.which
        vectors = fixed_neuron_reads(decoder, precomputed, where, components[nodes.distinct])
        scales = neuron_read_scales(decoder, residual)
    else:
        vectors, scales = neuron_reads(decoder, precomputed, where, components, residual)
    return Directions(host.places, vectors, which, 1 / scales)


@dataclass(frozen=True)
class HeadReads:
    """Heads' nodes `(q, k, h)` of some rows that are read through their queries or through their keys.

    Attributes:
        places: where the nodes are among those that were asked for [m].
        is_query: whether each is read through its query [m].
        layers: in order [m].
        arrays: what is brought to the device: rows, layers, the tokens that are read, the query or key heads
            that read them (keys' behind the queries'), queries, keys, heads and groups [m]; and which of the
            nodes are read through queries, and which through keys.
    """

    places: Array
    is_query: Array
    layers: Array
    arrays: list[Array]


def heads_to_read(
    through_query: Sequence[NodesOfType], through_key: Sequence[NodesOfType], n_heads: int, n_per_group: int
) -> HeadReads | None:
    """The nodes that are read either way, together: what they are multiplied with is one matrix."""
    parts = [(one.nodes, True) for one in through_query] + [(one.nodes, False) for one in through_key]
    if not parts:
        return None
    nodes = np.concatenate([one for one, _ in parts])
    is_query = np.concatenate([np.full(len(one), is_query) for one, is_query in parts])
    order = np.argsort(nodes[:, _LAYER], kind="stable")
    is_query, (places, rows, layers, query, key, head) = is_query[order], nodes[order].T
    group = head // n_per_group
    tokens, reading_heads = np.where(is_query, query, key), np.where(is_query, head, n_heads + group)
    ways = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    arrays = [rows, layers, tokens, reading_heads, query, key, head, group, is_query.astype(np.int64), *ways]
    return HeadReads(places, is_query, layers, arrays)


def head_read_directions(
    all_rows: Rows, nodes: HeadReads, uploaded: Sequence[Tensor]
) -> tuple[Directions, Directions]:
    """Gradients of attention logits through the query at token q, and through the key at token k.

    Without rotation they depend on the other token and the head alone, up to the norm's scale.
    """
    rows, layers, tokens, reading_heads, query, key, head, group, is_query, *ways = uploaded
    where = NodeCoordinates(rows, layers, spans_of(nodes.layers))
    keys = all_rows.values(HookPoint.ATTN_K).at(where, group, key)
    queries = all_rows.values(HookPoint.ATTN_Q).at(where, head, query)
    residual = all_rows.before_layers().at(where, tokens)
    others = torch.where(is_query[:, None] != 0, keys, queries)
    vectors, scales = head_reads(
        all_rows.model.decoder,
        all_rows.precomputed,
        InLayers(layers, where.spans),
        HeadNodes(tokens, reading_heads, others, residual),
    )
    of_queries, of_keys = (
        Directions(nodes.places[is_own], vectors[which], np.arange(int(is_own.sum())), 1 / scales[which])
        for is_own, which in zip((nodes.is_query, ~nodes.is_query), ways, strict=True)
    )
    return of_queries, of_keys
