"""Raw ablations: any place can be set, in the forward pass or in the gradient, one cell or a whole axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.axes import is_of_autoencoder
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
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from torch import Tensor

from tests.property.finite_differences import STEP, assert_same
from tests.property.plain_edits import PAIR_PLACES, deviation_of, latents_of, loss_value, written_by
from tests.property.plain_model import Edit, PlainModel, Spot
from tests.property.requests import answer, every_node, examples, numbers_of_layer
from tests.property.small_models import MAIN_MODELS, SmallModel, small_autoencoder, small_model

PROMPT = (8, 30, 30, 55)
LOSS = LossConfig(LossName.LOGIT_DIFF, (1, 2), (3,))
EMBEDDING = (HookPoint.RESID_POST_EMB, None)
LATENTS = {
    HookPoint.ONLINE_MLP_AUTOENCODER_LATENT: Site.MLP_POST_ACT,
    HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT: Site.RESID_DELTA_ATTN,
}
ERRORS = {
    HookPoint.ONLINE_MLP_AUTOENCODER_ERROR: Site.MLP_POST_ACT,
    HookPoint.ONLINE_ATTENTION_AUTOENCODER_ERROR: Site.RESID_DELTA_ATTN,
}
PLAIN_PLACES = [place for place in HookPoint if not is_of_autoencoder(place)]
WITHOUT_LAYERS = (HookPoint.RESID_POST_EMB, HookPoint.RESID_LN_F_SCALE, HookPoint.LOGITS)
CASES = [
    (name, place)
    for name in MAIN_MODELS
    for place in [*PLAIN_PLACES, *LATENTS, *ERRORS]
    if place not in small_model(name).decoder.absent_hook_points
    if place is not HookPoint.LOGITS or small_model(name).plain.logit_cap is None
]
"""Logits that are set behind a cap have a test of their own."""


class Target:
    """A place as something that can be read from, and put back into, a tensor of the plain model."""

    def __init__(self, model: SmallModel, place: HookPoint, layer_index: int | None) -> None:
        self.model, self.place, self.layer_index = model.plain, place, layer_index
        self.site = (LATENTS | ERRORS).get(place)
        self.spot: Spot = (self.site.hook_point if self.site else place, layer_index)

    def read(self, x: Tensor, autoencoders: list[Autoencoder]) -> Tensor:
        if self.site is None:
            return x
        layer = self._layer(autoencoders)
        latents = latents_of(layer, x)
        return latents if self.place in LATENTS else x - self._reconstruct(latents, x, layer)

    def put(self, x: Tensor, altered: Tensor, autoencoders: list[Autoencoder]) -> Tensor:
        if self.site is None:
            return altered
        change = altered - self.read(x, autoencoders)
        return x + (written_by(self._layer(autoencoders), change, x) if self.place in LATENTS else change)

    def _reconstruct(self, latents: Tensor, x: Tensor, layer: AutoencoderLayer) -> Tensor:
        found = written_by(layer, latents, x)
        if not layer.norms_inputs:
            return found + layer.pre_bias
        return found + layer.pre_bias * deviation_of(x) + x.mean(dim=-1, keepdim=True)

    def _layer(self, autoencoders: list[Autoencoder]) -> AutoencoderLayer:
        return next(one for one in autoencoders if one.site is self.site).layers[self.layer_index or 0]


def cells_of(model: PlainModel, index: ActivationIndex, shape: torch.Size) -> Tensor:
    """True where an ablation of these indices sets something: never at masked attention cells."""
    cells = torch.zeros(shape, dtype=torch.bool)
    cells[tuple(slice(None) if one is None else one for one in index.tensor_indices)] = True
    if index.hook_point in PAIR_PLACES:
        assert index.layer_index is not None
        cells &= ~model.masked(shape[0], index.layer_index)[:, :, None]
    return cells


def draw_index(data: st.DataObject, target: Target, x: Tensor, pass_type: PassType) -> ActivationIndex:
    """Each axis is all of it or one entry, of tokens often the last, which the objective sees most of."""
    indices = [data.draw(st.none() | st.integers(0, size - 1)) for size in x.shape]
    if indices[0] is not None and data.draw(st.booleans()):
        indices[0] = x.shape[0] - 1
    return ActivationIndex(target.place, target.layer_index, tuple(indices), pass_type)


def layers_of(place: HookPoint, model: SmallModel) -> st.SearchStrategy[int | None]:
    return st.none() if place in WITHOUT_LAYERS else st.integers(0, model.config.n_layers - 1)


@pytest.mark.parametrize(("name", "place"), CASES)
@examples(4)
@given(data=st.data())
def test_values(name: str, place: HookPoint, data: st.DataObject) -> None:
    model = small_model(name)
    is_normed = data.draw(st.booleans())
    autoencoders = [small_autoencoder(name, site, norms_inputs=is_normed) for site in LATENTS.values()]
    target = Target(model, place, data.draw(layers_of(place, model)))
    site = model.plain.run(PROMPT)[target.spot]
    index = draw_index(data, target, target.read(site, autoencoders)[0], PassType.FORWARD)
    value = data.draw(st.floats(0.5, 2, width=32))  # scales must not be zero

    def edit(x: Tensor) -> Tensor:
        old = target.read(x, autoencoders)
        cells = cells_of(model.plain, index, old.shape[1:])
        return target.put(x, torch.where(cells, value, old), autoencoders)

    logits = model.plain.run(PROMPT, {target.spot: edit})[HookPoint.LOGITS, None]
    expected = loss_value(LOSS, logits, model.plain.logit_cap)
    found = answer(
        model.engine(*autoencoders), InferenceSpec(PROMPT, LOSS, None, (AblationSpec(index, value),))
    )
    assert found.loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("name", "place"), CASES)
@examples(4)
@given(data=st.data())
def test_gradients(name: str, place: HookPoint, data: st.DataObject) -> None:
    """With its gradient set to g, a cell is a constant to the objective, which has g times the cell added."""
    model = small_model(name)
    is_normed = data.draw(st.booleans())
    autoencoders = [small_autoencoder(name, site, norms_inputs=is_normed) for site in LATENTS.values()]
    target = Target(model, place, data.draw(layers_of(place, model)))
    before = target.read(model.plain.run(PROMPT)[target.spot], autoencoders)
    index = draw_index(data, target, before[0], PassType.BACKWARD)
    value = data.draw(st.sampled_from([0.0, -0.7]))
    cells = cells_of(model.plain, index, before.shape[1:])

    def objective(token: int, step: float) -> Tensor:
        read: list[Tensor] = []

        def scaled(x: Tensor) -> Tensor:
            factors = torch.ones(x.shape[1], 1, dtype=x.dtype)
            factors[token] += step
            return x * factors

        def held(x: Tensor) -> Tensor:
            x = scaled(x) if target.spot == EMBEDDING else x
            read.append(target.read(x, autoencoders))
            return target.put(x, torch.where(cells, before, read[0]), autoencoders)

        edits: dict[Spot, Edit] = {EMBEDDING: scaled, target.spot: held}
        loss = loss_value(LOSS, model.plain.run(PROMPT, edits)[HookPoint.LOGITS, None], model.plain.logit_cap)
        return loss + value * read[0][0][cells].sum()

    slopes = torch.cat([objective(t, STEP) - objective(t, -STEP) for t in range(len(PROMPT))]) / (2 * STEP)
    found = answer(
        model.engine(*autoencoders),
        InferenceSpec(PROMPT, LOSS, None, (AblationSpec(index, value),)),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    )
    computed = numbers_of_layer(found.top_k("embeddings"), None, (len(PROMPT), 1))
    assert_same(slopes[:, None], computed)


@pytest.mark.parametrize("token", [None, 0, len(PROMPT) - 1])
def test_a_gradient_set_at_a_logit_that_is_set_too_goes_no_further(token: int | None) -> None:
    """A cell with a value of its own is nobody's function; its gradient is still reported."""
    model, logit = small_model("gpt2"), 5
    value, gradient = (
        AblationSpec(ActivationIndex(HookPoint.LOGITS, None, (token, logit), one), -0.7) for one in PassType
    )
    both, value_alone = (
        answer(
            model.engine(),
            InferenceSpec(PROMPT, LOSS, None, ablations),
            embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
            logits=DerivedScalarsSpec(DerivedScalar.LOGITS, None, logit, PassType.BACKWARD),
        )
        for ablations in ((value, gradient), (value,))
    )
    shape = (len(PROMPT), 1)
    assert_same(*(numbers_of_layer(one.top_k("embeddings"), None, shape) for one in (both, value_alone)))
    gradients = both.results["logits"]
    assert isinstance(gradients, DerivedScalarsResult)
    assert gradients.activations.tolist() == [-0.7 * (token in (None, t)) for t in range(len(PROMPT))]


