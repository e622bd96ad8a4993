"""What attention hands from token to token towards a latent, against a dense computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    InferenceSpec,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    TokenPairAttributionSpec,
)
from tdb_server.domain.results import DerivedAttentionScalarsResult, TokenPairAttributionResult
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.plain_edits import deviation_of, latents_of
from tests.property.plain_model import PlainModel, Seen
from tests.property.requests import answer, examples, inference, prompts
from tests.property.small_models import AUTOENCODER_KINDS, MODELS, N_LATENTS, small_autoencoder, small_model

LOSS = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
LATENTS = MultipleTopKSpec(
    ((GroupId.ACTIVATION, (DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT,)),), top_and_bottom_k=20
)


def writes_to_latents(model: PlainModel, seen: Seen, autoencoder: Autoencoder, layer: int) -> Tensor:
    """Every token pair's and every latent's attribution [q, k, n], zero for inactive latents."""
    weights = autoencoder.layers[layer]
    values = torch.einsum(
        "khe,hed->khd", model.for_heads(seen[HookPoint.ATTN_V, layer])[0], model.out_weights(layer)
    )
    writes = torch.einsum("qkh,khd->qkd", seen[HookPoint.ATTN_QK_PROBS, layer][0], values)
    writes = writes * model.times_behind(seen, layer, "attn")[:, None]
    site = seen[HookPoint.RESID_DELTA_ATTN, layer][0]
    reads = weights.encoder_weight.expand(len(site), -1, -1)
    if weights.norms_inputs:  # the scale is held constant
        reads = (reads - reads.mean(dim=-1, keepdim=True)) / (deviation_of(site)[:, None] + 1e-5)
    is_active = latents_of(weights, site) > 0
    return torch.einsum("qkd,qnd->qkn", writes, reads) * is_active[:, None]


@pytest.mark.parametrize(("top_k", "norms_inputs"), AUTOENCODER_KINDS)
@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(token_ids=prompts(1, 6))
def test_token_pair_attribution(
    name: str, top_k: int | None, norms_inputs: bool, token_ids: tuple[int, ...]
) -> None:
    """Three tokens for each latent, or as many as there are."""
    model, autoencoder = (
        small_model(name),
        small_autoencoder(name, Site.RESID_DELTA_ATTN, top_k, norms_inputs=norms_inputs),
    )
    found = answer(
        model.engine(autoencoder),
        inference(token_ids, LOSS),
        nodes=LATENTS,
        pairs=TokenPairAttributionSpec("nodes"),
    )
    result = found.results["pairs"]
    assert isinstance(result, TokenPairAttributionResult)
    n_listed = min(3, len(token_ids))
    assert result.token_indices.shape[1] == n_listed
    seen = model.plain.run(token_ids)
    dense = [writes_to_latents(model.plain, seen, autoencoder, one) for one in range(model.plain.n_layers)]
    for node, row in zip(result.nodes, result.rows, strict=True):
        assert node.layer_index is not None
        query, latent = node.tensor_indices
        of_node = dense[node.layer_index][query, :, latent].numpy()
        expected = np.sort(of_node)[::-1][:n_listed]
        np.testing.assert_allclose(result.attributions[row], expected, atol=1e-5)
        np.testing.assert_allclose(of_node[result.token_indices[row]], expected, atol=1e-5)
        assert len(set(result.token_indices[row].tolist())) == n_listed


def test_only_latents_that_were_active_have_token_pairs() -> None:
    """One that an ablation switches on has none, one that it switches off still has them."""
    token_ids, model = (3, 9, 27, 41), small_model("gpt2")
    autoencoder = small_autoencoder("gpt2", Site.RESID_DELTA_ATTN)
    latents = latents_of(autoencoder.layers[1], model.plain.run(token_ids)[HookPoint.RESID_DELTA_ATTN, 1][0])
    inactive = (latents[2] == 0).nonzero()[0].item()
    ablation = AblationSpec(
        ActivationIndex(HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT, 1, (2, inactive)), 5.0
    )
    found = answer(
        model.engine(autoencoder),
        inference(token_ids, LOSS, ablations=[ablation]),
        nodes=LATENTS,
        pairs=TokenPairAttributionSpec("nodes"),
    )
    result = found.results["pairs"]
    assert isinstance(result, TokenPairAttributionResult)
    row_of = {
        (n.layer_index, *n.tensor_indices): row for n, row in zip(result.nodes, result.rows, strict=True)
    }
    assert row_of.pop((1, 2, inactive)) == -1
    assert min(row_of.values()) >= 0


@pytest.mark.parametrize(("top_k", "norms_inputs"), AUTOENCODER_KINDS)
@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(
    token_ids=prompts(1, 6),
    is_one_token=st.booleans(),
    layer=st.integers(0, 1),
    latent=st.integers(0, N_LATENTS - 1),
)
def test_writes_to_one_latent(
    name: str,
    top_k: int | None,
    norms_inputs: bool,
    token_ids: tuple[int, ...],
    is_one_token: bool,
    layer: int,
    latent: int,
) -> None:
    """Zero where the latent is inactive, which with TopK it may be in spite of its sign."""
    model, autoencoder = (
        small_model(name),
        small_autoencoder(name, Site.RESID_DELTA_ATTN, top_k, norms_inputs=norms_inputs),
    )
    token = len(token_ids) - 1 if is_one_token else None
    wanted = ActivationIndex(HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT, layer, (token, latent))
    scalar = DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
    found = answer(
        model.engine(autoencoder),
        InferenceSpec(token_ids, within_layer_gradient=wanted),
        pairs=DerivedAttentionScalarsSpec(scalar, layer, 0),
    )
    result = found.results["pairs"]
    assert isinstance(result, DerivedAttentionScalarsResult)
    seen = model.plain.run(token_ids)
    expected = writes_to_latents(model.plain, seen, autoencoder, layer)[:, :, latent]
    if is_one_token:
        expected[:-1] = 0
    np.testing.assert_allclose(result.scalars, expected, atol=1e-5)
    np.testing.assert_allclose(result.totals_in.total, expected.sum(dim=1), atol=1e-5)
    np.testing.assert_allclose(result.totals_out.total, expected.sum(dim=0), atol=1e-5)
