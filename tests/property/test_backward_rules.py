"""Backward rules against a second implementation that detaches, on decoders of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionComponent,
    AttentionTraceType,
    BackwardRule,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    Trace,
)
from tdb_server.engine.backward_pass import backward
from tdb_server.engine.cache import Cache, Gradients
from tdb_server.engine.forward_pass import forward
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.interventions import HEAD_HOOK_POINTS, PAIR_HOOK_POINTS
from tdb_server.engine.plan import plan_batch
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.model.backward_rules import BackwardRules, activated
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import NORM_SCALES
from tdb_server.model.weights import load_decoder
from torch import Tensor

from tests.property.detached_model import DetachedModel
from tests.property.finite_differences import assert_same
from tests.property.plain_edits import latents_of, loss_value
from tests.property.plain_model import Seen
from tests.property.requests import answer, answers_of_calls, every_node, numbers_of_layer
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import MAIN_MODELS, MODELS, small_autoencoder, small_model
from tests.random_models import FIXTURES

PROMPT = (3, 41, 5, 5, 17)
LOSS = LossConfig(LossName.LOGIT_DIFF, (1, 2), (3,))
RULES = {
    "gradient": (BackwardRule.GRADIENT, False),
    "frozen_norms": (BackwardRule.FROZEN_NORMS, False),
    "relp": (BackwardRule.RELP, False),
    "relp with patterns": (BackwardRule.RELP, True),
    "gim": (BackwardRule.GIM, False),
}
PLACES = {
    scalar.declared.hook_point: scalar
    for scalar in DerivedScalar
    if scalar.declared.measure is Measure.ACTIVATION
    and scalar.declared.hook_point not in (None, HookPoint.LOGITS)
    and not is_of_autoencoder(scalar.declared.hook_point)
}
"""Places that can be read, by the derived scalar that reads them."""
THEIR_PLACES = {
    "attn.hook_pattern": HookPoint.ATTN_QK_PROBS,
    "hook_resid_mid": HookPoint.RESID_POST_ATTN,
    "hook_resid_post": HookPoint.RESID_POST_MLP,
    "mlp.hook_post": HookPoint.MLP_POST_ACT,
}
"""What transformer-lens calls them in a layer."""
FEW_PLACES = (HookPoint.RESID_POST_EMB, HookPoint.ATTN_QK_PROBS, HookPoint.MLP_POST_ACT)
"""None of them inside of what is computed in one step."""


def run(rule: str, loss: LossConfig | None = LOSS, trace: Trace | None = None) -> InferenceSpec:
    which, lets_through = RULES[rule]
    return InferenceSpec(PROMPT, loss, trace, backward_rule=which, pattern_gradients=lets_through)


def passes(
    decoder: Decoder, runs: Sequence[InferenceSpec], places: Sequence[HookPoint]
) -> tuple[Cache, Gradients]:
    """Both passes of a batch, with what is kept of these places."""
    spec = {
        place.value: MultipleTopKSpec(
            ((GroupId.SINGLETON, (PLACES[place],)),), 1, pass_type=PassType.BACKWARD
        )
        for place in places
    }
    call = Call("", tuple(InferenceSubRequest(one, spec) for one in runs))
    plan, model = (
        plan_batch([call], (), decoder.absent_hook_points, n_layers=len(decoder.blocks)),
        SplicedModel(decoder, ()),
    )
    inputs = Inputs(plan, decoder.device)
    cache, graph = forward(model, plan, inputs, None, lambda: None)
    return cache, backward(model, plan, inputs, cache, graph, None)


def as_clients_index(place: HookPoint, x: Tensor) -> Tensor:
    """A row's tensor, in the order of its hook point's dimensions."""
    if place in PAIR_HOOK_POINTS:
        return x.permute(1, 2, 0)
    return x.transpose(0, 1) if place in HEAD_HOOK_POINTS else x


def places_of(decoder: Decoder) -> list[HookPoint]:
    return [place for place in PLACES if place not in decoder.absent_hook_points]


def loss_of(name: str) -> Callable[[Seen], Tensor]:
    cap = small_model(name).plain.logit_cap
    return lambda seen: loss_value(LOSS, seen[HookPoint.LOGITS, None], cap).sum()


def assert_same_gradients(
    name: str, rule: str, found: Gradients, objective: Callable[[Seen], Tensor], places: Sequence[HookPoint]
) -> None:
    which, lets_through = RULES[rule]
    model = DetachedModel(small_model(name).reference, which, pattern_gradients=lets_through)
    _, expected = model.gradients(PROMPT, objective)
    for (place, layer_index), gradient in expected.items():
        if place in places:
            own = found.at.get((place, layer_index))
            computed = torch.zeros_like(gradient) if own is None else as_clients_index(place, own[0])
            assert_same(gradient, computed, 1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_what_detaching_gives(name: str, rule: str) -> None:
    decoder = small_model(name).decoder
    for places in (places_of(decoder), FEW_PLACES):
        _, found = passes(decoder, [run(rule)], places)
        assert_same_gradients(name, rule, found, loss_of(name), places)


@pytest.mark.parametrize("name", MAIN_MODELS)
def test_rules_differ(name: str) -> None:
    decoder = small_model(name).decoder
    found = [passes(decoder, [run(rule)], FEW_PLACES)[1].at[HookPoint.RESID_POST_EMB, None] for rule in RULES]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAIN_MODELS)
def test_forward_values_are_the_same_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    decoder = small_model(name, dtype).decoder
    for places in (places_of(decoder), FEW_PLACES):
        plain, _ = passes(decoder, [run("gradient")], places)
        for rule in RULES:
            ruled, _ = passes(decoder, [run(rule)], places)
            assert torch.equal(ruled.loss_logits, plain.loss_logits)
            for place, layers in plain.values.items():
                assert all(map(torch.equal, ruled.values[place], layers))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "qwen3"])
def test_what_is_before_a_traced_neuron_follows_the_rule(name: str, rule: str) -> None:
    """The traced neuron's own objective keeps its derivative, with its norm's scale held."""
    model = small_model(name)
    node = NodeIndex(NodeType.MLP_NEURON, 1, (3, 6))
    before = (HookPoint.RESID_POST_MLP, 0) if model.plain.is_parallel else (HookPoint.RESID_POST_ATTN, 1)

    def objective(seen: Seen) -> Tensor:
        x = seen[before]
        pre, up = model.plain.mlp_inputs(1, x, model.plain.scale(x).detach())
        found: Tensor = (model.plain.activate(pre) * up if model.plain.is_gated else pre)[0, 3, 6]
        return found

    places = places_of(model.decoder)
    _, found = passes(model.decoder, [run(rule, None, Trace(node))], places)
    assert_same_gradients(name, rule, found, objective, places)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_what_is_before_a_traced_head_follows_the_rule(name: str, rule: str) -> None:
    model = small_model(name)
    trace = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 1)), AttentionTraceType.QK)

    def objective(seen: Seen) -> Tensor:
        x = seen[HookPoint.RESID_POST_MLP, 0]
        q, k, _ = model.plain.queries_keys_values(1, x, model.plain.scale(x).detach())
        return (q[0, 4, 1] * model.plain.for_heads(k)[0, 2, 1]).sum()

    places = places_of(model.decoder)
    _, found = passes(model.decoder, [run(rule, None, trace)], places)
    assert_same_gradients(name, rule, found, objective, places)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_latents_follow_from_the_gradient_at_their_site(name: str, rule: str) -> None:
    model, autoencoder = small_model(name), small_autoencoder(name, Site.MLP_POST_ACT)
    scalar = DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD
    result = answer(model.engine(autoencoder), run(rule), found=every_node(scalar)).top_k("found")
    which, lets_through = RULES[rule]
    detached = DetachedModel(model.reference, which, pattern_gradients=lets_through)
    seen, gradients = detached.gradients(PROMPT, loss_of(name))
    for layer_index, layer in autoencoder.layers.items():
        spot = (HookPoint.MLP_POST_ACT, layer_index)
        latents = latents_of(layer, seen[spot][0].detach())
        expected = latents * (gradients[spot] @ layer.directions.T)
        assert_same(expected, numbers_of_layer(result, layer_index, expected.shape), 1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox", "stablelm"])
def test_frozen_norms_are_gradients_of_zero_at_all_scales(name: str) -> None:
    """Also for what is set of a transcoder, whose latents read through the MLP's norm."""
    model = small_model(name)
    decoder, engine = model.decoder, model.engine(small_autoencoder(name, Site.MLP_TRANSCODER, jumps=True))
    scales = [
        AblationSpec(ActivationIndex(place, layer_index, (None, None), PassType.BACKWARD), 0.0)
        for place in NORM_SCALES - decoder.absent_hook_points
        for layer_index in (range(decoder.config.n_layers) if place.is_per_layer else (None,))
    ]
    latents = [
        AblationSpec(ActivationIndex(HookPoint.ONLINE_MLP_TRANSCODER_LATENT, 1, (token, None)), 0.7)
        for token in (2, 4)
    ]
    specs = {
        "neurons": every_node(DerivedScalar.MLP_ACT_TIMES_GRAD),
        "heads": every_node(DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD),
        "embeddings": every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    }
    frozen = answer(engine, replace(run("frozen_norms"), ablations=tuple(latents)), **specs)
    held = answer(engine, replace(run("gradient"), ablations=(*latents, *scales)), **specs)
    assert_same_answers(frozen, held, 1e-9, Nodes.NOT_ZERO)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_batch_of_all_rules_answers_as_each_alone(name: str) -> None:
    engine = small_model(name).engine()
    neuron, head = NodeIndex(NodeType.MLP_NEURON, 1, (2, 3)), NodeIndex(NodeType.ATTENTION_HEAD, 1, (3, 1, 2))
    calls = []
    for n_tokens, (rule, lets_through) in zip((5, 4, 5, 3, 5), RULES.values(), strict=True):
        plain = DebugSubRequest(
            PROMPT[:n_tokens],
            (1,),
            (2,),
            MlpComponent.NEURON,
            AttentionComponent.ATTENTION_HEAD,
            4,
            backward_rule=rule,
            pattern_gradients=lets_through,
        )
        ablated = replace(plain, node_ablations=(NodeAblation(replace(neuron, layer_index=0), 0.5),))
        calls += [[plain, ablated], [replace(plain, upstream_trace=Trace(neuron))]]
        if n_tokens > 3:
            calls += [[replace(plain, upstream_trace=Trace(head, AttentionTraceType.Q))]]
    asked = [[inference_sub_request(one) for one in call] for call in calls]
    merged = answers_of_calls(engine, asked)
    for call, together in zip(asked, merged, strict=True):
        (alone,) = answers_of_calls(engine, [call])
        for one, other in zip(alone, together, strict=True):
            assert_same_answers(one, other, 1e-9, Nodes.EQUAL)