def test_a_logit_that_is_set_is_that_before_its_cap_and_behind_it() -> None:
    model, value, last = small_model("gemma2"), 1.5, len(PROMPT) - 1
    set_one = AblationSpec(ActivationIndex(HookPoint.LOGITS, None, (last, 1)), value)
    capped = model.plain.run(PROMPT)[HookPoint.LOGITS, None][0, -1].clone()
    cap, largest = model.plain.logit_cap, int(capped.abs().argmax())
    assert largest != 1
    capped[1] = value
    found, likely = (
        answer(
            model.engine(),
            InferenceSpec(PROMPT, LossConfig(loss, (1,), distractors), None, (set_one,)),
            logits=DerivedScalarsSpec(DerivedScalar.LOGITS, None, 1),
        )
        for loss, distractors in ((LossName.LOGIT_DIFF, (largest,)), (LossName.PROBS, ()))
    )
    other = cap * (capped[largest] / cap).atanh()
    assert abs(other - capped[largest]) > 1e-3, "the cap would not show"
    assert found.loss == pytest.approx(value - other.item(), abs=1e-6)
    assert likely.loss == pytest.approx(capped.softmax(dim=0)[1].item(), abs=1e-6)
    logits = found.results["logits"]
    assert isinstance(logits, DerivedScalarsResult)
    assert logits.activations[last] == pytest.approx(value)


@pytest.mark.parametrize("n_at_once", [64, 3])
def test_sums_of_capped_logits(n_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("gemma2")
    monkeypatch.setattr(logit_scalars, "_N_CAPPED", n_at_once)
    everywhere = MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), 2)
    found = answer(model.engine(), InferenceSpec(PROMPT, LOSS), logits=everywhere)
    (group,) = found.top_k("logits").groups.values()
    expected = model.plain.run(PROMPT)[HookPoint.LOGITS, None][0].sum(dim=-1)
    assert_same(expected, torch.from_numpy(group.sums[DerivedScalar.LOGITS].array))
