"""A gradient that is set where an objective starts is what is before it has, as anywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    AttentionTraceType,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ResidualDirection,
    Trace,
)
from tdb_server.domain.results import ActivationsResult

from tests.property.plain_dictionaries import EMBEDDING, scalar
from tests.property.requests import answers_of_calls, every_node, numbers_of_layer
from tests.property.small_models import small_autoencoder, small_model

PROMPT = (8, 30, 21, 55)
AT_ALL = tuple(range(len(PROMPT)))
OF_HEAD = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 0, (3, 1, 2)), AttentionTraceType.QK)
OF_NEURON = Trace(NodeIndex(NodeType.MLP_NEURON, 1, (2, 7)))
OF_LATENT = Trace(NodeIndex(NodeType.RESID_POST_MLP_AUTOENCODER_LATENT, 1, (2, 7)))
ALONG = ResidualDirection(HookPoint.RESID_POST_MLP, 1, tuple(0.1 * one for one in range(16)))
STARTS = {
    "head": (HookPoint.RESID_POST_EMB, None, OF_HEAD),
    "neuron": (HookPoint.RESID_POST_ATTN, 1, OF_NEURON),
    "latent of the stream": (HookPoint.RESID_POST_MLP, 1, OF_LATENT),
    "direction": (HookPoint.RESID_POST_MLP, 1, None),
}


@pytest.mark.parametrize("value", [0.0, -0.75])
@pytest.mark.parametrize("start", STARTS)
def test_where_the_objective_starts(start: str, value: float) -> None:
    """Beside a row whose objective is of an earlier layer: there nothing flows back from here."""
    place, layer, trace = STARTS[start]
    loss = LossConfig(LossName.DIRECTION, direction=ALONG) if trace is None else None
    index = ActivationIndex(place, layer, (None, None), PassType.BACKWARD)
    wanted = {
        "there": ActivationsSpec(place, (layer,), AT_ALL, PassType.BACKWARD),
        "embeddings": every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    }
    model = small_model("gpt2")
    run = InferenceSpec(PROMPT, loss, trace, (AblationSpec(index, value),))
    earlier = InferenceSpec(PROMPT, None, OF_HEAD, run.ablations if layer else ())
    engine = model.engine(small_autoencoder("gpt2", Site.RESID_POST_MLP))
    calls = [[InferenceSubRequest(one, wanted)] for one in (run, earlier)]
    (found,), (beside_it,) = answers_of_calls(engine, calls)

    gradients = found.results["there"]
    assert isinstance(gradients, ActivationsResult)
    assert (gradients.layers[0][1].array == value).all()
    embeddings = model.plain.run(PROMPT)[EMBEDDING].requires_grad_()
    seen = model.plain.run(PROMPT, {EMBEDDING: lambda _: embeddings})
    (gradient,) = torch.autograd.grad(value * seen[place, layer].sum(), embeddings)
    attributions = numbers_of_layer(found.top_k("embeddings"), None, (len(PROMPT), 1))
    expected = (embeddings * gradient).detach()[0].sum(dim=-1, keepdim=True)
    torch.testing.assert_close(attributions, expected, atol=1e-6, rtol=1e-6)

    ((alone,),) = answers_of_calls(
        engine, [[InferenceSubRequest(InferenceSpec(PROMPT, None, OF_HEAD), wanted)]]
    )
    values = [next(iter(one.top_k("embeddings").groups.values())).activations for one in (beside_it, alone)]
    np.testing.assert_allclose(*values, atol=1e-12)


@pytest.mark.parametrize("is_of_latents", [True, False])
def test_behind_the_objective_no_gradient_is_set_in_dictionaries(is_of_latents: bool) -> None:
    """It has none there, as at any other place; in the layer before it is what was set."""
    site, model = Site.RESID_DELTA_MLP, small_model("gpt2")
    place = site.latent_hook_point if is_of_latents else site.error_hook_point
    specs = [
        AblationSpec(ActivationIndex(place, layer, (None, None), PassType.BACKWARD), -0.75)
        for layer in (0, 1)
    ]
    run = InferenceSpec(PROMPT, None, OF_NEURON, tuple(specs))
    wanted = {
        "gradients": ActivationsSpec(place, (0, 1), AT_ALL, PassType.BACKWARD),
        "latents": ActivationsSpec(site.latent_hook_point, (0,), AT_ALL),
        "effects": every_node(scalar(site, "ACT_TIMES_GRAD")),
    }
    engine = model.engine(small_autoencoder("gpt2", site))
    ((found,),) = answers_of_calls(engine, [[InferenceSubRequest(run, wanted)]])
    gradients, latents = found.results["gradients"], found.results["latents"]
    assert isinstance(gradients, ActivationsResult)
    assert isinstance(latents, ActivationsResult)
    (_, before), (_, behind) = gradients.layers
    is_active = latents.layers[0][1].array != 0
    assert (before.array == (-0.75 * is_active if is_of_latents else -0.75)).all()
    assert not behind.array.any()
    assert {node.layer_index for node in found.top_k("effects").nodes} == {0}
