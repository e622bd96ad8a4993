"""Latents read back side by side: the active ones of the whole, and products with their directions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec, ActivationIndex
from tdb_server.engine.interventions import Intervention
from tdb_server.engine.latents import active_latents, dot_directions, splice
from tdb_server.model.autoencoder import AutoencoderLayer
from torch import Tensor

N_LATENTS, WIDTH = 30, 4
LATENT, ERROR = HookPoint.ONLINE_MLP_AUTOENCODER_LATENT, HookPoint.ONLINE_MLP_AUTOENCODER_ERROR


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYER = AutoencoderLayer(
    noise(WIDTH, seed=1),
    noise(N_LATENTS, WIDTH),
    -0.5 * noise(N_LATENTS, seed=2).abs(),
    noise(N_LATENTS, WIDTH, seed=3),
)
LAYERS = {"relu": LAYER, "topk": replace(LAYER, top_k=6)}
SITE = noise(2, 5, WIDTH, seed=4)


def intervention(
    hook_point: HookPoint, *indices: int | None, value: float, row: int = 1, n_tokens: int = 3
) -> Intervention:
    return Intervention(row, n_tokens, AblationSpec(ActivationIndex(hook_point, 0, indices), value))


def written_out(ids: Tensor, values: Tensor) -> Tensor:
    """All latents [B, T, n]."""
    return values.new_zeros(*ids.shape[:-1], N_LATENTS).scatter_add_(-1, ids, values)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "interventions", [(), (intervention(LATENT, 1, 3, value=2.5),), (intervention(ERROR, 1, 3, value=2.5),)]
)
def test_the_active_ones_are_those_of_the_whole(kind: str, interventions: Sequence[Intervention]) -> None:
    """What is set is at its new value; an error that is set is not a latent."""
    layer = LAYERS[kind]
    whole = layer.encode(SITE)
    if interventions and interventions[0].hook_point is LATENT:
        whole[1, 1, 3] = 2.5
    ids, values = active_latents(layer, SITE, interventions)
    torch.testing.assert_close(written_out(ids, values), whole)
    assert ids.shape[-1] <= int((whole != 0).sum(dim=-1).max())


def test_what_is_not_a_number_stays_where_it_is() -> None:
    site = SITE.clone()
    site[0, 1] *= 0
    site[1, 3] = torch.nan
    for layer in LAYERS.values():
        torch.testing.assert_close(
            written_out(*active_latents(layer, site, [])), layer.encode(site), equal_nan=True
        )


def test_nothing_is_active() -> None:
    ids, values = active_latents(
        replace(LAYER, latent_bias=torch.full((N_LATENTS,), -1e9).double()), SITE, []
    )
    assert ids.shape == values.shape == (2, 5, 1)
    assert not values.any()


@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_products_with_few_directions_and_with_many(n: int) -> None:
    ids = torch.randint(0, N_LATENTS, (2, 5, n), generator=torch.Generator().manual_seed(n))
    expected = (SITE @ LAYER.directions.T).gather(-1, ids)
    torch.testing.assert_close(dot_directions(LAYER, ids, SITE), expected)


def test_a_splice_adds_what_differs_and_touches_no_other_row() -> None:
    spliced = splice(LAYER, SITE, SITE, [intervention(LATENT, None, 3, value=2.5)])
    change = (2.5 - LAYER.encode(SITE)[1, :3, 3])[:, None] * LAYER.directions[3]
    torch.testing.assert_close(spliced[1, :3], SITE[1, :3] + change)
    assert torch.equal(spliced[0], SITE[0])
    assert torch.equal(spliced[1, 3:], SITE[1, 3:])  # its padding


def test_without_its_error_a_site_is_its_reconstruction() -> None:
    spliced = splice(LAYER, SITE, SITE, [intervention(ERROR, None, None, value=0.0)])
    torch.testing.assert_close(spliced[1, :3], LAYER.reconstruct(LAYER.encode(SITE), SITE)[1, :3])


def test_a_gradient_that_is_held_back_leaves_the_site_as_it_is() -> None:
    site = SITE.clone().requires_grad_()
    index = ActivationIndex(LATENT, 0, (None, None), PassType.BACKWARD)
    own = [
        Intervention(1, 3, AblationSpec(index, 0.0)),
        Intervention(1, 3, AblationSpec(replace(index, hook_point=ERROR), 0.0)),
    ]
    spliced = splice(LAYER, site, site, own)
    torch.testing.assert_close(spliced, SITE)
    spliced.sum().backward()
    assert site.grad is not None
    assert torch.equal(site.grad[0], torch.ones_like(SITE[0]))
