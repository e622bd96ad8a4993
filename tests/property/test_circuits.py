"""Circuits: what keeps some nodes alone, against the same made by edits of the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    Circuit,
    CircuitNode,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ValueType,
)
from tdb_server.domain.results import CircuitValues, ObjectiveValues
from tdb_server.engine.engine import Engine
from tdb_server.engine.plan import plan_batch
from tdb_server.model.config import DecoderConfig
from tdb_server.model.decoder import Attention, Mlp
from tdb_server.model.hooks import Hooks
from torch import Tensor

from tests.property.plain_gradients import loss_objective
from tests.property.plain_values import value_edits
from tests.property.requests import answers_of_calls, every_node, examples, inference, losses
from tests.property.small_models import N_LATENTS, TOP_K, small_autoencoder, small_model
from tests.property.test_baselines import Prompts, beside, compared_prompts
from tests.property.test_values import FAMILIES

LOSS = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))


@st.composite
def circuits(
    draw: st.DrawFn, config: DecoderConfig, n_tokens: int, latents: Sequence[NodeType] = ()
) -> Circuit:
    sizes = {
        NodeType.WHOLE_HEAD: config.n_heads,
        NodeType.WHOLE_MLP: 1,
        NodeType.MLP_NEURON: config.n_neurons,
    }
    sizes |= dict.fromkeys(latents, N_LATENTS)
    kinds = [*sizes, *latents]
    node_types = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))
    nodes = []
    for node_type in draw(st.lists(st.sampled_from(node_types), max_size=8)):
        layer = draw(st.integers(0, config.n_layers - 1))
        token = draw(st.none() | st.integers(0, n_tokens - 1))
        nodes.append(CircuitNode(node_type, layer, token, draw(st.integers(0, sizes[node_type] - 1))))
    return Circuit(frozenset(node_types), tuple(nodes))


def values_of(engine: Engine, calls: Sequence[Sequence[InferenceSpec]]) -> list[list[CircuitValues | None]]:
    """What several calls in one batch are told of their circuits."""
    batch = [
        Call(str(number), tuple(InferenceSubRequest(one, {}) for one in call))
        for number, call in enumerate(calls)
    ]
    found: list[list[CircuitValues | None]] = [[None] * len(call) for call in calls]
    for call_id, event in engine.run(batch, lambda _: False):
        if isinstance(event, ObjectiveValues):
            found[int(call_id)][event.sub_request_index] = event.circuit
            if event.circuit is not None:
                assert event.circuit.objective == event.loss
    return found


def numbers_of(values: CircuitValues | None) -> tuple[float, ...]:
    assert values is not None
    return values.objective, values.of_prompt, values.of_baseline


SITES: dict[str, tuple[tuple[Site, ...], dict[str, bool | int]]] = {
    "gpt2": ((Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN), {"norms_inputs": True}),
    "gemma2": ((Site.RESID_DELTA_MLP, Site.ATTN_V_OUT), {"top_k": TOP_K}),
    "gpt_neox": ((Site.MLP_TRANSCODER, Site.RESID_POST_MLP), {}),
}


@pytest.mark.parametrize("name", FAMILIES)
@examples(3)
@given(data=st.data(), prompts=compared_prompts(), loss=losses())
def test_a_circuit_is_what_edits_make(
    name: str, data: st.DataObject, prompts: Prompts, loss: LossConfig
) -> None:
    model, (prompt, *baselines) = small_model(name), prompts
    baselines = baselines[: data.draw(st.integers(0, len(baselines)))]
    sites, kind = SITES.get(name, ((), {}))
    dictionaries = [small_autoencoder(name, site, **kind) for site in sites]  # type: ignore[arg-type]
    circuit = data.draw(circuits(model.config, len(prompt), [site.node_type for site in sites]))
    own = []
    if data.draw(st.booleans()):  # an ablation beside the circuit, which has the last word
        value_type = data.draw(st.sampled_from([ValueType.NUMBER, ValueType.SCALE, ValueType.ADD]))
        index = ActivationIndex(HookPoint.MLP_POST_ACT, 0, (len(prompt) - 1, 3))
        own = [AblationSpec(index, 1.3, value_type)]
    run = beside(inference(prompt, loss, ablations=own), tuple(baselines))
    (((found,),),) = [values_of(model.engine(*dictionaries), [[replace(run, circuit=circuit)]])]

    others = [model.plain.run(one) for one in baselines]
    objective = loss_objective(model.plain, loss)
    edits = value_edits(model.plain, own, others, dictionaries, circuit)
    nothing = value_edits(model.plain, (), (), dictionaries, replace(circuit, nodes=()))
    of_baselines = [objective(one).item() for one in others] or [
        objective(model.plain.run(prompt, nothing)).item()
    ]
    expected = (
        objective(model.plain.run(prompt, edits)).item(),
        objective(model.plain.run(prompt)).item(),
        sum(of_baselines) / len(of_baselines),
    )
    assert numbers_of(found) == pytest.approx(expected, abs=2e-5)
    assert found is not None
    difference = expected[1] - expected[2]
    if abs(difference) > 1e-3:
        assert found.faithfulness == pytest.approx((expected[0] - expected[2]) / difference, abs=0.05)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("gpt_neox", (Site.MLP_TRANSCODER, Site.RESID_POST_MLP)),
        ("qwen3", (Site.MLP_TRANSCODER, Site.RESID_POST_ATTN)),
    ],
)
def test_transcoders_read_streams_whose_latents_are_set(name: str, sites: tuple[Site, ...]) -> None:
    model, prompt, baseline = small_model(name), (27, 38, 34), (30, 2, 46)
    dictionaries = [small_autoencoder(name, site) for site in sites]
    of_baseline, objective = model.plain.run(baseline), loss_objective(model.plain, LOSS)
    found = []
    for kinds in (sites, sites[:1], sites[1:]):
        circuit = Circuit(frozenset(site.node_type for site in kinds), ())
        run = beside(replace(inference(prompt, LOSS), circuit=circuit), (baseline,))
        (((told,),),) = [values_of(model.engine(*dictionaries), [[run]])]
        edits = value_edits(model.plain, (), [of_baseline], dictionaries, circuit)
        found.append(objective(model.plain.run(prompt, edits)).item())
        assert numbers_of(told)[0] == pytest.approx(found[-1], abs=2e-5)
    assert len({round(one, 3) for one in found}) == len(found)


def test_where_prompt_and_baseline_do_not_differ_no_share_is_kept() -> None:
    prompt = (3, 4, 5)
    circuit = Circuit(frozenset({NodeType.WHOLE_HEAD}), ())
    run = beside(replace(inference(prompt, LOSS), circuit=circuit), (prompt,))
    (((found,),),) = [values_of(small_model("gpt2").engine(), [[run]])]
    assert found is not None
    assert found.of_prompt == found.of_baseline
    assert found.faithfulness is None


@pytest.mark.parametrize("least", [0.9e-6, 1.1e-6])
def test_faithfulness_wants_a_difference(least: float) -> None:
    found = CircuitValues(0.5 * least, least, 0.0).faithfulness
    assert found == (None if least < 1e-6 else pytest.approx(0.5))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("has_baselines", [True, False])
def test_circuits_of_one_prompt_share_what_they_are_compared_with(name: str, has_baselines: bool) -> None:
    """And are answered as each alone, with others of other lengths beside them."""
    model, prompt = small_model(name), (3, 4, 5, 6)
    engine, baselines = model.engine(), ((3, 9, 5, 8), (7, 4, 5, 6)) if has_baselines else ()
    kinds = frozenset({NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP})
    of_head = [
        Circuit(kinds, tuple(CircuitNode(NodeType.WHOLE_HEAD, layer, None, head) for layer in range(n)))
        for head in range(4)
        for n in range(3)
    ]
    runs = [beside(replace(inference(prompt, LOSS), circuit=one), baselines) for one in of_head]
    others = [inference((8, 9, 10, 11, 12, 13), LOSS), replace(inference((8, 9), LOSS), circuit=of_head[1])]
    call = Call("0", tuple(InferenceSubRequest(one) for one in runs))
    plan = plan_batch([call], (), model.decoder.absent_hook_points, n_layers=model.config.n_layers)
    assert plan.references is not None
    assert len(plan.references.rows) == 1 + len(baselines or "0")
    together, *_ = values_of(engine, [runs, *[[one] for one in others]])
    for one, run in zip(together, runs, strict=True):
        (((alone,),),) = [values_of(engine, [[run]])]
        assert numbers_of(one) == pytest.approx(numbers_of(alone), abs=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_what_is_replaced_as_a_whole_is_not_computed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody looks inside."""
    model, n_rows = small_model(name), dict[tuple[type, int], int]()
    for component in (Mlp, Attention):
        spy_on(component, n_rows, monkeypatch)
    head, mlp = CircuitNode(NodeType.WHOLE_HEAD, 1, None, 2), CircuitNode(NodeType.WHOLE_MLP, 0, 1, 0)
    kinds = frozenset({NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP})
    runs = [
        replace(inference((3, 4, 5), LOSS), circuit=Circuit(kinds, nodes)) for nodes in ((head,), (mlp,), ())
    ]
    values_of(model.engine(), [runs])
    assert n_rows == {(Attention, 0): 0, (Mlp, 0): 1, (Attention, 1): 1, (Mlp, 1): 0}
    wanted = {"neurons": every_node(DerivedScalar.MLP_POST_ACT)}
    answers_of_calls(model.engine(), [[InferenceSubRequest(one, wanted) for one in runs]])
    assert n_rows == {(Attention, 0): 2, (Mlp, 0): 2, (Attention, 1): 3, (Mlp, 1): 3}


