"""A place as it is, and what each layer would predict: against other implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    LensSpec,
    LossConfig,
    LossName,
)
from tdb_server.domain.results import ActivationsResult, DerivedScalarsResult, LensResult
from tdb_server.engine import lens as lens_module

from tests.property.requests import Answer, answer, answers_of_calls, inference
from tests.property.small_models import small_autoencoder, small_model

PROMPT = (8, 30, 21, 55)
LOSS = LossConfig(LossName.LOGIT_DIFF, (1, 2), (3,))
PLACES = [one for one in HookPoint if not is_of_autoencoder(one)]
WITHOUT_LAYERS = (HookPoint.RESID_POST_EMB, HookPoint.RESID_LN_F_SCALE, HookPoint.LOGITS)


def activations_of(found: Answer, name: str) -> ActivationsResult:
    result = found.results[name]
    assert isinstance(result, ActivationsResult)
    return result


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_the_values_of_every_place(name: str) -> None:
    """In a batch with a longer prompt, at some tokens in another order than that of the prompt."""
    model, tokens = small_model(name), (3, 0)
    there = [one for one in PLACES if one not in model.decoder.absent_hook_points]
    layers: dict[HookPoint, tuple[int | None, ...]] = {
        one: (None,) if one in WITHOUT_LAYERS else (1, 0) for one in there
    }
    specs: dict[str, Any] = {one.value: ActivationsSpec(one, layers[one], tokens) for one in there}
    longer = [InferenceSubRequest(InferenceSpec((1, 2, 3, 4, 5, 6)), {"e": specs["resid.post_emb"]})]
    calls = [[InferenceSubRequest(InferenceSpec(PROMPT), specs)], longer]
    found = answers_of_calls(model.engine(), calls)[0][0]
    seen = model.plain.run(PROMPT)
    for place in there:
        result = activations_of(found, place.value)
        assert result.token_indices == tokens
        assert tuple(layer for layer, _ in result.layers) == layers[place]
        for layer, values in result.layers:
            assert values.dimensions == place.dimensions
            expected = seen[place, layer][0][list(tokens)].numpy()
            np.testing.assert_allclose(values.array, expected, atol=1e-6)


@pytest.mark.parametrize("is_forward", [True, False])
def test_values_and_gradients_are_those_of_single_components(is_forward: bool) -> None:
    """Also of latents, of which only the active ones are looked at; their gradients are theirs alone."""
    engine = small_model("llama").engine(small_autoencoder("llama", Site.MLP_POST_ACT, top_k=5))
    pass_type = PassType.FORWARD if is_forward else PassType.BACKWARD
    at_all = tuple(range(len(PROMPT)))
    latents = HookPoint.ONLINE_AUTOENCODER_LATENT
    specs = {
        "neurons": ActivationsSpec(HookPoint.MLP_POST_ACT, (0,), at_all, pass_type),
        "latents": ActivationsSpec(latents, (0,), at_all, pass_type),
    }
    scalars = {"neurons": DerivedScalar.MLP_POST_ACT, "latents": DerivedScalar.ONLINE_AUTOENCODER_LATENT}
    components = {
        f"{name} {index}": DerivedScalarsSpec(scalar, 0, index, pass_type)
        for name, scalar in scalars.items()
        for index in range(20)
    }
    found = answer(engine, inference(PROMPT, LOSS), **specs, **components)
    for name in scalars:
        ((_, values),) = activations_of(found, name).layers
        assert np.abs(values.array).max() > 0
        for index in range(20):
            one = found.results[f"{name} {index}"]
            assert isinstance(one, DerivedScalarsResult)
            np.testing.assert_allclose(values.array[:, index], one.activations, atol=1e-12)


FINAL_NORMS = {"gpt2": "transformer.ln_f", "llama": "model.norm", "gemma2": "model.norm"}


@pytest.mark.parametrize("name", FINAL_NORMS)
@pytest.mark.parametrize("place", [HookPoint.RESID_POST_MLP, HookPoint.RESID_POST_ATTN])
def test_a_lens_is_transformers_final_norm_and_unembedding(
    name: str, place: HookPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lens_module, "LENSES_TOGETHER", 2)
    model, tokens, chosen, n = small_model(name), (3, 1), (5, 59, 0), 4
    reference: Any = model.reference
    seen = model.plain.run(PROMPT)
    spots = [(HookPoint.RESID_POST_EMB, None), (place, 1), (place, 0)]
    streams = torch.stack([seen[spot][0][list(tokens)] for spot in spots])
    with torch.no_grad():
        logits = reference.lm_head(reference.get_submodule(FINAL_NORMS[name])(streams.float())).double()
    cap = model.plain.logit_cap
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    found = answer(
        model.engine(), InferenceSpec(PROMPT), lens=LensSpec(place, (1, 0), tokens, chosen, n)
    ).results["lens"]
    assert isinstance(found, LensResult)
    np.testing.assert_allclose(found.logits, logits[..., list(chosen)].numpy(), atol=1e-5)
    top = logits.flatten(end_dim=1).topk(n)
    np.testing.assert_allclose(found.top_logits, top.values.numpy(), atol=1e-5)
    assert np.array_equal(found.top_ids, top.indices.numpy())


def test_a_lens_behind_the_last_layer_gives_the_logits() -> None:
    model = small_model("gpt2")
    spec = LensSpec(HookPoint.RESID_POST_MLP, (1,), (3,), (1, 2, 3))
    found = answer(model.engine(), InferenceSpec(PROMPT, LOSS), lens=spec)
    lens = found.results["lens"]
    assert isinstance(lens, LensResult)
    assert lens.logits[1, 0] @ np.array([0.5, 0.5, -1]) == pytest.approx(found.loss)
    assert lens.top_ids.shape == (2, 0)
