"""What attention hands from token to token towards one latent (or one direction), summed over heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.node import NodeIndex, Nodes
from tdb_server.domain.place import Place
from tdb_server.domain.requests import ActivationIndex
from tdb_server.domain.results import TokenPairAttributionResult
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.scalars import heads
from tdb_server.scalars.latents import autoencoder_of
from tdb_server.scalars.row_run import RowRun


def writes_towards(run: RowRun, layer_index: int, queries: Tensor, directions: Tensor) -> Tensor:
    """`sum over heads of attn(q, k, h) v(k, h) W_O[h] · direction`, for m queries, each with its direction.

    Args:
        queries: tokens [m].
        directions: [m, d].

    Returns:
        Attributions to every attended-to token [m, T].
    """
    probs = run.value(Place.ATTN_QK_PROBS, layer_index)[:, queries]  # [H, m, T]
    return (probs * heads.project_writes(run, layer_index, directions)).sum(dim=0)


def latent_gradients(
    run: RowRun, autoencoder: Autoencoder, layer_index: int, tokens: Tensor, latents: Tensor
) -> Tensor:
    """Gradient of latents at attention's write, each at its own token, before any ablation [m, d].

    It is zero for inactive latents. The scale of normed inputs is held constant.
    """
    layer = autoencoder.layers[layer_index]
    site = run.value(autoencoder.site.place, layer_index)[tokens]
    is_active = layer.encode(site).gather(1, latents[:, None]) != 0  # [m, 1]
    return layer.read_directions(latents, site) * is_active


def token_pair_attribution(
    run: RowRun, nodes: Nodes, n_tokens_attended_to: int
) -> TokenPairAttributionResult:
    """For every active attention latent: the tokens whose values fed it most."""
    rows = np.full(len(nodes), -1, np.int32)
    indices: list[Tensor] = []
    attributions: list[Tensor] = []
    n_listed = min(n_tokens_attended_to, run.n_tokens)
    n_found = 0
    for layer_index, positions in _attention_latents(run, nodes).items():
        autoencoder = run.autoencoder_of_node(nodes[positions[0]].node_type)
        cells = torch.tensor([nodes[one].tensor_indices for one in positions], device=run.decoder.device)
        gradients = latent_gradients(run, autoencoder, layer_index, *cells.unbind(1))
        is_active = (gradients != 0).any(dim=1)
        towards = writes_towards(run, layer_index, cells[is_active, 0], gradients[is_active])
        best = towards.cpu().topk(n_listed, dim=1)  # a GPU puts equals, such as zeros, into another order
        attributions.append(best.values)
        indices.append(best.indices)
        for position, active in zip(positions, is_active.tolist(), strict=True):
            if active:
                rows[position] = n_found
                n_found += 1
    nothing = torch.zeros(0, n_listed)
    return TokenPairAttributionResult(
        nodes,
        rows,
        torch.cat([nothing.int(), *(one.int() for one in indices)]).numpy(),
        torch.cat([nothing, *(one.float() for one in attributions)]).numpy(),
    )


def _attention_latents(run: RowRun, nodes: Sequence[NodeIndex]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for position, node in enumerate(nodes):
        if node.node_type.is_latent and not run.autoencoder_of_node(node.node_type).site.is_mlp:
            assert node.layer_index is not None
            found.setdefault(node.layer_index, []).append(position)
    return found


def writes_to_latent(run: RowRun, layer_index: int, wanted: ActivationIndex) -> Tensor:
    """Attention's writes to one latent at every token pair [q, k]; zero but for the asked-for queries."""
    autoencoder = autoencoder_of(wanted.place, run.autoencoders)
    token, latent = wanted.tensor_indices
    assert latent is not None
    queries = torch.arange(run.n_tokens, device=run.decoder.device)
    if token is not None:
        queries = queries[token : token + 1]
    gradients = latent_gradients(run, autoencoder, layer_index, queries, torch.full_like(queries, latent))
    writes = torch.zeros(run.n_tokens, run.n_tokens, dtype=gradients.dtype, device=gradients.device)
    writes[queries] = writes_towards(run, layer_index, queries, gradients)
    return writes
