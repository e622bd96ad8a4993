"""Latents inside a pass: spliced into the forward pass, and read back.

A dictionary is spliced in "online" with its error added back, so `site = reconstruction + error` and nothing
changes downstream. The error of a transcoder is what the MLP writes less what the transcoder predicts. As a
splice in which nothing is set changes nothing, it is left out. Where a latent (or the error) is set, only
what differs is added,
`(set - latent) @ directions` (times the inputs' deviation where they are layer normed), where gradients flow
through the latent as it was, and through the norm.

Few latents are active at a token. Read back, each token has its active ones side by side [B, T, K]; what is
left of K are zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.hook_point import LATENT_TYPES, HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.engine.interventions import Baseline, Intervention, set_gradients, set_values
from tdb_server.engine.sampled_products import sampled_products
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.precision import wide

_MAX_GATHERED = 2**25
"""Numbers of directions that are gathered at once on a GPU."""


def autoencoder_of(named: HookPoint | NodeType, autoencoders: Sequence[Autoencoder]) -> Autoencoder:
    """The loaded autoencoder that a hook point or a node type means; requests were checked before."""
    node_type = named if isinstance(named, NodeType) else LATENT_TYPES[named]
    return next(one for one in autoencoders if node_type in (NodeType.AUTOENCODER_LATENT, one.site.node_type))


def splice(
    layer: AutoencoderLayer,
    inputs: Tensor,
    written: Tensor,
    interventions: Sequence[Intervention],
    baseline: Baseline | None = None,
) -> Tensor:
    """What is written after latents or errors are set, from what the dictionary reads: both [B, T, s].

    Args:
        baseline: from a row to its latents in baseline prompts [T, n].
    """
    spliced = written.clone()
    for row in {one.row for one in interventions}:
        own = [one.alone for one in interventions if one.row == row]
        tokens = slice(own[0].n_tokens)
        # In float32: latents that are active here are those that are reported.
        read, written_row = wide(inputs[row : row + 1, tokens]), wide(written[row : row + 1, tokens])
        latents = layer.encode(read)
        change = torch.zeros_like(written_row)
        errors = [one for one in own if not one.is_of_latents]
        if errors:
            error = written_row - layer.reconstruct(latents, read)
            change = change + _set(error, errors) - error
        if len(errors) < len(own):
            of_row = None if baseline is None else partial(_first, baseline, row)
            altered = _set(latents, [one for one in own if one.is_of_latents], of_row)
            change = change + layer.times_write_scale((altered - latents) @ layer.directions, read)
        # Not into what was written, whose values the way back still needs.
        spliced[row : row + 1, tokens] = (written_row + change).to(spliced.dtype)
    return spliced


def _first(baseline: Baseline, row: int, _: int) -> Tensor:
    """The baseline of the row that is looked at alone, as row 0."""
    return baseline(row)


def _set(x: Tensor, interventions: Sequence[Intervention], baseline: Baseline | None = None) -> Tensor:
    altered = set_values(x, [one for one in interventions if one.is_forward], baseline=baseline)
    return set_gradients(altered, [one for one in interventions if not one.is_forward])


def active_latents(
    layer: AutoencoderLayer,
    read: Tensor,
    interventions: Sequence[Intervention],
    baseline: Baseline | None = None,
) -> tuple[Tensor, Tensor]:
    """The active latents of what is read [B, T, s], those that are set at their new value.

    Args:
        baseline: from a row to its latents in baseline prompts [T, n].

    Returns:
        Which they are, and their activations, two [B, T, K]; any latent may stand where the activation is 0.
    """
    altered = [one for one in interventions if one.is_forward and one.is_of_latents]
    if layer.keeps_few and not altered:
        values, ids = layer.largest(layer.pre_activations(read))
        return ids, torch.relu(values)
    return _side_by_side(set_values(layer.encode(read), altered, baseline=baseline))


def active_in_either(latents: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The latents that are not zero in one of two [B, T, n].

    Returns:
        Which they are, and 1 for each, 0 for what fills up where there are fewer, two [B, T, K].
    """
    ids, _ = _side_by_side(((latents != 0) | (others != 0)).to(latents.dtype))
    is_first = torch.ones_like(ids, dtype=latents.dtype)
    is_first[..., 1:] = (ids[..., 1:] != ids[..., :-1]).to(latents.dtype)
    return ids, is_first


def _side_by_side(latents: Tensor) -> tuple[Tensor, Tensor]:
    """The latents [B, T, n] that are not zero."""
    counts = (latents != 0).sum(dim=-1)
    n_kept = max(1, int(counts.max())) if counts.numel() else 1
    if latents.device.type != "cpu":
        ids = latents.abs().topk(n_kept, dim=-1, sorted=False).indices
        return ids, latents.gather(-1, ids)
    where = latents.nonzero().unbind(1)
    ends = counts.flatten().cumsum(0)
    token = where[0] * latents.shape[1] + where[1]
    position = torch.arange(len(token)) - F.pad(ends, (1, 0))[token]
    ids = torch.full((*latents.shape[:-1], n_kept), latents.shape[-1] - 1)
    values = latents.new_zeros(ids.shape)
    ids[where[0], where[1], position] = where[2]
    values[where[0], where[1], position] = latents[where]
    return ids, values


def dot_directions(layer: AutoencoderLayer, ids: Tensor, vectors: Tensor) -> Tensor:
    """Of each latent its direction · its token's vector: [..., K] and [..., s] to [..., K].

    The directions of few latents are gathered; many are cheaper as one product.
    """
    shape, n_latents = ids.shape, len(layer.directions)
    if not ids.numel():
        return vectors.new_zeros(shape)
    if 8 * shape[-1] > n_latents:
        return (vectors @ layer.directions.T).gather(-1, ids)
    flat, tokens = ids.reshape(-1, shape[-1]), vectors.reshape(-1, vectors.shape[-1])
    if ids.device.type == "cpu":
        rows = torch.arange(len(flat)).repeat_interleave(shape[-1])
        return sampled_products(tokens, layer.directions, rows, flat.reshape(-1)).view(shape)
    step = max(1, _MAX_GATHERED // (shape[-1] * vectors.shape[-1]))
    parts = [
        (layer.directions[some] @ own[:, :, None])[:, :, 0]
        for some, own in zip(torch.split(flat, step), torch.split(tokens, step), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)
