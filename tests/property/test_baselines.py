"""What nodes contribute beside baseline prompts, against the plain model run on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeType, PassType
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

from tests.property.finite_differences import assert_same
from tests.property.plain_dictionaries import dense_latents, scalar
from tests.property.plain_gradients import (
    Numbers,
    act_times_grad,
    direct_effects,
    latent_numbers,
    loss_objective,
    mean,
    of_the_prompt,
    run_with_gradients,
)
from tests.property.requests import (
    Answer,
    answer,
    every_node,
    examples,
    inference,
    losses,
    numbers_of_layer,
)
from tests.property.small_models import (
    MODELS,
    TOP_K,
    VOCABULARY_SIZE,
    small_autoencoder,
    small_model,
)
from tests.property.trace_definitions import definition, direction_of_loss, residual_before
from tests.property.traces import traces_of, value_traces

Prompts = tuple[tuple[int, ...], ...]
"""A prompt, and the baselines."""
LAST_RESIDUAL = HookPoint.RESID_POST_MLP


@st.composite
def compared_prompts(draw: st.DrawFn, max_baselines: int = 2) -> Prompts:
    """A prompt and one or more others of its length, which share tokens with it."""
    n_tokens, token = draw(st.integers(1, 5)), st.integers(0, VOCABULARY_SIZE - 1)
    prompt = tuple(draw(st.lists(token, min_size=n_tokens, max_size=n_tokens)))
    changed = st.lists(st.none() | token, min_size=n_tokens, max_size=n_tokens)
    others = draw(st.lists(changed, min_size=1, max_size=max_baselines))
    baselines = [tuple(new or old for new, old in zip(one, prompt, strict=True)) for one in others]
    return prompt, *baselines


def beside(run: InferenceSpec, baselines: Prompts) -> InferenceSpec:
    return replace(run, baselines=baselines)


def assert_numbers(found: Answer, expected: Numbers) -> None:
    """Every node's number, and what is summed of them."""
    for one, by_layer in expected.items():
        result = found.top_k(one.value)
        for layer, numbers in by_layer.items():
            computed = numbers_of_layer(result, layer, numbers.shape)
            largest = max(float(x.abs().max()) for x in by_layer.values())
            if float(numbers.abs().max()) < 1e-9 * max(largest, 1):
                assert float((computed - numbers).abs().max()) < 1e-9, one
            else:
                assert_same(numbers, computed)
        (group,) = result.groups.values()
        keep = [
            axis
            for axis, dimension in enumerate(one.declared.dimensions)
            if dimension in (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
        ]
        total = torch.stack(list(by_layer.values())).sum(dim=0)
        others = [axis for axis in range(total.dim()) if axis not in keep]
        total = total.sum(dim=others) if others else total
        torch.testing.assert_close(
            torch.from_numpy(group.sums[one].array).double(), total, atol=1e-5, rtol=1e-5
        )


def asked(*of: Mapping[DerivedScalar, object]) -> dict[str, MultipleTopKSpec]:
    return {one.value: every_node(one) for numbers in of for one in numbers}


@pytest.mark.parametrize("name", MODELS)
@examples(2)
@given(prompts=compared_prompts(), loss=losses())
def test_neurons_heads_mlps_and_embeddings(name: str, prompts: Prompts, loss: LossConfig) -> None:
    model, (prompt, *baselines) = small_model(name), prompts
    run = run_with_gradients(model.plain, prompt, loss_objective(model.plain, loss))
    others = [model.plain.run(one) for one in baselines]
    direction = run.gradients[LAST_RESIDUAL, model.plain.n_layers - 1][0]
    expected = (
        act_times_grad(model.plain, run, others)
        | direct_effects(model.plain, run.seen, others, direction)
        | of_the_prompt(model.plain, run.seen)
    )
    found = answer(model.engine(), beside(inference(prompt, loss), tuple(baselines)), **asked(expected))
    assert_numbers(found, expected)


@pytest.mark.parametrize("name", MODELS)
@examples(1)
@given(prompts=compared_prompts(), loss=losses().filter(lambda one: one.name is not LossName.PROBS))
def test_direct_effects_add_up_to_the_difference_of_objectives(
    name: str, prompts: Prompts, loss: LossConfig
) -> None:
    """With the final norm's scale that of the prompt."""
    model, (prompt, *baselines) = small_model(name), prompts
    plain = model.plain
    scalars = (
        DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.WHOLE_MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    )
    found = answer(
        model.engine(),
        beside(inference(prompt, loss), tuple(baselines)),
        **{one.value: every_node(one) for one in scalars},
    )
    seen = plain.run(prompt)
    direction = direction_of_loss(plain, seen, loss)
    residuals = [plain.run(one)[LAST_RESIDUAL, plain.n_layers - 1][0] for one in baselines]
    difference = seen[LAST_RESIDUAL, plain.n_layers - 1][0] - mean(residuals)
    total = sum(
        float(next(iter(found.top_k(one.value).groups.values())).activations.sum()) for one in scalars
    )
    assert total == pytest.approx(float((difference * direction).sum()), abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
@examples(2)
@given(data=st.data(), prompts=compared_prompts())
def test_of_a_trace(name: str, data: st.DataObject, prompts: Prompts) -> None:
    """The direction is the gradient before the traced node; what is written behind it has no effect."""
    model, (prompt, *baselines) = small_model(name), prompts
    kind = data.draw(st.sampled_from(["Q", "K", "QK", "V", "neuron"]))
    loss = data.draw(losses()) if kind == "V" else None
    if kind == "V":
        trace = data.draw(value_traces(None, model.config, len(prompt)))
    else:
        trace = data.draw(traces_of(kind, model.config, len(prompt)))
    base = model.plain.run(prompt)
    of_residual, before = definition(model.plain, trace, base, loss=loss), residual_before(model.plain, trace)
    run = run_with_gradients(model.plain, prompt, lambda seen: of_residual(seen[before]))
    others = [model.plain.run(one) for one in baselines]
    layer = trace.node.layer_index
    assert layer is not None
    n_attentions = layer + (trace.node.node_type is NodeType.MLP_NEURON and not model.plain.is_parallel)
    direction = run.gradients[before][0]
    effects = direct_effects(model.plain, run.seen, others, direction, n_attentions, layer)
    expected = act_times_grad(model.plain, run, others) | effects
    found = answer(
        model.engine(), beside(inference(prompt, loss, trace), tuple(baselines)), **asked(expected)
    )
    assert_numbers(found, expected)


LATENTS = [
    (name, site, {})
    for name in ("gpt2", "gemma2", "gpt_neox", "olmo2")
    for site in Site
    if (name, site) != ("gpt_neox", Site.RESID_POST_ATTN)
] + [
    ("qwen2", Site.MLP_POST_ACT, {"top_k": TOP_K, "norms_inputs": True}),
    ("gemma2", Site.MLP_POST_ACT, {"norms_inputs": True}),
    ("gemma2", Site.RESID_DELTA_MLP, {"top_k": TOP_K}),
    ("gpt2", Site.RESID_DELTA_ATTN, {"norms_inputs": True}),
    ("qwen3", Site.MLP_TRANSCODER, {"jumps": True}),
    ("olmo2", Site.ATTN_V_OUT, {"jumps": True}),
]


@pytest.mark.parametrize(("name", "site", "kind"), LATENTS, ids=str)
@examples(2)
@given(prompts=compared_prompts(), loss=losses())
def test_latents(name: str, site: Site, kind: dict[str, int], prompts: Prompts, loss: LossConfig) -> None:
    """A latent is a node where it is active in either run."""
    model, (prompt, *baselines) = small_model(name), prompts
    dictionary = small_autoencoder(name, site, **kind)
    scalars = {
        suffix: scalar(site, suffix)
        for suffix in ("LATENT", "ACT_TIMES_GRAD", "WRITE_NORM", "WRITE_TO_FINAL_RESIDUAL_GRAD")
    }
    run = beside(inference(prompt, loss), tuple(baselines))
    found = answer(model.engine(dictionary), run, **asked(dict.fromkeys(scalars.values())))
    plain_run = run_with_gradients(model.plain, prompt, loss_objective(model.plain, loss))
    others = [model.plain.run(one) for one in baselines]
    direction = plain_run.gradients[LAST_RESIDUAL, model.plain.n_layers - 1][0]
    expected: Numbers = {}
    for layer in dictionary.layers:
        numbers = latent_numbers(model.plain, dictionary, layer, plain_run, others, direction)
        of_layer = (numbers.activations, numbers.act_times_grad, numbers.write_norms, numbers.direct_effects)
        for one, x in zip(scalars.values(), of_layer, strict=True):
            expected.setdefault(one, {})[layer] = x
    assert_numbers(found, expected)


def test_what_latents_write_in_a_baseline_counts_where_the_prompt_has_nothing_to_norm() -> None:
    """An MLP that is ablated has no deviation, which layer normed latents' writes are multiplied with."""
    model, site = small_model("gpt2"), Site.RESID_DELTA_MLP
    dictionary = small_autoencoder("gpt2", site, norms_inputs=True)
    prompt, baseline, loss = (3, 41, 7), (3, 9, 22), LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    effect = scalar(site, "WRITE_TO_FINAL_RESIDUAL_GRAD")
    without_mlp = AblationSpec(ActivationIndex(site.hook_point, 0, (2, None)), 0.0)
    run = beside(inference(prompt, loss, ablations=[without_mlp]), (baseline,))
    found = answer(model.engine(dictionary), run, effects=every_node(effect)).top_k("effects")
    edits = {(site.hook_point, 0): lambda x: x * torch.tensor([[1.0], [1.0], [0.0]])}
    plain_run = run_with_gradients(model.plain, prompt, loss_objective(model.plain, loss), edits)
    direction = plain_run.gradients[LAST_RESIDUAL, model.plain.n_layers - 1][0]
    others = [model.plain.run(baseline)]
    expected = latent_numbers(model.plain, dictionary, 0, plain_run, others, direction).direct_effects
    assert float(expected[2].abs().max()) > 0.01
    assert_same(expected, numbers_of_layer(found, 0, expected.shape))


@examples(3)
@given(prompts=compared_prompts(), loss=losses())
def test_gradients_of_latents_that_are_active_in_either_run(prompts: Prompts, loss: LossConfig) -> None:
    model, site, (prompt, *baselines) = small_model("gpt2"), Site.RESID_DELTA_MLP, prompts
    dictionary, layer = small_autoencoder("gpt2", site), 1
    weights, latent = dictionary.layers[layer], 7
    found = answer(
        model.engine(dictionary),
        beside(inference(prompt, loss), tuple(baselines)),
        gradients=DerivedScalarsSpec(scalar(site, "LATENT"), layer, latent, PassType.BACKWARD),
    ).results["gradients"]
    assert isinstance(found, DerivedScalarsResult)
    run = run_with_gradients(model.plain, prompt, loss_objective(model.plain, loss))
    seen = [run.seen, *(model.plain.run(one) for one in baselines)]
    latents = torch.stack([dense_latents(weights, one[site.hook_point, layer][0]) for one in seen])
    gradients = run.gradients[site.hook_point, layer][0] @ weights.directions[latent]
    expected = gradients * (latents[:, :, latent] != 0).any(dim=0)
    torch.testing.assert_close(torch.from_numpy(found.activations).double(), expected, atol=1e-6, rtol=1e-5)
