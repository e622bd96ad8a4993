"""Interventions with values: to a baseline's, times a factor, plus a summand, against the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.axes import hook_point_axes, is_of_autoencoder
from tdb_server.domain.debug import node_ablation_spec
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    NodeAblation,
    ValueType,
)
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.config import DecoderConfig
from tdb_server.workers.engine_loading import model_info
from torch import Tensor

from tests.property.plain_dictionaries import dense_latents, read_by
from tests.property.plain_dictionaries import scalar as latent_scalar
from tests.property.plain_edits import PAIR_PLACES, deviation_of
from tests.property.plain_gradients import (
    Numbers,
    PlainRun,
    act_times_grad,
    direct_effects,
    effects_of_pairs,
    loss_objective,
    mean,
    run_with_gradients,
)
from tests.property.plain_model import PlainModel, Seen
from tests.property.plain_values import SeenLatents, value_edits
from tests.property.requests import (
    EVERY_NODE,
    answer,
    examples,
    inference,
    losses,
    numbers_of_layer,
)
from tests.property.small_models import (
    MAIN_MODELS,
    N_LATENTS,
    TOP_K,
    small_autoencoder,
    small_model,
)
from tests.property.test_baselines import Prompts, asked, beside, compared_prompts

ALL_LOGITS = MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), EVERY_NODE)
FAMILIES = (*MAIN_MODELS, "qwen3", "mistral-window", "olmo2")
HEAD, NEURON = NodeType.ATTENTION_HEAD, NodeType.MLP_NEURON
WHOLE_HEAD, WHOLE_MLP = NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP


@st.composite
def node_ablations(
    draw: st.DrawFn, config: DecoderConfig, n_tokens: int, latents: Sequence[NodeType] = ()
) -> list[NodeAblation]:
    """Some of any type, to any kind of value; some may contradict others."""
    kinds = (HEAD, HEAD, NEURON, WHOLE_HEAD, WHOLE_MLP, *latents, *latents)
    found = []
    for node_type in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=5)):
        layer, token = draw(st.integers(0, config.n_layers - 1)), draw(st.integers(0, n_tokens - 1))
        if draw(st.booleans()):
            token = n_tokens - 1
        n_components = {
            HEAD: config.n_heads,
            WHOLE_HEAD: config.n_heads,
            NEURON: config.n_neurons,
            WHOLE_MLP: 1,
        }
        component = draw(st.integers(0, n_components.get(node_type, N_LATENTS) - 1))
        indices: tuple[int, ...] = (token, component)
        if node_type is HEAD:
            window = config.window_of(layer) or config.context_length
            indices = (token, draw(st.integers(max(0, token - window + 1), token)), component)
        value_type = draw(st.sampled_from(ValueType))
        value = 0.0 if value_type is ValueType.BASELINE else draw(st.sampled_from([0.0, -0.7, 1.6]))
        is_pair = node_type is HEAD and draw(st.booleans())
        found.append(NodeAblation(NodeIndex(node_type, layer, indices), value, is_pair, value_type))
    return found


def without_conflicts(specs: Sequence[AblationSpec], info: ModelInfo) -> list[AblationSpec]:
    """Those that contradict none before them."""
    found: list[AblationSpec] = []
    for one in specs:
        if not list(conflict_violations([("", spec) for spec in (*found, one)], info)):
            found.append(one)
    return found


def assert_as_in_the_plain_model(
    name: str,
    prompts: Prompts,
    loss: LossConfig,
    specs: Sequence[AblationSpec],
    dictionaries: Sequence[Autoencoder] = (),
) -> None:
    """Objective, logits, and what flows back to the nodes before."""
    model, (prompt, *baselines) = small_model(name), prompts
    engine = model.engine(*dictionaries)
    others: list[Seen] = [model.plain.run(one) for one in baselines]
    seen_latents: SeenLatents = {}
    edits = value_edits(model.plain, specs, others, dictionaries, seen_latents=seen_latents)
    run = run_with_gradients(model.plain, prompt, loss_objective(model.plain, loss), edits)
    # What is told of a place is what is there before its latents are set.
    expected: Numbers = {
        scalar: numbers
        for scalar, numbers in act_times_grad(model.plain, run, others).items()
        if scalar.declared.hook_point not in {one.site.hook_point for one in dictionaries}
    }
    if all(one.site is not Site.RESID_POST_MLP for one in dictionaries):
        of_effects = effects(model.plain, run, others, specs)
        sites = {one.site.hook_point for one in dictionaries}
        expected |= {one: x for one, x in of_effects.items() if one.declared.hook_point not in sites}
    for dictionary in dictionaries:
        if sum(one.site.node_type is dictionary.site.node_type for one in dictionaries) == 1:
            expected[latent_scalar(dictionary.site, "ACT_TIMES_GRAD")] = {
                layer: latent_products(model.plain, dictionary, layer, run, others, seen_latents)
                for layer in dictionary.layers
            }
    found = answer(
        engine,
        beside(inference(prompt, loss, ablations=specs), tuple(baselines)),
        logits=ALL_LOGITS,
        **asked(expected),
    )
    logits = run.seen[HookPoint.LOGITS, None][0]
    of_engine = numbers_of_layer(found.top_k("logits"), None, logits.shape, GroupId.LOGITS)
    torch.testing.assert_close(of_engine, logits, atol=2e-5 * float(logits.abs().max()), rtol=0)
    assert found.loss == pytest.approx(
        loss_objective(model.plain, loss)(run.seen).item(), abs=2e-5 * float(logits.abs().max())
    )
    for scalar, by_layer in expected.items():
        largest = max(1e-3, *(float(one.abs().max()) for one in by_layer.values()))
        for layer, numbers in by_layer.items():
            computed = numbers_of_layer(found.top_k(scalar.value), layer, numbers.shape)
            assert float((computed - numbers).abs().max()) < 2e-5 * largest, (scalar, layer)


def effects(
    model: PlainModel, run: PlainRun, baselines: Sequence[Seen], specs: Sequence[AblationSpec]
) -> Numbers:
    """Direct effects; what heads read is what they are set to, where that is what baselines read."""
    direction = run.gradients[HookPoint.RESID_POST_MLP, model.n_layers - 1][0]
    found = direct_effects(model, run.seen, baselines, direction)
    of_pairs = found[DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD]
    for one in specs:
        layer, place = one.index.layer_index, one.index.hook_point
        if place is not HookPoint.ATTN_V_OUT or one.value_type is not ValueType.BASELINE or layer is None:
            continue
        if one.index.tensor_indices[2] is not None:
            continue
        read = [(HookPoint.ATTN_QK_PROBS, layer), (HookPoint.ATTN_V, layer)]
        as_read = [{**run.seen, **{spot: other[spot] for spot in read}} for other in baselines]
        set_to = mean([effects_of_pairs(model, layer, direction, seen) for seen in as_read])
        set_to = set_to - mean([effects_of_pairs(model, layer, direction, seen) for seen in baselines])
        query, head, key = (
            slice(None) if index is None else index
            for index in (*one.index.tensor_indices[:2], one.attended_to_token)
        )
        of_pairs[layer][query, key, head] = set_to[query, key, head]
    of_heads = {layer: x.sum(dim=1) for layer, x in of_pairs.items()}
    return found | {DerivedScalar.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: of_heads}


def latent_products(
    model: PlainModel,
    dictionary: Autoencoder,
    layer: int,
    run: PlainRun,
    baselines: Sequence[Seen],
    seen_latents: SeenLatents,
) -> Tensor:
    """Latents as they are set, less the baselines', times the gradients behind them [T, n]."""
    site, weights = dictionary.site, dictionary.layers[layer]

    def latents(seen: Seen) -> Tensor:
        return dense_latents(weights, read_by(model, site, seen, layer)[0])

    inputs, own = seen_latents.get(
        (site, layer), (read_by(model, site, run.seen, layer), latents(run.seen)[None])
    )
    gradient = run.gradients[site.hook_point, layer][0].flatten(1)
    if weights.norms_inputs:
        gradient = gradient * deviation_of(inputs[0])
    return (own[0] - mean([latents(one) for one in baselines])) * (gradient @ weights.directions.T)