def spy_on(
    component: type[Mlp | Attention], n_rows: dict[tuple[type, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes of how many rows each layer's component was computed last."""
    method = "__call__" if component is Mlp else "weighted_values"
    plain = getattr(component, method)

    def spying(self: Mlp | Attention, x: Tensor, hooks: Hooks) -> Tensor:
        n_rows[component, self.layer_index] = len(x)
        found: Tensor = plain(self, x, hooks)
        return found

    monkeypatch.setattr(component, method, spying)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_all_nodes_keep_everything(name: str) -> None:
    model, prompt = small_model(name), (3, 4, 5)
    heads = [
        CircuitNode(NodeType.WHOLE_HEAD, layer, None, head)
        for layer in range(model.config.n_layers)
        for head in range(model.config.n_heads)
    ]
    mlps = [
        CircuitNode(NodeType.WHOLE_MLP, layer, token, 0)
        for layer in range(model.config.n_layers)
        for token in range(len(prompt))
    ]
    circuit = Circuit(frozenset({NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP}), (*heads, *mlps))
    run = beside(replace(inference(prompt, LOSS), circuit=circuit), ((6, 4, 7),))
    (((found,),),) = [values_of(model.engine(), [[run]])]
    assert found is not None
    assert found.faithfulness == pytest.approx(1, abs=1e-9)
