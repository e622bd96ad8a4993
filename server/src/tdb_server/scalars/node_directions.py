"""The direction a node writes along, and the direction of input tokens it reads along.

A node's write vector is its activation times its component's unit write. A node's read direction is the
gradient of its pre-activation at the residual stream just before its block, at its own token, with the
norm's scale held constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import TokenScoringType
from tdb_server.scalars import heads
from tdb_server.scalars.objectives import (
    latent_pre_activations,
    mlp_site,
    neuron_objectives,
)
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.scalar_values import SparseScalars

Located = tuple[list[int], Tensor, Tensor]
"""Positions of nodes, their directions [m, d], and what each is multiplied with [m]."""


def write_directions(run: RowRun, nodes: Sequence[NodeIndex]) -> Located:
    """Write directions of the nodes that write."""
    found: list[Located] = []
    for (node_type, layer_index), positions in _by_layer(nodes).items():
        indices = torch.tensor([nodes[one].tensor_indices for one in positions], device=run.decoder.device)
        match node_type:
            case NodeType.LAYER if layer_index is None:
                found.append(_embedding_writes(run, positions, indices))
            case NodeType.MLP_NEURON if layer_index is not None:
                found.append(_neuron_writes(run, layer_index, positions, indices))
            case NodeType.ATTENTION_HEAD if layer_index is not None:
                found.append(_head_writes(run, layer_index, positions, indices))
            case latent if latent.is_latent and layer_index is not None:
                found.append(_latent_writes(run, latent, layer_index, positions, indices))
            case _:
                continue
    return _joined(run, found)


def _embedding_writes(run: RowRun, positions: list[int], indices: Tensor) -> Located:
    tokens = indices[:, 0]
    vectors = run.value(Place.RESID_POST_EMB, None)[tokens]
    return positions, vectors, torch.ones_like(vectors[:, 0])


def _neuron_writes(run: RowRun, layer_index: int, positions: list[int], indices: Tensor) -> Located:
    tokens, neurons = indices.unbind(1)
    vectors = run.decoder.weights.layers[layer_index].mlp_out_weight[:, neurons].T
    scales = run.value(Place.MLP_POST_ACT, layer_index)[tokens, neurons]
    return positions, vectors, scales


def _head_writes(run: RowRun, layer_index: int, positions: list[int], indices: Tensor) -> Located:
    """Of token pairs `(q, k, h)`; of whole queries `(q, h)` when there are two indices."""
    head = indices[:, -1]
    if indices.shape[1] == 2:
        read = run.value(Place.ATTN_V_OUT, layer_index)[head, indices[:, 0]]  # [m, e]
        scales = torch.ones_like(read[:, 0])
    else:
        query, key, _ = indices.unbind(1)
        read = heads.values_by_head(run, layer_index)[head, key]
        scales = run.value(Place.ATTN_QK_PROBS, layer_index)[head, query, key]
    config, layer = run.decoder.config, run.decoder.weights.layers[layer_index]
    return positions, F.linear(heads.in_slices(read, head, config.n_heads), layer.attn_out_weight), scales


def _latent_writes(
    run: RowRun, node_type: NodeType, layer_index: int, positions: list[int], indices: Tensor
) -> Located:
    autoencoder = run.autoencoder_of_node(node_type)
    latents = indices[:, 1]
    vectors = autoencoder.write_directions(run.decoder, layer_index, latents)
    active = run.latents(autoencoder, layer_index)
    scales = SparseScalars(active, active.values).at(indices)
    return positions, vectors, scales


def read_directions(run: RowRun, nodes: Sequence[NodeIndex], scoring: TokenScoringType) -> Located:
    """Read directions of the nodes that have one of this kind."""
    found: list[Located] = []
    for (node_type, layer_index), positions in _by_layer(nodes).items():
        if layer_index is None:
            continue
        indices = torch.tensor([nodes[one].tensor_indices for one in positions], device=run.decoder.device)
        if scoring is TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
            if node_type is NodeType.MLP_NEURON:
                found.append(_neuron_reads(run, layer_index, positions, indices))
            elif node_type.is_latent and run.autoencoder_of_node(node_type).site.is_mlp:
                found.append(_latent_reads(run, node_type, layer_index, positions, indices))
        elif node_type is NodeType.ATTENTION_HEAD and indices.shape[1] == 3:
            through_query = scoring is TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q
            found.append(_head_reads(run, layer_index, positions, indices, through_query))
    return _joined(run, found)


def _neuron_reads(run: RowRun, layer_index: int, positions: list[int], indices: Tensor) -> Located:
    """Of a gated neuron it depends on the token; of a plain one only its scale does, through the norm."""
    decoder, (tokens, neurons) = run.decoder, indices.unbind(1)
    residual = run.value(Place.RESID_POST_ATTN, layer_index)[tokens]
    if decoder.config.gated:
        vectors = _gradient(lambda x: neuron_objectives(decoder, layer_index, x, neurons), residual)
        return positions, vectors, torch.ones_like(vectors[:, 0])
    layer = decoder.weights.layers[layer_index]
    vectors = decoder.centered(layer.mlp_norm.gain * layer.mlp_in_weight[neurons])
    return positions, vectors, 1 / decoder.norm_scale(residual)[:, 0]


def _latent_reads(
    run: RowRun, node_type: NodeType, layer_index: int, positions: list[int], indices: Tensor
) -> Located:
    autoencoder = run.autoencoder_of_node(node_type)
    layer = autoencoder.layers[layer_index]

    def pre_activations(x: Tensor) -> Tensor:
        return latent_pre_activations(
            layer, mlp_site(run.decoder, autoencoder, layer_index, x), indices[:, 1]
        )

    vectors = _gradient(pre_activations, run.value(Place.RESID_POST_ATTN, layer_index)[indices[:, 0]])
    return positions, vectors, torch.ones_like(vectors[:, 0])


def _head_reads(
    run: RowRun, layer_index: int, positions: list[int], indices: Tensor, through_query: bool
) -> Located:
    """Gradient of the attention logit through the query at token q, or the key at token k.

    Without rotation it depends on the other token and the head alone, up to the norm's scale.
    """
    decoder, layer = run.decoder, run.decoder.weights.layers[layer_index]
    query, key, head = indices.unbind(1)
    group = head // decoder.config.n_heads_per_group
    first_key_row = decoder.config.n_heads * decoder.config.d_head
    if through_query:
        tokens, own_head, head_norm, rows = query, head, layer.q_norm, slice(0, first_key_row)
        other = run.value(Place.ATTN_K, layer_index)[group, key]  # [m, e]
    else:
        n_key_rows = decoder.config.n_key_value_heads * decoder.config.d_head
        tokens, own_head, head_norm = key, group, layer.k_norm
        rows = slice(first_key_row, first_key_row + n_key_rows)
        other = run.value(Place.ATTN_Q, layer_index)[head, query]
    before = (Place.RESID_POST_EMB, None) if layer_index == 0 else (Place.RESID_POST_MLP, layer_index - 1)
    residual = run.value(*before)[tokens]
    scale = decoder.norm_scale(residual)
    product = torch.zeros_like(other)  # where there is no head norm, the gradient is the same everywhere
    if head_norm is not None:
        normed = decoder.normalize(residual, scale, layer.attn_norm)
        bias = None if layer.qkv_bias is None else layer.qkv_bias[rows]
        products = F.linear(normed, layer.qkv_weight[rows], bias).view(len(other), -1, other.shape[1])
        product = products[torch.arange(len(products)), own_head]

    def logits(x: Tensor) -> Tensor:
        return (decoder.place_heads(x[None, None], head_norm, tokens)[0, 0] * other).sum(dim=-1)

    at_head = _gradient(logits, product)  # [m, e]
    n_heads = (rows.stop - rows.start) // other.shape[1]
    vectors = heads.in_slices(at_head, own_head, n_heads) @ layer.qkv_weight[rows]
    return positions, decoder.centered(vectors * layer.attn_norm.gain), 1 / scale[:, 0]


def _gradient(objectives: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Each row's gradient of its own objective: [m, n] to [m, n]."""
    with torch.enable_grad():
        x = at.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objectives(x).sum(), x)
    return gradient


def _by_layer(nodes: Sequence[NodeIndex]) -> dict[tuple[NodeType, int | None], list[int]]:
    found: dict[tuple[NodeType, int | None], list[int]] = {}
    for position, node in enumerate(nodes):
        found.setdefault((node.node_type, node.layer_index), []).append(position)
    return found


def _joined(run: RowRun, found: Sequence[Located]) -> Located:
    if not found:
        nothing = torch.zeros(0, run.decoder.config.d_model, device=run.decoder.device)
        return [], nothing, nothing[:, 0]
    positions = [one for located in found for one in located[0]]
    return positions, torch.cat([one[1] for one in found]), torch.cat([one[2] for one in found])