@pytest.mark.parametrize("name", ["tiny-a", "tiny-llama-c"])
def test_gim_is_what_its_authors_package_computes(name: str) -> None:
    """Against numbers that `tests/fixtures/gim/make_gim.py` wrote down."""
    expected = load_file(FIXTURES / "gim" / f"{name}.safetensors")
    *prompt, target, baseline = expected["tokens"].tolist()
    decoder = load_decoder(FIXTURES / name, "cpu", torch.float64)
    loss = LossConfig(LossName.LOGIT_DIFF, (target,))
    gim = InferenceSpec(tuple(prompt), loss, backward_rule=BackwardRule.GIM)
    _, found = passes(decoder, [gim], [HookPoint.RESID_POST_EMB, *THEIR_PLACES.values()])
    embedding = found.at[HookPoint.RESID_POST_EMB, None][0]
    for layer_index in range(decoder.config.n_layers):
        for theirs, place in THEIR_PLACES.items():
            gradient = found.at[place, layer_index][0].float()
            assert_same(expected[f"blocks.{layer_index}.{theirs}"], gradient, 1e-5)
    assert_same(expected["blocks.0.hook_resid_pre"], embedding.float(), 1e-5)
    change = decoder.token_embedding[prompt] - decoder.token_embedding[baseline]
    assert_same(expected["attributions"], (change * embedding).sum(dim=1).float(), 1e-5)


def test_at_zero_a_nonlinearity_passes_its_limit() -> None:
    rows = torch.tensor([True, False])
    for activation in ("silu", "gelu", "gelu_tanh"):
        x = torch.tensor([[0.0, 1e-30, 2.0], [0.0, 1e-30, 2.0]], requires_grad=True)
        value = activated(activation, x, BackwardRules(rows, rows, rows, None))
        (found,) = torch.autograd.grad(value.sum(), x)
        of_two = value.detach()[0, 2].item()
        assert found[0].tolist() == pytest.approx([0.5, 0.5, of_two / 2])
        assert abs(found[1, 2].item() - of_two / 2) > 0.01
