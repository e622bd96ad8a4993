"""What embeddings give neurons and MLP latents that backward ablations name, against the plain model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DerivedScalarsSpec,
    InferenceSpec,
    LossConfig,
    LossName,
    MultipleTopKSpec,
)
from tdb_server.domain.results import DerivedScalarsResult
from tdb_server.engine import logit_scalars
from torch import Tensor

from tests.property.requests import EVERY_NODE, answer, examples, numbers_of_layer
from tests.property.small_models import (
    MAIN_MODELS,
    N_LATENTS,
    TOP_K,
    VOCABULARY_SIZE,
    SmallModel,
    small_autoencoder,
    small_model,
)

READS = DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION
NEURON, LATENT = HookPoint.MLP_POST_ACT, HookPoint.ONLINE_MLP_AUTOENCODER_LATENT
PROMPT = (3, 9, 27)


def expected(model: SmallModel, site: Site, index: ActivationIndex) -> Tensor:
    """Each embedding as the stream before the MLP: what comes before the component's nonlinearity [V]."""
    plain, layer = model.plain, index.layer_index
    assert layer is not None
    seen: dict[HookPoint, Tensor] = {}

    def look(place: HookPoint, _: int, x: Tensor) -> Tensor:
        seen[place] = x[0]
        return x

    plain.mlp(layer, plain.token_embedding[None], look)
    component = index.tensor_indices[1]
    if index.hook_point is NEURON:
        return seen[HookPoint.MLP_PRE_ACT if not plain.is_gated else HookPoint.MLP_POST_ACT][:, component]
    weights = small_autoencoder(NAMES[id(model)], site).layers[layer]
    centred = seen[site.hook_point] - weights.pre_bias
    return centred @ weights.encoder_weight[component] + weights.latent_bias[component]


NAMES = {id(small_model(name)): name for name in MAIN_MODELS}


@pytest.mark.parametrize("site", [Site.MLP_POST_ACT, Site.RESID_DELTA_MLP])
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(4)
@given(
    places=st.lists(st.sampled_from([NEURON, LATENT]), min_size=1, max_size=2, unique=True),
    layer=st.integers(0, 1),
    component=st.integers(0, 19),
    token=st.none() | st.integers(0, 2),
    value=st.floats(-2, 2),
    top_k=st.sampled_from([None, TOP_K]),
)
def test_reads_of_neurons_and_latents(
    name: str,
    site: Site,
    places: list[HookPoint],
    layer: int,
    component: int,
    token: int | None,
    value: float,
    top_k: int | None,
) -> None:
    """Several are added up; TopK does not come before a pre-activation."""
    model = small_model(name)
    indices = [ActivationIndex(one, layer, (token, component), PassType.BACKWARD) for one in places]
    run = InferenceSpec(
        PROMPT, LossConfig(LossName.ZERO), ablations=tuple(AblationSpec(one, value) for one in indices)
    )
    found = answer(
        model.engine(small_autoencoder(name, site, top_k), small_autoencoder(name, Site.RESID_DELTA_ATTN)),
        run,
        reads=MultipleTopKSpec(((GroupId.SINGLETON, (READS,)),), EVERY_NODE),
    )
    scores = numbers_of_layer(found.top_k("reads"), None, (len(PROMPT), VOCABULARY_SIZE))
    reads = value * sum(expected(model, site, one) for one in indices)
    for row in range(len(PROMPT)):
        at_row = reads if token in (None, row) else reads * 0
        np.testing.assert_allclose(scores[row], at_row, atol=1e-9)


def test_top_tokens_of_a_latent_are_those_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a viewer asks: one token as prompt, no loss to speak of. The vocabulary goes through in parts."""
    model = small_model("gpt2")
    index = ActivationIndex(HookPoint.ONLINE_AUTOENCODER_LATENT, 1, (0, N_LATENTS - 1), PassType.BACKWARD)
    run = InferenceSpec((3,), LossConfig(LossName.ZERO), ablations=(AblationSpec(index, 1.0),))
    engine = model.engine(small_autoencoder("gpt2", Site.MLP_POST_ACT))
    monkeypatch.setattr(logit_scalars, "_N_EMBEDDINGS", 7)
    result = answer(engine, run, one=DerivedScalarsSpec(READS, None, 0, n_top_tokens=5)).results["one"]
    assert isinstance(result, DerivedScalarsResult)
    assert result.top_tokens is not None
    reads = expected(model, Site.MLP_POST_ACT, index).numpy()
    assert result.top_tokens.top_ids[0].tolist() == np.argsort(-reads)[:5].tolist()
    np.testing.assert_allclose(result.top_tokens.top_scalars[0], np.sort(reads)[::-1][:5], rtol=1e-5)