@pytest.mark.parametrize("name", FAMILIES)
@examples(3)
@given(data=st.data(), prompts=compared_prompts(), loss=losses())
def test_nodes(name: str, data: st.DataObject, prompts: Prompts, loss: LossConfig) -> None:
    model = small_model(name)
    ablations = data.draw(node_ablations(model.config, len(prompts[0])))
    specs = [node_ablation_spec(one) for one in ablations]
    info = model_info("small", "d", "float64", model.engine())
    assert_as_in_the_plain_model(name, prompts, loss, without_conflicts(specs, info))


DICTIONARIES = [
    ("gpt2", (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN), {"norms_inputs": True}),
    ("gemma2", (Site.RESID_DELTA_MLP, Site.ATTN_V_OUT, Site.RESID_POST_MLP), {"top_k": TOP_K}),
    ("olmo2", (Site.MLP_POST_ACT, Site.RESID_POST_ATTN, Site.ATTN_V_OUT), {}),
    ("gpt_neox", (Site.MLP_TRANSCODER, Site.RESID_DELTA_ATTN), {"jumps": True}),
    ("qwen3", (Site.MLP_TRANSCODER, Site.RESID_POST_ATTN, Site.RESID_POST_MLP), {}),
]


@pytest.mark.parametrize(("name", "sites", "kind"), DICTIONARIES, ids=str)
@examples(5)
@given(data=st.data(), prompts=compared_prompts(), loss=losses())
def test_latents_among_nodes(
    name: str,
    sites: Sequence[Site],
    kind: dict[str, int],
    data: st.DataObject,
    prompts: Prompts,
    loss: LossConfig,
) -> None:
    model, dictionaries = small_model(name), [small_autoencoder(name, site, **kind) for site in sites]
    latents = [site.node_type for site in sites]
    ablations = data.draw(node_ablations(model.config, len(prompts[0]), latents))
    specs = [node_ablation_spec(one) for one in ablations]
    info = model_info("small", "d", "float64", model.engine(*dictionaries))
    assert_as_in_the_plain_model(name, prompts, loss, without_conflicts(specs, info), dictionaries)


