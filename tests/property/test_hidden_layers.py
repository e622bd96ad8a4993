"""`hide_early_layers_when_ablating` leaves out the nodes of layers before the first ablated one."""

from __future__ import annotations

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
)

from tests.property.requests import Answer, answers_of_calls, examples, numbers_by_node, of_every_node
from tests.property.small_models import small_autoencoder, small_model
from tests.property.traces import ablations_of_nodes

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


@pytest.mark.parametrize("mlp", MlpComponent)
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


def test_each_sub_request_hides_its_own_layers() -> None:
    """One that hides nothing is answered for nodes that another of its call hides."""
    in_layer_2 = NodeAblation(NodeIndex(NodeType.MLP_NEURON, 2, (1, 4)))
    hiding, plain = ask(
        sub_request(True, [in_layer_2], MlpComponent.NEURON), sub_request(True, [], MlpComponent.NEURON)
    )
    layers = [{node.layer_index for node in one.top_k("topKComponents").nodes} for one in (hiding, plain)]
    assert layers == [{None, 2}, {None, 0, 1, 2}]
    assert set(hiding.top_k("topKComponents").nodes) < set(plain.top_k("topKComponents").nodes)
