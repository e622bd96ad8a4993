"""Active latents of rows, read back from what dictionaries read, beside those of the rows' baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tdb_server.engine.interventions import Baseline, set_values
from tdb_server.engine.latents import active_in_either, active_latents
from tdb_server.engine.products import Layers
from tdb_server.engine.rows import Rows, of_each
from tdb_server.model.autoencoder import Autoencoder

FindLatents = Callable[[Rows, Autoencoder, int], tuple[Tensor, ...]]
"""From rows, a dictionary and one of its layers to latents and numbers of each."""


class RowLatents(NamedTuple):
    """A dictionary's active latents in some rows, after interventions: of each of its layers [B, T, K].

    Attributes:
        ids: which; with baselines, also those that are active there alone.
        values: their activations.
        contrasts: these less those of the baselines; the same where there are none.
        write_contrasts: these times what unit writes are multiplied with, in either run its own; without
            baselines the activations alone.
    """

    ids: Layers
    values: Layers
    contrasts: Layers
    write_contrasts: Layers


def row_latents(rows: Rows, autoencoder: Autoencoder) -> RowLatents:
    """A dictionary's active latents; of rows that all have baselines, or none of them."""
    find = _beside_baselines if rows.has_baselines else _alone
    return rows.once((autoencoder.site, "latents"), lambda: _look_up(rows, autoencoder, find))


def latents_of_prompts(rows: Rows, autoencoder: Autoencoder) -> RowLatents:
    """The same without those that are active in baselines alone. Rows with and without may be mixed."""
    if not any(row.baselines for row in rows.planned):
        return row_latents(rows, autoencoder)
    return rows.once((autoencoder.site, "latents of prompts"), lambda: _look_up(rows, autoencoder, _alone))


def _look_up(rows: Rows, autoencoder: Autoencoder, find: FindLatents) -> RowLatents:
    of_layers = [find(rows, autoencoder, layer_index) for layer_index, _ in rows.layers_of(autoencoder)]
    ids, *numbers = (Layers(_same_width(one)) for one in zip(*of_layers, strict=True))
    absent = rows.absent_tokens
    if absent is not None:

        def without_padding(x: Tensor) -> Tensor:
            return x.masked_fill(absent.view(len(absent), *[1] * (x.dim() - 3), -1, 1), 0)

        numbers = [of_each(without_padding, one) for one in numbers]
    return RowLatents(ids, *(numbers * 3 if len(numbers) == 1 else numbers))


def _alone(rows: Rows, autoencoder: Autoencoder, layer_index: int) -> tuple[Tensor, ...]:
    """Which, and their activations."""
    read, interventions = rows.read_by(autoencoder, layer_index), rows.interventions(autoencoder, layer_index)
    baseline = _baseline_latents(rows, autoencoder, layer_index)
    return active_latents(autoencoder.layers[layer_index], read, interventions, baseline)


def _beside_baselines(rows: Rows, autoencoder: Autoencoder, layer_index: int) -> tuple[Tensor, ...]:
    """Which, their activations, those less the baselines', and the same as writes are told apart."""
    references, read = rows.references, rows.read_by(autoencoder, layer_index)
    assert references is not None
    layer, hook_point = autoencoder.layers[layer_index], autoencoder.site.hook_point
    altered = [
        one for one in rows.interventions(autoencoder, layer_index) if one.is_forward and one.is_of_latents
    ]
    baseline = _baseline_latents(rows, autoencoder, layer_index)
    latents = set_values(layer.encode(read), altered, baseline=baseline)
    others = rows.by_baselines(lambda one: references.latents(one, autoencoder, layer_index))
    ids, is_there = active_in_either(latents, others)
    values, others = latents.gather(-1, ids) * is_there, others.gather(-1, ids) * is_there
    scale = rows.write_scale(hook_point, layer_index)
    if scale is None and not layer.norms_inputs:
        return ids, values, values - others, values - others
    point = rows.model.decoder.write_scales.get(hook_point)
    written = rows.by_baselines(lambda one: references.latent_writes(one, autoencoder, layer_index, point))
    own = layer.times_write_scale(values, read)
    own = own if scale is None else own / scale
    return ids, values, values - others, own - written.gather(-1, ids) * is_there


def _baseline_latents(rows: Rows, autoencoder: Autoencoder, layer_index: int) -> Baseline | None:
    """From a row to its latents in baseline prompts."""
    references = rows.references
    if references is None:
        return None
    return lambda row: references.latents(rows.planned[row].baselines, autoencoder, layer_index)


def _same_width(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, T, K] of the same K: the last entry is repeated for ids, zeros are added for numbers."""
    width = max(one.shape[-1] for one in tensors)
    found = []
    for one in tensors:
        missing = width - one.shape[-1]
        if missing and one.is_floating_point():
            one = torch.nn.functional.pad(one, (0, missing))
        elif missing:
            one = torch.cat((one, one[..., -1:].expand(*one.shape[:-1], missing)), dim=-1)
        found.append(one)
    return found
