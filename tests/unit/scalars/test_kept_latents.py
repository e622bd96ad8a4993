"""Latents of which TopK keeps a few are found without the others, what is not a number included."""

from __future__ import annotations

import torch
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.scalars.latents import encode_sparsely


def test_kept_latents_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 4, generator=generator)
    layer = AutoencoderLayer(torch.zeros(4), weight, -torch.ones(30), weight, top_k=6)
    site = torch.randn(5, 4, generator=generator)
    site[1] *= 0  # nothing is active there
    site[3] = torch.nan
    whole = layer.encode(site)
    found = encode_sparsely(layer, site, [])
    assert torch.equal(found.coordinates, whole.nonzero())
    torch.testing.assert_close(found.values, whole[whole.nonzero().unbind(1)], equal_nan=True)
    assert found.values.isnan().sum() == 6
