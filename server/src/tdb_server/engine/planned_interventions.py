"""What a plan sets of logits, and of dictionaries' latents."""

from __future__ import annotations

from dataclasses import replace

from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.hook_point import HookPoint
from tdb_server.engine.interventions import Intervention
from tdb_server.engine.latents import autoencoder_of
from tdb_server.engine.plan import Plan
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.model.autoencoder import Autoencoder


def latent_interventions(
    plan: Plan, model: SplicedModel, autoencoder: Autoencoder, layer_index: int
) -> list[Intervention]:
    """What is set of an autoencoder's latents and errors in a layer, in the order of rows."""
    found = [
        one
        for (hook_point, layer), interventions in plan.interventions.items()
        if layer == layer_index and is_of_autoencoder(hook_point)
        if autoencoder_of(hook_point, model.autoencoders) is autoencoder
        for one in interventions
    ]
    return sorted(found, key=lambda one: one.row)


def logit_interventions(plan: Plan) -> list[Intervention]:
    """What is set of logits."""
    return plan.interventions.get((HookPoint.LOGITS, None), [])


def logits_of_losses(plan: Plan) -> list[Intervention]:
    """What is set of logits that losses see."""
    return [found for one in logit_interventions(plan) if (found := _at_loss_token(plan, one))]


def _at_loss_token(plan: Plan, one: Intervention) -> Intervention | None:
    """What is set of a row's logits where the token of its loss is all there is."""
    token, entry = one.ablation.index.tensor_indices
    if token not in (None, plan.rows[one.row].loss_token):
        return None
    index = replace(one.ablation.index, tensor_indices=(None, entry))
    return Intervention(one.row, 1, replace(one.ablation, index=index))
