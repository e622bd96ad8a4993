"""What a request does to the forward pass, done to the plain model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, LossConfig, LossName
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from torch import Tensor

from tests.property.plain_model import Edit, Edits, PlainModel, Spot

PAIR_PLACES = (HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS)
LATENT_SITES = {
    HookPoint.ONLINE_MLP_AUTOENCODER_LATENT: (Site.MLP_POST_ACT, Site.RESID_DELTA_MLP),
    HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT: (Site.RESID_DELTA_ATTN,),
}


def loss_value(loss: LossConfig, logits: Tensor, cap: float | None = None) -> Tensor:
    """The loss of every copy's last token: [c, T, V] to [c]. Differences are of logits before their cap."""
    last = logits[:, -1]
    if cap is not None and loss.name is not LossName.PROBS:
        last = cap * (last / cap).atanh()
    targets = last[:, list(loss.target_tokens)]
    match loss.name:
        case LossName.LOGIT_DIFF if loss.distractor_tokens:
            return targets.mean(dim=1) - last[:, list(loss.distractor_tokens)].mean(dim=1)
        case LossName.LOGIT_DIFF:
            return targets.mean(dim=1)
        case LossName.LOGIT_MINUS_MEAN:
            return targets.mean(dim=1) - last.mean(dim=1)
        case LossName.PROBS:
            return targets.exp().sum(dim=1) / last.exp().sum(dim=1)
        case other:
            raise ValueError(other)


def deviation_of(site: Tensor) -> Tensor:
    """Standard deviation over the channels of site values [..., s], by the definition: [..., 1]."""
    from_mean = site - site.mean(dim=-1, keepdim=True)
    return ((from_mean**2).sum(dim=-1, keepdim=True) / (site.shape[-1] - 1)).sqrt()


def pre_activations_of(layer: AutoencoderLayer, site: Tensor, deviation: Tensor | None = None) -> Tensor:
    """What stands before latents' nonlinearity [..., n]; the deviation may be one that is held constant."""
    if layer.norms_inputs:
        deviation = deviation_of(site) if deviation is None else deviation
        site = (site - site.mean(dim=-1, keepdim=True)) / (deviation + 1e-5)
    return (site - layer.pre_bias) @ layer.encoder_weight.T + layer.latent_bias


def written_by(layer: AutoencoderLayer, latents: Tensor, site: Tensor) -> Tensor:
    """What latents [..., n] stand for at the site, where it has these values [..., s], without any bias."""
    written = latents @ layer.directions
    return written * deviation_of(site) if layer.norms_inputs else written


def latents_of(layer: AutoencoderLayer, site: Tensor, deviation: Tensor | None = None) -> Tensor:
    """Latents [..., n] of site values [..., s], by the definition."""
    latents = pre_activations_of(layer, site, deviation).clamp(min=0)
    if layer.top_k is None or layer.top_k >= latents.shape[-1]:
        return latents
    smallest_kept = latents.sort(dim=-1, descending=True).values[..., layer.top_k - 1, None]
    return latents * (latents >= smallest_kept)


def autoencoder_of_place(place: HookPoint, autoencoders: Sequence[Autoencoder]) -> Autoencoder:
    return next(one for one in autoencoders if one.site in LATENT_SITES[place])


def ablation_edits(
    model: PlainModel, ablations: Sequence[AblationSpec], autoencoders: Sequence[Autoencoder] = ()
) -> dict[Spot, Edit]:
    """Edits that set the forward ablations' cells; latents are set after everything else at their site."""
    forward = [one for one in ablations if one.index.pass_type is PassType.FORWARD]
    edits: dict[Spot, Edit] = {}
    for one in forward:
        if one.index.hook_point not in LATENT_SITES:
            add(edits, (one.index.hook_point, one.index.layer_index), _set_cells(model, one.index, one.value))
    latents: dict[Spot, list[AblationSpec]] = {}
    for one in forward:
        if one.index.hook_point in LATENT_SITES:
            site = autoencoder_of_place(one.index.hook_point, autoencoders).site
            latents.setdefault((site.hook_point, one.index.layer_index), []).append(one)
    for (place, layer_index), specs in latents.items():
        assert layer_index is not None
        autoencoder = autoencoder_of_place(specs[0].index.hook_point, autoencoders)
        add(edits, (place, layer_index), _set_latents(autoencoder.layers[layer_index], specs))
    return edits


def add(edits: dict[Spot, Edit], spot: Spot, edit: Edit) -> None:
    """Adds an edit behind those that are there."""
    earlier = edits.get(spot)
    edits[spot] = edit if earlier is None else lambda x: edit(earlier(x))


def with_edit(edits: Edits, spot: Spot, edit: Edit) -> dict[Spot, Edit]:
    """The edits, and one more behind them."""
    found = dict(edits)
    add(found, spot, edit)
    return found


def _set_cells(model: PlainModel, index: ActivationIndex, value: float) -> Edit:
    def edit(x: Tensor) -> Tensor:
        cells = torch.zeros(x.shape[1:], dtype=torch.bool)
        cells[tuple(slice(None) if one is None else one for one in index.tensor_indices)] = True
        if index.hook_point in PAIR_PLACES:
            assert index.layer_index is not None
            cells &= ~model.masked(x.shape[1], index.layer_index)[:, :, None]
        return torch.where(cells, torch.tensor(value, dtype=x.dtype), x)

    return edit


def _set_latents(layer: AutoencoderLayer, specs: Sequence[AblationSpec]) -> Edit:
    def edit(site: Tensor) -> Tensor:
        latents = latents_of(layer, site)
        altered = ablated_latents(latents, specs)
        return site + written_by(layer, altered - latents, site)

    return edit


def ablated_latents(latents: Tensor, specs: Sequence[AblationSpec]) -> Tensor:
    """Latents [..., T, n] with the ablated ones set."""
    altered = latents.clone()
    for one in specs:
        token, latent = (slice(None) if i is None else i for i in one.index.tensor_indices)
        altered[..., token, latent] = one.value
    return altered
