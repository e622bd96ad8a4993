"""The directions that nodes write and read along.

A node's write vector is its activation times its component's unit write. Its read direction is the gradient
of its pre-activation at the residual stream just before its block, at its own token, with the norm's scale
held constant (`tdb_server.model.node_maps`). Both are a vector times a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import TokenScoringType
from tdb_server.engine.nodes import NodeTable
from tdb_server.engine.products import NodeCoordinates
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


@dataclass(frozen=True)
class NodesOfType:
    """Nodes of one type of some rows, in the order of layers.

    Attributes:
        node_type: of all of them.
        places: where they are among those that were asked for [m].
        rows: of the batch [m].
        layers: -1 for the embedding [m].
        indices: [m, n_axes].
        distinct: those of them whose unit write differs from all before them [u].
        which: for each node, which of the distinct ones its own is [m].
    """

    node_type: NodeType
    places: Array
    rows: Array
    layers: Array
    indices: Array
    distinct: Array
    which: Array

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device."""
        return [self.rows, self.layers, self.distinct, *self.indices.T]

    @property
    def spans(self) -> list[tuple[int, slice]]:
        """By layer, which of the nodes are there."""
        return _spans(self.layers)

    @property
    def distinct_spans(self) -> list[tuple[int, slice]]:
        """By layer, which of the distinct nodes are there."""
        return _spans(self.layers[self.distinct])


def _spans(layers: Array) -> list[tuple[int, slice]]:
    found, starts = np.unique(layers, return_index=True)
    stops = [*starts[1:].tolist(), len(layers)]
    return [
        (layer, slice(start, stop))
        for layer, start, stop in zip(found.tolist(), starts.tolist(), stops, strict=True)
    ]


def nodes_to_score(
    asked: Sequence[tuple[int, NodeTable]], scoring: TokenScoringType, mlp_latents: frozenset[NodeType]
) -> list[NodesOfType]:
    """The nodes of some rows that have a direction of a kind.

    Args:
        asked: rows of the batch, each with its nodes.
        mlp_latents: the node types that are latents of the MLP's autoencoder.
    """
    types = {
        key
        for _, table in asked
        for key in table.by_type
        if _has_direction(scoring, *key, is_mlp_latent=key[0] in mlp_latents)
    }
    found = []
    for node_type, n_axes in sorted(types, key=str):
        parts, start = [], 0
        for row, table in asked:
            if (node_type, n_axes) in table.by_type:
                places, layers, indices = table.by_type[node_type, n_axes]
                parts.append((places + start, np.full(len(places), row), layers, indices))
            start += len(table.nodes)
        places, rows, layers, indices = (np.concatenate(one) for one in zip(*parts, strict=True))
        is_layered = layers >= 0
        if scoring is not TokenScoringType.UPVOTED_OUTPUT_TOKENS or node_type is not NodeType.LAYER:
            places, rows, layers, indices = (one[is_layered] for one in (places, rows, layers, indices))
        elif is_layered.any():  # whole layers have no direction of their own, embeddings do
            places, rows, layers, indices = (one[~is_layered] for one in (places, rows, layers, indices))
        if not len(places):
            continue
        order = np.argsort(layers, kind="stable")
        places, rows, layers, indices = (one[order] for one in (places, rows, layers, indices))
        key = _what_differs(node_type, rows, layers, indices)
        _, distinct, which = np.unique(key, axis=0, return_index=True, return_inverse=True)
        by_first = np.argsort(distinct, kind="stable")  # in the order of layers again
        rank = np.empty_like(by_first)
        rank[by_first] = np.arange(len(by_first))
        found.append(
            NodesOfType(node_type, places, rows, layers, indices, distinct[by_first], rank[which.reshape(-1)])
        )
    return found


def _has_direction(
    scoring: TokenScoringType, node_type: NodeType, n_axes: int, *, is_mlp_latent: bool
) -> bool:
    match scoring:
        case TokenScoringType.UPVOTED_OUTPUT_TOKENS:
            writes = (NodeType.LAYER, NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD)
            return node_type in writes or node_type.is_latent
        case TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            return node_type is NodeType.MLP_NEURON or is_mlp_latent
        case _:
            return node_type is NodeType.ATTENTION_HEAD and n_axes == 3


def _what_differs(node_type: NodeType, rows: Array, layers: Array, indices: Array) -> Array:
    """What unit writes depend on [m, n]: of neurons and latents, the weights alone."""
    if node_type is NodeType.MLP_NEURON or node_type.is_latent:
        return np.stack([layers, indices[:, 1]], axis=1)
    if node_type is NodeType.ATTENTION_HEAD and indices.shape[1] == 3:
        return np.stack([rows, layers, indices[:, 1], indices[:, 2]], axis=1)
    return np.stack([rows, layers, *indices.T], axis=1)


