"""The divergence from what baselines predict: values, slopes, circuits, against the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    AttentionTraceType,
    BackwardRule,
    Circuit,
    CircuitNode,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    Trace,
    ValueType,
)
from tdb_server.domain.results import ActivationsResult
from tdb_server.engine.objectives import LossTerms, Predictions, loss_terms, losses
from tdb_server.engine.plan import plan_batch
from torch import Tensor

from tests.property.finite_differences import assert_same, slopes_of_adding
from tests.property.plain_gradients import Objective, act_times_grad, direct_effects, run_with_gradients
from tests.property.plain_model import PlainModel, Seen
from tests.property.plain_values import value_edits
from tests.property.requests import answer, answers_of_calls, every_node, examples, inference, numbers_by_node
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import MODELS, small_autoencoder, small_model
from tests.property.test_act_times_grad import holding_final_scale
from tests.property.test_baselines import Prompts, asked, assert_numbers, beside, compared_prompts
from tests.property.test_circuits import SITES, circuits, numbers_of, values_of
from tests.property.test_values import FAMILIES

PROMPT, BASELINES = (8, 30, 21, 55), ((8, 11, 21, 55), (3, 30, 5, 55))
KL = LossConfig(LossName.KL_FROM_BASELINE)
LOGITS = (HookPoint.LOGITS, None)


def log_probabilities(logits: Tensor) -> Tensor:
    """By hand [..., V]."""
    above = logits - logits.max(dim=-1, keepdim=True).values
    return above - above.exp().sum(dim=-1, keepdim=True).log()


def divergence(baselines: Sequence[Seen], token: int = -1) -> Objective:
    """The mean of KL(baseline || run) of every copy, by the definition."""

    def objective(seen: Seen) -> Tensor:
        own = log_probabilities(seen[LOGITS][:, token])
        told = [log_probabilities(one[LOGITS][:, token]) for one in baselines]
        return sum(((one.exp() * (one - own)).sum(dim=-1) for one in told), torch.zeros(len(own))) / len(told)

    return objective


def as_weights(model: PlainModel, token: int = -1) -> LossConfig:
    """The difference of logits that has, at the prompt, the very gradient of the divergence."""
    own, *others = (model.run(one)[LOGITS][0, token].softmax(dim=0) for one in (PROMPT, *BASELINES))
    weights = own - torch.stack(others).mean(dim=0)
    at = None if token == -1 else token
    return LossConfig(LossName.LOGIT_DIFF, tuple(range(len(own))), (), at, tuple(weights.tolist()))


@pytest.mark.parametrize("name", MODELS)
@examples(1)
@given(data=st.data(), prompts=compared_prompts())
def test_nodes(name: str, data: st.DataObject, prompts: Prompts) -> None:
    """The value, act × grad and direct effects, at any token; and the value alone, without a way back."""
    model, (prompt, *baselines) = small_model(name), prompts
    token = data.draw(st.integers(0, len(prompt) - 1))
    others = [model.plain.run(one) for one in baselines]
    objective = divergence(others, token)
    run = run_with_gradients(model.plain, prompt, objective)
    direction = run.gradients[HookPoint.RESID_POST_MLP, model.plain.n_layers - 1][0]
    expected = act_times_grad(model.plain, run, others) | direct_effects(
        model.plain, run.seen, others, direction
    )
    asks = beside(inference(prompt, replace(KL, token_index=token)), tuple(baselines))
    found = answer(model.engine(), asks, **asked(expected))
    assert found.loss == pytest.approx(objective(run.seen).item(), abs=1e-6)
    assert_numbers(found, expected)
    assert answer(model.engine(), asks).loss == pytest.approx(found.loss, abs=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_slopes(name: str) -> None:
    """Act × grad is the slope from the prompt's activations on, away from the baselines' mean."""
    model = small_model(name)
    others = [model.plain.run(one) for one in BASELINES]
    edits = holding_final_scale(model.plain, PROMPT, {})
    asks = beside(inference(PROMPT, replace(KL, token_index=2)), BASELINES)
    found = answer(model.engine(), asks, neurons=every_node(DerivedScalar.MLP_ACT_TIMES_GRAD))
    numbers = numbers_by_node(found.top_k("neurons"))
    for layer in range(model.config.n_layers):
        spot = (HookPoint.MLP_POST_ACT, layer)
        own = model.plain.run(PROMPT)[spot][0]
        away = own - torch.stack([one[spot][0] for one in others]).mean(dim=0)
        each = torch.diag(away.flatten()).view(-1, *away.shape)
        slopes = slopes_of_adding(model.plain, PROMPT, divergence(others, 2), spot, edits, each)
        nodes = [NodeIndex(NodeType.MLP_NEURON, layer, (t, i)) for t, i in np.ndindex(*away.shape)]
        assert_same(slopes, torch.tensor([numbers.get(one, 0.0) for one in nodes]).double())


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_gradient_at_the_logits(name: str) -> None:
    """What the run predicts less what the baselines do; before a soft cap, times its slope."""
    model = small_model(name)
    spec = ActivationsSpec(HookPoint.LOGITS, (None,), (1, 3), PassType.BACKWARD)
    asks = beside(InferenceSpec(PROMPT, replace(KL, token_index=1)), BASELINES)
    found = answer(model.engine(), asks, gradients=spec).results["gradients"]
    assert isinstance(found, ActivationsResult)
    ((_, gradients),) = found.layers
    own, *others = (model.plain.run(one)[LOGITS][0, 1] for one in (PROMPT, *BASELINES))
    cap = model.plain.logit_cap
    slope = torch.ones_like(own) if cap is None else 1 - (own / cap) ** 2
    expected = (own.softmax(dim=0) - torch.stack(others).softmax(dim=1).mean(dim=0)) * slope
    np.testing.assert_allclose(gradients.array[0], expected.numpy(), atol=1e-7)
    assert not gradients.array[1].any()


@pytest.mark.parametrize("rule", BackwardRule)
def test_under_every_backward_rule(rule: BackwardRule) -> None:
    model = small_model("llama")
    nodes = every_node(DerivedScalar.MLP_ACT_TIMES_GRAD, DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD)
    runs = [beside(inference(PROMPT, loss), BASELINES) for loss in (KL, as_weights(model.plain))]
    found = [answer(model.engine(), replace(run, backward_rule=rule), nodes=nodes) for run in runs]
    numbers, expected = (numbers_by_node(one.top_k("nodes")) for one in found)
    assert found[0].loss != pytest.approx(found[1].loss)
    assert numbers == pytest.approx(expected, abs=1e-6)
    assert max(map(abs, numbers.values())) > 1e-2


def test_a_value_that_is_traced_towards_it() -> None:
    model = small_model("gpt2")
    trace = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 0, (2, 1, 3)), AttentionTraceType.V)
    nodes = every_node(DerivedScalar.TOKEN_ATTRIBUTION)
    found, expected = (
        answer(model.engine(), beside(inference(PROMPT, loss, trace), BASELINES), nodes=nodes)
        for loss in (replace(KL, token_index=2), as_weights(model.plain, 2))
    )
    assert found.activation_value == pytest.approx(expected.activation_value, abs=1e-9)
    numbers = numbers_by_node(found.top_k("nodes"))
    assert numbers == pytest.approx(numbers_by_node(expected.top_k("nodes")), abs=1e-9)
    assert max(map(abs, numbers.values())) > 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@examples(1)
@given(data=st.data(), prompts=compared_prompts())
def test_circuits_and_ablations(name: str, data: st.DataObject, prompts: Prompts) -> None:
    """How far a circuit is from the baselines, beside the prompt and the baselines from each other."""
    model, (prompt, *baselines) = small_model(name), prompts
    sites, kind = SITES.get(name, ((), {}))
    dictionaries = [small_autoencoder(name, site, **kind) for site in sites]  # type: ignore[arg-type]
    circuit = data.draw(circuits(model.config, len(prompt), [site.node_type for site in sites]))
    value_type = data.draw(st.sampled_from(ValueType))
    value = 0.0 if value_type is ValueType.BASELINE else 1.3
    own = [AblationSpec(ActivationIndex(HookPoint.MLP_POST_ACT, 0, (0, 3)), value, value_type)]
    run = beside(inference(prompt, KL, ablations=own), tuple(baselines))
    engine = model.engine(*dictionaries)
    (((found,),),) = [values_of(engine, [[replace(run, circuit=circuit)]])]
    others = [model.plain.run(one) for one in baselines]
    objective = divergence(others)
    of_baselines = [objective(one).item() for one in others]
    of_circuit = model.plain.run(prompt, value_edits(model.plain, own, others, dictionaries, circuit))
    expected = (
        objective(of_circuit).item(),
        objective(model.plain.run(prompt)).item(),
        sum(of_baselines) / len(of_baselines),
    )
    assert numbers_of(found) == pytest.approx(expected, abs=2e-5)
    ablated = model.plain.run(prompt, value_edits(model.plain, own, others))
    assert answer(engine, run).loss == pytest.approx(objective(ablated).item(), abs=2e-5)


def test_in_company_as_alone() -> None:
    """Rows of other baselines, tokens, lengths and losses, with circuits, traces and steps of edges."""
    engine = small_model("gemma2").engine(small_autoencoder("gemma2", Site.RESID_DELTA_MLP))
    nodes = every_node(
        DerivedScalar.TOKEN_ATTRIBUTION,
        DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    )
    ranked, edges = {"nodes": nodes}, {"edges": EdgesSpec(1, n_steps=3, whole_matrix=True)}
    circuit = Circuit(
        frozenset({NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP}), (CircuitNode(NodeType.WHOLE_HEAD, 0, None, 1),)
    )
    head = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 1, (3, 1, 0)), AttentionTraceType.V)
    both = beside(inference(PROMPT, KL), BASELINES)
    first = replace(both, baselines=BASELINES[:1])
    sub_requests = [
        InferenceSubRequest(both, ranked),
        InferenceSubRequest(first, ranked),
        InferenceSubRequest(replace(both, loss=replace(KL, token_index=1)), ranked),
        InferenceSubRequest(replace(both, trace=head), ranked),
        InferenceSubRequest(replace(first, circuit=circuit), ranked),
        InferenceSubRequest(replace(both, circuit=circuit)),
        InferenceSubRequest(first, edges),
        InferenceSubRequest(beside(inference((5, 9), KL), ((5, 8),)), ranked),
        InferenceSubRequest(inference(PROMPT, LossConfig(LossName.LOG_PROB, (1,))), ranked),
        InferenceSubRequest(beside(inference(PROMPT, LossConfig(LossName.ZERO, (1,))), BASELINES), ranked),
    ]
    calls = [[one] for one in sub_requests]
    for (together,), call in zip(answers_of_calls(engine, calls), calls, strict=True):
        ((alone,),) = answers_of_calls(engine, [call])
        scores = [one.results.pop("edges", None) for one in (together, alone)]
        if scores[0] is not None:
            np.testing.assert_allclose(*(one.scores for one in scores), atol=1e-7)  # type: ignore[union-attr]
        assert_same_answers(together, alone, 1e-12, Nodes.NOT_ZERO)
    runs = [one.inference for one in sub_requests if one.inference.circuit is not None]
    for (kept,), run in zip(values_of(engine, [[one] for one in runs]), runs, strict=True):
        assert numbers_of(kept) == pytest.approx(numbers_of(values_of(engine, [[run]])[0][0]), abs=1e-12)
    one_pass = [[replace(one, processing={}) for one in sub_requests[:3]]]
    for together, one in zip(answers_of_calls(engine, one_pass)[0], one_pass[0], strict=True):
        assert together.loss == pytest.approx(answer(engine, one.inference).loss, abs=1e-12)


def test_rows_share_what_their_baselines_predict() -> None:
    run = beside(inference(PROMPT, KL), BASELINES)
    of_circuit = replace(run, circuit=Circuit(frozenset(), ()))
    call = Call("", (InferenceSubRequest(run), InferenceSubRequest(of_circuit)))
    plan = plan_batch([call], (), n_layers=2)
    assert list(plan.divergence_targets) == [((0, 1), 3)]
    assert plan.divergences == [(0, 0), (1, 0)]
    assert plan.circuit_divergences == [(0, 0), (1, 0), (2, 0)]


def test_a_prompt_does_not_diverge_from_itself() -> None:
    engine = small_model("gpt2", torch.float32).engine()
    found = answer(
        engine, beside(inference(PROMPT, KL), (PROMPT,)), nodes=every_node(DerivedScalar.TOKEN_ATTRIBUTION)
    )
    assert found.loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_logits_in_half_precision(dtype: torch.dtype) -> None:
    """Of probabilities that are 0 in any precision; where logarithms of a softmax would be infinite."""
    own = torch.tensor([[30.0, 0, -6e4, 6e4]]).to(dtype)
    baseline = torch.tensor([[-6e4, 20.0, 21, 0]]).to(dtype)
    row = own.clone().requires_grad_()
    terms = loss_terms([KL])
    uploaded = LossTerms(*(torch.from_numpy(one) for one in terms))
    sets = torch.zeros(2, 1, dtype=torch.int64)
    (found,) = losses(terms, uploaded, row, row, Predictions.of(baseline, [1]), sets)
    assert found.dtype == torch.float32
    told = log_probabilities(baseline.double())
    expected = (told.exp() * (told - log_probabilities(own.double()))).sum().item()
    assert found.item() == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert row.grad is not None
    gradient = own.double().softmax(dim=1) - told.exp()
    torch.testing.assert_close(row.grad.double(), gradient, atol=2e-3, rtol=0)


def test_in_half_precision() -> None:
    """Of a whole model, with logits that are set so far apart that nothing but one token is likely."""
    set_at = AblationSpec(ActivationIndex(HookPoint.LOGITS, None, (3, 7)), 5e4)
    nodes = every_node(DerivedScalar.TOKEN_ATTRIBUTION)
    runs = [beside(inference(PROMPT, KL, ablations=own), BASELINES) for own in ([], [set_at])]
    exact, rounded = (
        [answer(small_model("llama", dtype).engine(), run, nodes=nodes) for run in runs]
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.1, abs=0.02)
        assert all(np.isfinite(list(numbers_by_node(other.top_k("nodes")).values())))
    assert rounded[1].loss is not None
    assert rounded[1].loss > 1e4
