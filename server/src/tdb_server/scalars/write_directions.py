"""The directions nodes write along.

A node's write vector is its activation times its component's unit write.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tdb_server.domain.node import NodeType
from tdb_server.domain.place import Place
from tdb_server.scalars import heads, neurons
from tdb_server.scalars.directions import Directions, LayerNodes, joined
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.scalar_values import SparseScalars


def write_directions(run: RowRun, layers: Sequence[LayerNodes]) -> Directions:
    """Write directions of the nodes that write."""
    return joined(run, [found for one in layers if (found := _writes(run, one)) is not None])


def _writes(run: RowRun, nodes: LayerNodes) -> Directions | None:
    layer_index = nodes.layer_index
    match nodes.node_type:
        case NodeType.LAYER if layer_index is None:
            return _embedding_writes(run, nodes)
        case NodeType.MLP_NEURON if layer_index is not None:
            return _neuron_writes(run, nodes, layer_index)
        case NodeType.ATTENTION_HEAD if layer_index is not None:
            return _head_writes(run, nodes, layer_index)
        case latent if latent.is_latent and layer_index is not None:
            return _latent_writes(run, nodes, layer_index)
        case _:
            return None


def _embedding_writes(run: RowRun, nodes: LayerNodes) -> Directions:
    vectors = run.value(Place.RESID_POST_EMB, None)[nodes.indices[:, 0]]
    return Directions(nodes.positions, vectors, torch.ones_like(vectors[:, 0]))


def _neuron_writes(run: RowRun, nodes: LayerNodes, layer_index: int) -> Directions:
    tokens, which = nodes.indices.unbind(1)
    vectors = neurons.unit_writes(run.decoder, layer_index, which)
    return Directions(nodes.positions, vectors, run.value(Place.MLP_POST_ACT, layer_index)[tokens, which])


def _head_writes(run: RowRun, nodes: LayerNodes, layer_index: int) -> Directions:
    """Of token pairs `(q, k, h)`; of whole queries `(q, h)` when there are two indices."""
    config, layer = run.decoder.config, run.decoder.weights.layers[layer_index]
    indices = nodes.indices
    head = indices[:, -1]
    if indices.shape[1] == 2:
        read = run.value(Place.ATTN_V_OUT, layer_index)[head, indices[:, 0]]  # [m, e]
        scales = torch.ones_like(read[:, 0])
    else:
        query, key, _ = indices.unbind(1)
        group = head // config.n_heads_per_group
        read = run.value(Place.ATTN_V, layer_index)[group, key]
        scales = run.value(Place.ATTN_QK_PROBS, layer_index)[head, query, key]
    vectors = F.linear(heads.in_slices(read, head, config.n_heads), layer.attn_out_weight)
    return Directions(nodes.positions, vectors, scales)


def _latent_writes(run: RowRun, nodes: LayerNodes, layer_index: int) -> Directions:
    autoencoder = run.autoencoder_of_node(nodes.node_type)
    tokens, latents = nodes.indices.unbind(1)
    vectors = autoencoder.write_directions(run.decoder, layer_index, latents)
    active = run.latents(autoencoder, layer_index)
    values = SparseScalars(active, active.values).at(nodes.indices)
    scales = run.times_write_scale(autoencoder, layer_index, values[:, None], tokens)[:, 0]
    return Directions(nodes.positions, vectors, scales)