@dataclass(frozen=True)
class DeviceNodes:
    """`NodesOfType` with its arrays on the device."""

    host: NodesOfType
    rows: Tensor
    layers: Tensor
    distinct: Tensor
    indices: tuple[Tensor, ...]

    @classmethod
    def of(cls, host: NodesOfType, uploaded: Sequence[Tensor]) -> DeviceNodes:
        """From the arrays as they were uploaded."""
        rows, layers, distinct, *indices = uploaded
        return cls(host, rows, layers, distinct, tuple(indices))

    @property
    def where(self) -> NodeCoordinates:
        """The nodes, in whatever has all layers."""
        return NodeCoordinates(self.rows, self.layers, self.host.spans)

    @property
    def distinct_where(self) -> NodeCoordinates:
        """The distinct ones."""
        return NodeCoordinates(self.rows[self.distinct], self.layers[self.distinct], self.host.distinct_spans)


def node_directions(scalars: Rows, nodes: DeviceNodes, scoring: TokenScoringType) -> Directions:
    """The write directions of some nodes, or the read directions of neurons and latents.

    Args:
        scalars: of all rows of the batch.
    """
    if scoring is TokenScoringType.UPVOTED_OUTPUT_TOKENS:
        return _writes(scalars, nodes)
    if nodes.host.node_type.is_latent:
        return _latent_reads(scalars, nodes)
    return _neuron_reads(scalars, nodes)


def _all_distinct(nodes: DeviceNodes, vectors: Tensor, scales: Tensor) -> Directions:
    return Directions(nodes.host.places, vectors, np.arange(len(nodes.host.places)), scales)


def _writes(scalars: Rows, nodes: DeviceNodes) -> Directions:
    decoder, distinct, host = scalars.model.decoder, nodes.distinct, nodes.host
    where = InLayers(nodes.layers[distinct], host.distinct_spans)
    match host.node_type:
        case NodeType.LAYER:
            (embedding,) = scalars.values(HookPoint.RESID_POST_EMB).tensors
            vectors = embedding[nodes.rows[distinct], nodes.indices[0][distinct]]
            scales = torch.ones_like(nodes.rows, dtype=vectors.dtype)
        case NodeType.MLP_NEURON:
            tokens, neurons = nodes.indices
            vectors = neuron_writes(decoder, where, neurons[distinct])
            scales = scalars.values(HookPoint.MLP_POST_ACT).at(nodes.where, tokens, neurons)
        case NodeType.ATTENTION_HEAD:
            heads = nodes.indices[-1][distinct]
            read, scales = _head_values(scalars, nodes, heads)
            vectors = head_writes(decoder, where, heads, read)
        case latent:
            autoencoder = scalars.autoencoder(latent)
            vectors = latent_writes(decoder, autoencoder, where, nodes.indices[1][distinct])
            scales = _latent_values(scalars, nodes)
    return Directions(host.places, vectors, host.which, scales)


def _head_values(scalars: Rows, nodes: DeviceNodes, heads: Tensor) -> tuple[Tensor, Tensor]:
    """What the distinct of them write with [u, e], and what each node's write is multiplied with [m].

    Of token pairs `(q, k, h)` values and attention; of whole queries `(q, h)` weighted sums of values, and 1.
    """
    *tokens, head = nodes.indices
    where = nodes.distinct_where
    if len(tokens) == 1:
        read = scalars.values(HookPoint.ATTN_V_OUT).at(where, heads, tokens[0][nodes.distinct])
        return read, torch.ones_like(nodes.rows, dtype=read.dtype)
    query, key = tokens
    groups = heads // scalars.model.decoder.config.n_heads_per_group
    read = scalars.values(HookPoint.ATTN_V).at(where, groups, key[nodes.distinct])
    return read, scalars.values(HookPoint.ATTN_QK_PROBS).at(nodes.where, head, query, key)


