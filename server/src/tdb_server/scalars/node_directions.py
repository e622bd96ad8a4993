"""The direction a node writes along, and the direction of input tokens it reads along.

A node's write vector is its activation times its component's unit write. A node's read direction is the
gradient of its pre-activation at the residual stream just before its block, at its own token, with the
norm's scale held constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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
    out = heads.out_weights(run, layer_index)[:, head]  # [d, m, e]
    if indices.shape[1] == 2:
        read = run.value(Place.ATTN_V_OUT, layer_index)[head, indices[:, 0]]
        return positions, torch.einsum("me,dme->md", read, out), torch.ones_like(read[:, 0])
    query, key, _ = indices.unbind(1)
    read = heads.values_by_head(run, layer_index)[head, key]  # [m, e]
    scales = run.value(Place.ATTN_QK_PROBS, layer_index)[head, query, key]
    return positions, torch.einsum("me,dme->md", read, out), scales


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
    before = (Place.RESID_POST_EMB, None) if layer_index == 0 else (Place.RESID_POST_MLP, layer_index - 1)
    if through_query:
        tokens, rows, head_norm = query, head, layer.q_norm
        other = run.value(Place.ATTN_K, layer_index)[group, key]  # [m, e]
    else:
        tokens, rows, head_norm = key, decoder.config.n_heads + group, layer.k_norm
        other = run.value(Place.ATTN_Q, layer_index)[head, query]
    residual = run.value(*before)[tokens]
    scale = decoder.norm_scale(residual)
    weights = layer.qkv_weight.view(-1, decoder.config.d_head, decoder.config.d_model)[rows]  # [m, e, d]
    product = torch.einsum("med,md->me", weights, decoder.normalize(residual, scale, layer.attn_norm))
    if layer.qkv_bias is not None:
        product = product + layer.qkv_bias.view(-1, decoder.config.d_head)[rows]

    def logits(x: Tensor) -> Tensor:
        return (decoder.place_heads(x[None, None], head_norm, tokens)[0, 0] * other).sum(dim=-1)

    towards = _gradient(logits, product)  # [m, e]
    vectors = decoder.centered(torch.einsum("me,med->md", towards, weights) * layer.attn_norm.gain)
    return positions, vectors, 1 / scale[:, 0]


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