PLACES = [
    (name, place)
    for name in ("gemma2", "gpt_neox")
    for place in HookPoint
    if not is_of_autoencoder(place) and place is not HookPoint.LOGITS
    if place not in small_model(name).decoder.absent_hook_points
]


@pytest.mark.parametrize(("name", "place"), PLACES)
@examples(2)
@given(data=st.data(), prompts=compared_prompts(), loss=losses())
def test_places(name: str, place: HookPoint, data: st.DataObject, prompts: Prompts, loss: LossConfig) -> None:
    """Any place, some cells or a whole axis, by any kind of value."""
    model = small_model(name)
    info = model_info("small", "d", "float64", model.engine())
    layer = data.draw(st.integers(0, model.config.n_layers - 1)) if place.is_per_layer else None
    sizes = hook_point_axes(place, info, len(prompts[0]))
    indices = [data.draw(st.none() | st.integers(0, size - 1)) for size in sizes]
    if place in PAIR_PLACES and None not in indices[:2]:
        indices[0] = max(indices[0] or 0, indices[1] or 0)
    value_type = data.draw(st.sampled_from([ValueType.BASELINE, ValueType.SCALE, ValueType.ADD]))
    is_scale = place.value.endswith("scale")  # must not be 0
    value = {ValueType.BASELINE: 0.0, ValueType.SCALE: 1.6, ValueType.ADD: 0.4}[value_type]
    value = data.draw(st.sampled_from([value, value if is_scale else -value]))
    direction = None
    if value_type is ValueType.ADD and indices[-1] is None and place not in PAIR_PLACES:
        direction = data.draw(st.none() | st.just(tuple(0.1 * i % 0.7 for i in range(sizes[-1]))))
    spec = AblationSpec(ActivationIndex(place, layer, tuple(indices)), value, value_type, direction)
    assert_as_in_the_plain_model(name, prompts, loss, [spec])


def test_the_same_pair_twice_is_set_once() -> None:
    prompts, loss = ((3, 4, 5), (6, 4, 7)), LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    pair = NodeAblation(NodeIndex(HEAD, 0, (2, 1, 3)), 0.0, True, ValueType.BASELINE)
    other = replace(pair, node=NodeIndex(HEAD, 0, (2, 0, 3)))
    specs = [node_ablation_spec(one) for one in (pair, other, pair)]
    assert_as_in_the_plain_model("llama", prompts, loss, specs)
