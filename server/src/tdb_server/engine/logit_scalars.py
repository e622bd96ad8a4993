"""Logits and gradients there, and what embeddings alone give neurons and latents."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.axes import LATENT_HOOK_POINTS
from tdb_server.domain.derived_scalar import Declaration
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import ActivationIndex
from tdb_server.engine.interventions import set_values
from tdb_server.engine.objectives import latent_pre_activations
from tdb_server.engine.planned_interventions import logit_interventions
from tdb_server.engine.product_of_rows import product_at_all_tokens
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.rows import Rows
from tdb_server.engine.transfers import download
from tdb_server.model.precision import wide

_N_EMBEDDINGS = 4096
"""How many embeddings go through an MLP at once: their neurons take tens of megabytes, not a gigabyte."""

_N_CAPPED = 64
"""At how many tokens all logits are computed at once, where their sum is not that of a product."""


def logit_scalars(rows: Rows, declared: Declaration, pass_type: PassType) -> Product:
    """Logits, or gradients there, at the tokens whose logits are wanted; sums at every token."""
    axes = declared.dimensions
    if pass_type is PassType.BACKWARD:
        return product_at_all_tokens(rows, declared, [Layers([_logit_gradients(rows)])], axes)
    logits, sums = logits_at_tokens(rows), _logit_sums(rows)
    tokens, host_tokens = rows.inputs.logit_tokens[rows.span], rows.inputs.host_logit_tokens[rows.span]
    if logits.shape[1] == 1:  # one copy now, in place of three for what is ranked and looked up
        logits, sums = (torch.from_numpy(one) for one in download([logits, sums]))
        tokens = torch.from_numpy(host_tokens)
    product = product_at_all_tokens(rows, declared, [Layers([logits])], axes)
    absent = None
    if len({len(row.logit_tokens) for row in rows.planned}) > 1:
        absent = F.pad(tokens[:, 1:] == tokens[:, :-1], (1, 0))[:, None, :, None]  # padded with the last
    return replace(product, tokens=host_tokens, device_tokens=tokens, known_sum=sums, absent=absent)


def logits_at_tokens(rows: Rows) -> Tensor:
    """Logits at the tokens whose logits are wanted [B, m, V]; zero in padding."""
    of_losses, tokens = rows.cache.loss_logits[rows.span], rows.inputs.logit_tokens[rows.span]
    if tokens.shape[1] == 1:
        return of_losses[:, None]
    normed = rows.cache.final_normed[rows.span]
    decoder = rows.model.decoder
    found = decoder.cap(decoder.unembed(normed[rows.inputs.row_indices[: rows.n_rows, None], tokens]))
    for row, planned in enumerate(rows.planned):
        place = planned.logit_tokens.index(planned.loss_token)
        found[row, place] = of_losses[row]  # the very numbers that losses are made of
        found[row, len(planned.logit_tokens) :] = 0
    for one in rows.in_these_rows(logit_interventions(rows.plan)):
        if one.is_forward:
            token, entry = one.ablation.index.tensor_indices
            own = enumerate(rows.planned[one.row].logit_tokens)
            places = [place for place, at in own if token in (None, at)]
            found[one.row, places, slice(None) if entry is None else entry] = one.ablation.value
    return found


def _logit_sums(rows: Rows) -> Tensor:
    """Logits summed over the vocabulary, at every token [B, T]; added up where they are set or capped."""
    normed, decoder = rows.cache.final_normed[rows.span], rows.model.decoder
    if decoder.caps_logits:
        parts = torch.split(normed.flatten(end_dim=1), _N_CAPPED)
        sums = [decoder.cap(decoder.unembed(part)).sum(dim=-1) for part in parts]
        found = torch.cat(sums).view(normed.shape[:2])
    else:
        found = normed @ rows.precomputed.unembedding_sum
    altered = [one for one in rows.in_these_rows(logit_interventions(rows.plan)) if one.is_forward]
    for row in {one.row for one in altered}:
        logits = decoder.cap(decoder.unembed(normed[row : row + 1]))  # [1, T, V]
        found[row] = set_values(logits, [one.alone for one in altered if one.row == row]).sum(dim=-1)[0]
    return found


def _logit_gradients(rows: Rows) -> Tensor:
    """Gradients at the logits of every token [B, T, V]."""
    assert rows.backward is not None
    of_losses, others = rows.backward.at_loss_logits, rows.backward.at_other_logits
    like = rows.cache.loss_logits
    found = like.new_zeros(rows.n_rows, rows.plan.n_tokens, like.shape[1])
    for row, planned in enumerate(rows.planned):
        index = rows.span.start + row
        if index in others:
            found[row, : planned.n_tokens] = others[index]
        if of_losses is not None:
            found[row, planned.loss_token] = of_losses[index, 0]
    return found


def vocabulary_reads(rows: Rows) -> Tensor:
    """What each token's embedding alone gives the neurons and MLP latents that rows name [B, T, V].

    A backward ablation of `mlp.post_act` or of an MLP autoencoder's latents names one and a weight; the
    embedding stands for the whole residual stream before its MLP.
    """
    n_vocabulary = rows.model.decoder.config.vocabulary_size
    reads = rows.cache.loss_logits.new_zeros(rows.n_rows, rows.plan.n_tokens, n_vocabulary)
    for row, planned in enumerate(rows.planned):
        for one in planned.inference.ablations:
            if one.index.pass_type is PassType.BACKWARD and _has_reads(rows, one.index.hook_point):
                token = one.index.tensor_indices[0]
                own = reads[row, : planned.n_tokens]
                own[slice(None) if token is None else token] += one.value * _embedding_reads(rows, one.index)
    return reads


def _has_reads(rows: Rows, hook_point: HookPoint) -> bool:
    """Whether a hook point's cells are neurons or latents of the MLP's autoencoder."""
    if hook_point in LATENT_HOOK_POINTS:
        return rows.autoencoder(hook_point).site.is_mlp
    return hook_point is HookPoint.MLP_POST_ACT


def _embedding_reads(rows: Rows, index: ActivationIndex) -> Tensor:
    """What embeddings, some at a time, give one neuron or latent before its nonlinearity [V]."""
    layer_index, component = index.layer_index, index.tensor_indices[1]
    assert layer_index is not None
    assert component is not None
    decoder = rows.model.decoder
    found = []
    for embedding in torch.split(decoder.token_embedding, _N_EMBEDDINGS):
        which = torch.full((len(embedding),), component, device=embedding.device)
        embedding = decoder.entering(wide(embedding))
        if index.hook_point is HookPoint.MLP_POST_ACT:
            found.append(decoder.blocks[layer_index].mlp.objectives(embedding, which))
        else:
            autoencoder = rows.autoencoder(index.hook_point)
            read = autoencoder.recomputed_inputs(decoder, layer_index, embedding)
            found.append(latent_pre_activations(autoencoder.layers[layer_index], read, which))
    return torch.cat(found)