def _latent_values(scalars: Rows, nodes: DeviceNodes) -> Tensor:
    """Activations of latents, times what their unit writes are multiplied with [m]."""
    autoencoder = scalars.autoencoder(nodes.host.node_type)
    tokens, latents = nodes.indices
    layers = sorted(autoencoder.layers)
    places = np.searchsorted(layers, nodes.host.layers)
    spans = [(layers.index(layer), span) for layer, span in nodes.host.spans]
    is_everywhere = layers == list(range(len(layers)))
    on_device = nodes.layers if is_everywhere else torch.from_numpy(places).to(nodes.rows.device)
    where = NodeCoordinates(nodes.rows, on_device, spans)
    ids, values = scalars.latents(autoencoder)
    found = (values.at(where, tokens) * (ids.at(where, tokens) == latents[:, None])).sum(dim=1)
    if not any(layer.norms_inputs for layer in autoencoder.layers.values()):
        return found
    return _joined(
        [
            autoencoder.layers[layer].times_write_scale(
                found[span, None], scalars.read_by(autoencoder, layer)[nodes.rows[span], tokens[span]]
            )[:, 0]
            for layer, span in nodes.host.spans
        ]
    )


def _neuron_reads(scalars: Rows, nodes: DeviceNodes) -> Directions:
    """Where they read alike at all tokens, only the scale depends on the token, through the norm."""
    decoder, precomputed = scalars.model.decoder, scalars.precomputed
    tokens, neurons = nodes.indices
    residual = scalars.values(HookPoint.RESID_POST_ATTN).at(nodes.where, tokens)  # [m, d]
    if not decoder.neurons_read_alike:
        where = InLayers(nodes.layers, nodes.host.spans)
        vectors, scales = neuron_reads(decoder, precomputed, where, neurons, residual)
        return _all_distinct(nodes, vectors, 1 / scales)
    where = InLayers(nodes.layers[nodes.distinct], nodes.host.distinct_spans)
    vectors = fixed_neuron_reads(decoder, precomputed, where, neurons[nodes.distinct])
    scales = neuron_read_scales(decoder, residual)
    return Directions(nodes.host.places, vectors, nodes.host.which, 1 / scales)


def _latent_reads(scalars: Rows, nodes: DeviceNodes) -> Directions:
    autoencoder = scalars.autoencoder(nodes.host.node_type)
    tokens, latents = nodes.indices
    residual = scalars.values(HookPoint.RESID_POST_ATTN).at(nodes.where, tokens)
    where = InLayers(nodes.layers, nodes.host.spans)
    decoder, precomputed = scalars.model.decoder, scalars.precomputed
    vectors, scales = latent_reads(decoder, precomputed, autoencoder, where, latents, residual)
    return _all_distinct(nodes, vectors, 1 / scales)


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
    parts = [(one, is_query) for one in through_query for is_query in [True]]
    parts += [(one, is_query) for one in through_key for is_query in [False]]
    if not parts:
        return None
    places, rows, layers, indices = (
        np.concatenate([getattr(one, name) for one, _ in parts])
        for name in ("places", "rows", "layers", "indices")
    )
    is_query = np.concatenate([np.full(len(one.places), is_query) for one, is_query in parts])
    order = np.argsort(layers, kind="stable")
    places, rows, layers, indices, is_query = (
        one[order] for one in (places, rows, layers, indices, is_query)
    )
    query, key, head = indices.T
    group = head // n_per_group
    tokens, own = np.where(is_query, query, key), np.where(is_query, head, n_heads + group)
    ways = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    arrays = [rows, layers, tokens, own, query, key, head, group, is_query.astype(np.int64), *ways]
    return HeadReads(places, is_query, layers, arrays)


def head_read_directions(
    scalars: Rows, nodes: HeadReads, uploaded: Sequence[Tensor]
) -> tuple[Directions, Directions]:
    """Gradients of attention logits through the query at token q, and through the key at token k.

    Without rotation they depend on the other token and the head alone, up to the norm's scale.
    """
    rows, layers, tokens, own, query, key, head, group, is_query, *ways = uploaded
    where = NodeCoordinates(rows, layers, _spans(nodes.layers))
    keys = scalars.values(HookPoint.ATTN_K).at(where, group, key)
    queries = scalars.values(HookPoint.ATTN_Q).at(where, head, query)
    is_of_query = is_query[:, None] != 0
    residual = scalars.before_layers().at(where, tokens)
    others = torch.where(is_of_query, keys, queries)
    vectors, scales = head_reads(
        scalars.model.decoder,
        scalars.precomputed,
        InLayers(layers, where.spans),
        HeadNodes(tokens, own, is_of_query, others, residual),
    )
    of_queries, of_keys = (
        Directions(nodes.places[is_own], vectors[which], np.arange(int(is_own.sum())), 1 / scales[which])
        for is_own, which in zip((nodes.is_query, ~nodes.is_query), ways, strict=True)
    )
    return of_queries, of_keys


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
