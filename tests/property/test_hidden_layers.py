"""`hide_early_layers_when_ablating` leaves out nodes of layers before the first ablated, in a whole call."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    DebugSubRequest,
    InferenceSubRequest,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import Answer, answers_of_calls, examples, numbers_by_node, of_every_node
from tests.property.small_models import small_autoencoder, small_model
from tests.property.traces import ablations_of_nodes, traces_of

NAME = "gpt2-deep-untied"
PROMPT = (50, 3, 17, 8)
K = 6


def sub_request(hides: bool, ablations: list[NodeAblation], mlp: MlpComponent) -> InferenceSubRequest:
    components = (mlp, AttentionComponent.ATTENTION_HEAD)
    return inference_sub_request(DebugSubRequest(PROMPT, (1,), (2,), *components, K, hides, tuple(ablations)))


def ask(*sub_requests: InferenceSubRequest) -> list[Answer]:
    engine = small_model(NAME).engine(small_autoencoder(NAME, Site.RESID_DELTA_MLP))
    return answers_of_calls(engine, [sub_requests])[0]


def ablations() -> st.SearchStrategy[list[NodeAblation]]:
    found = ablations_of_nodes(small_model(NAME).config, len(PROMPT), has_latents=False)
    return found.filter(lambda some: len(some) > 0)


@pytest.mark.parametrize("mlp", [MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT])
@examples(6)
@given(ablations=ablations())
def test_rankings_are_those_of_the_layers_that_are_left(
    mlp: MlpComponent, ablations: list[NodeAblation]
) -> None:
    """The best k of what is shown, with the numbers they have when nothing is hidden; sums stay whole."""
    first = min(one.node.layer_index or 0 for one in ablations)
    (hiding,) = ask(sub_request(True, ablations, mlp))
    (complete,) = ask(of_every_node(sub_request(False, ablations, mlp)))
    for name, spec in sub_request(True, ablations, mlp).processing.items():
        if not isinstance(spec, MultipleTopKSpec):
            continue
        found, everything = hiding.top_k(name), complete.top_k(name)
        for group, result in everything.groups.items():
            shown = {
                node: number
                for node, number in numbers_by_node(everything, group).items()
                if node.layer_index is None or node.layer_index >= first
            }
            listed = numbers_by_node(found, group)
            assert listed == {node: pytest.approx(shown[node], abs=1e-12) for node in listed}
            by_type: dict[object, list[float]] = {}
            for node, number in shown.items():
                by_type.setdefault(node.node_type, []).append(number)
            for numbers in by_type.values():
                best = sorted((one for one in numbers if one > 0), reverse=True)[: spec.top_and_bottom_k]
                assert all(any(abs(one - other) < 1e-12 for other in listed.values()) for one in best)
            for scalar, total in result.sums.items():
                assert found.groups[group].sums[scalar].array == pytest.approx(total.array)


DEEP = ("gpt2-deep-untied", "llama-deep-wide-heads")
DEPENDENT = (ScoredTokensSpec, TokenPairAttributionSpec)


@st.composite
def calls(draw: st.DrawFn, name: str, has_latents: bool) -> list[InferenceSubRequest]:
    """Two or three TDB sub-requests of the same components; without autoencoders, neurons and heads."""
    config = small_model(name).config
    components = (
        draw(st.sampled_from([MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT]))
        if has_latents
        else MlpComponent.NEURON,
        draw(st.sampled_from(AttentionComponent)) if has_latents else AttentionComponent.ATTENTION_HEAD,
    )
    found = []
    for _ in range(draw(st.integers(2, 3))):
        one = draw(debug_sub_requests(config, n_tokens=4))
        if not has_latents:
            ablations = draw(ablations_of_nodes(config, 4, has_latents=False))
            trace = draw(st.none() | traces_of("neuron", config, 4) | traces_of("QK", config, 4))
            one = replace(one, node_ablations=tuple(ablations), upstream_trace=trace)
        one = replace(one, mlp_component=components[0], attention_component=components[1])
        found.append(inference_sub_request(one))
    return found


@pytest.mark.parametrize("has_latents", [False, True])
@pytest.mark.parametrize("name", DEEP)
@examples(15)
@given(data=st.data())
def test_results_of_a_name_list_the_same_nodes_in_every_sub_request(
    name: str, has_latents: bool, data: st.DataObject
) -> None:
    """So do the lists that depend on them; none is of a layer that any sub-request hides."""
    call = data.draw(calls(name, has_latents))
    sites = [Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN] if has_latents else []
    engine = small_model(name).engine(*(small_autoencoder(name, site) for site in sites))
    (answers,) = answers_of_calls(engine, [call])
    for result_name, spec in call[0].processing.items():
        listed = [list(one.results[result_name].nodes) for one in answers]  # type: ignore[union-attr]
        assert listed == listed[:1] * len(call)
        if isinstance(spec, DEPENDENT):
            assert listed[0] == list(answers[0].top_k(spec.depends_on).nodes)
        if isinstance(spec, MultipleTopKSpec):
            bounds = [one.processing[result_name].first_layer_index for one in call]  # type: ignore[union-attr]
            first = max((one for one in bounds if one is not None), default=0)
            assert all(node.layer_index is None or node.layer_index >= first for node in listed[0])


def test_what_one_sub_request_hides_all_leave_out() -> None:
    in_layer_2 = NodeAblation(NodeIndex(NodeType.MLP_NEURON, 2, (1, 4)))
    hiding, plain = ask(
        sub_request(True, [in_layer_2], MlpComponent.NEURON), sub_request(False, [], MlpComponent.NEURON)
    )
    for result_name in ("topKComponents", "componentSumsForTokenDisplay"):
        nodes = list(hiding.top_k(result_name).nodes)
        assert nodes == list(plain.top_k(result_name).nodes)
        assert {node.layer_index for node in nodes} == {None, 2}


def test_the_last_of_several_first_layers_counts() -> None:
    ablations = [NodeAblation(NodeIndex(NodeType.MLP_NEURON, layer, (1, 4))) for layer in (0, 2, 1)]
    answers = ask(*(sub_request(True, [one], MlpComponent.NEURON) for one in ablations))
    assert {node.layer_index for one in answers for node in one.top_k("topKComponents").nodes} == {None, 2}
