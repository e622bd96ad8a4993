"""What attention hands from token to token towards one latent, summed over heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import ActivationIndex
from tdb_server.domain.results import TokenPairAttributionResult
from tdb_server.engine.node_tables import NodeTable
from tdb_server.engine.pair_effects import project_values
from tdb_server.engine.rows import Rows
from tdb_server.engine.transfers import Array, download
from tdb_server.model.autoencoder import Autoencoder


def writes_towards(rows: Rows, layer_index: int, row: int, queries: Tensor, onto: Tensor) -> Tensor:
    """`sum over heads of attn(q, k, h) v(k, h) · onto(h)`, for m queries, each with its vectors.

    Args:
        row: of the group.
        queries: tokens [m].
        onto: what values are projected onto, all heads' side by side [m, H * e].

    Returns:
        Attributions to every attended-to token [m, T].
    """
    probs = rows.at_layer(HookPoint.ATTN_QK_PROBS, layer_index)[row][:, queries]  # [H, m, T]
    values = rows.at_layer(HookPoint.ATTN_V, layer_index)[row]
    return (probs * project_values(values, onto)).sum(dim=0)


def latent_gradients(
    rows: Rows,
    autoencoder: Autoencoder,
    layer_index: int,
    row: int,
    tokens: Tensor,
    latents: Tensor,
) -> Tensor:
    """Gradient of latents at all heads' weighted sums of values, each at its own token [m, H * e].

    Before any intervention.
    It is zero for inactive latents. The scale of normed inputs is held constant.
    """
    layer = autoencoder.layers[layer_index]
    read = rows.read_by(autoencoder, layer_index)[row, tokens]
    is_active = layer.encode(read).gather(1, latents[:, None]) != 0  # [m, 1]
    reads = layer.read_directions(latents, read) * is_active
    if autoencoder.site is Site.ATTN_V_OUT:
        return reads
    scale = rows.write_scale(HookPoint.ATTN_QK_PROBS, layer_index)
    if scale is not None:
        reads = reads / scale[row, tokens]
    return rows.model.decoder.blocks[layer_index].attention.write_transposed(reads)


def token_pair_attribution(
    rows: Rows, row: int, table: NodeTable, n_tokens_attended_to: int
) -> TokenPairAttributionResult:
    """For every active attention latent: the tokens whose values fed it most."""
    n_tokens = rows.planned[row].n_tokens
    n_listed = min(n_tokens_attended_to, n_tokens)
    device = rows.model.decoder.device
    found: list[tuple[Tensor, Tensor]] = []
    placed: list[Array] = []
    for (node_type, _), (places, layers, indices) in table.by_type.items():
        if not node_type.is_latent or not rows.autoencoder(node_type).site.is_attention:
            continue
        autoencoder = rows.autoencoder(node_type)
        for layer_index in np.unique(layers).tolist():
            own = layers == layer_index
            tokens, latents = torch.from_numpy(indices[own].T.copy()).to(device)
            gradients = latent_gradients(rows, autoencoder, layer_index, row, tokens, latents)
            towards = writes_towards(rows, layer_index, row, tokens, gradients)[:, :n_tokens]
            found.append(((gradients != 0).any(dim=1), towards))
            placed.append(places[own])
    list_of_node = np.full(len(table.nodes), -1, np.int32)
    values, keys = np.zeros((0, n_listed), np.float32), np.zeros((0, n_listed), np.int32)
    if found:
        is_active, all_values = download([torch.cat(one) for one in zip(*found, strict=True)])
        order = np.flatnonzero(is_active)
        # On the host, so that every device lists the same of tokens that give equally much, such as nothing.
        largest = torch.from_numpy(all_values[order]).topk(n_listed, dim=1)
        values, keys = largest.values.numpy().astype(np.float32), largest.indices.numpy().astype(np.int32)
        list_of_node[np.concatenate(placed)[order]] = np.arange(len(order))
    return TokenPairAttributionResult(table.nodes, list_of_node, keys, values)


def writes_to_latent(rows: Rows, row: int, layer_index: int, wanted: ActivationIndex) -> Tensor:
    """Attention's writes to one latent at every token pair [q, k]; zero but for the asked-for queries."""
    autoencoder = rows.autoencoder(wanted.hook_point)
    token, latent = wanted.tensor_indices
    assert latent is not None
    n_tokens = rows.planned[row].n_tokens
    queries = torch.arange(n_tokens, device=rows.model.decoder.device)
    if token is not None:
        queries = queries[token : token + 1]
    which = torch.full_like(queries, latent)
    gradients = latent_gradients(rows, autoencoder, layer_index, row, queries, which)
    writes = torch.zeros(n_tokens, n_tokens, dtype=gradients.dtype, device=gradients.device)
    writes[queries] = writes_towards(rows, layer_index, row, queries, gradients)[:, :n_tokens]
    return writes
