"""Sums by component are those of all nodes, one by one, however the numbers are gone through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    ComponentTotalsSpec,
    DebugSubRequest,
    InferenceSubRequest,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    Trace,
)
from tdb_server.domain.results import ComponentTotalsResult
from tdb_server.engine import products

from tests.property.requests import Answer, answers_of_calls, every_node, numbers_by_node
from tests.property.small_models import small_autoencoder, small_model

NEURON = NodeIndex(NodeType.MLP_NEURON, 1, (2, 3))
REQUEST = DebugSubRequest(
    (3, 9, 27, 41), (1,), (2,), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 3,
    node_ablations=(NodeAblation(NEURON, 0.5),), wants_component_totals=True,
)  # fmt: skip


def totals_of(answer: Answer) -> ComponentTotalsResult:
    found = answer.results["componentTotals"]
    assert isinstance(found, ComponentTotalsResult)
    return found


@pytest.mark.parametrize("max_entries", [None, 20])
@pytest.mark.parametrize("is_of_latents", [False, True])
@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("by_token", [False, True])
def test_they_are_the_sums_of_all_nodes(
    by_token: bool,
    is_of_latents: bool,
    is_traced: bool,
    max_entries: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of rows of two lengths, in parts or not, where the dictionary of the MLP has but one layer."""
    if max_entries is not None:
        monkeypatch.setitem(products.MAX_TOGETHER, "cpu", max_entries)
    name = "gemma2"
    engine = small_model(name).engine(
        small_autoencoder(name, Site.MLP_POST_ACT, layers=(1,)),
        small_autoencoder(name, Site.RESID_DELTA_ATTN),
    )
    request = REQUEST if not is_traced else replace(REQUEST, upstream_trace=Trace(NEURON))
    if is_of_latents:
        latents = MlpComponent.AUTOENCODER_LATENT, AttentionComponent.AUTOENCODER_LATENT
        request = replace(request, mlp_component=latents[0], attention_component=latents[1])
    short = replace(request, token_ids=request.token_ids[:3])
    calls = []
    for one in (request, short):
        made = inference_sub_request(one)
        spec = made.processing["componentTotals"]
        assert isinstance(spec, ComponentTotalsSpec)
        nodes: dict[str, MultipleTopKSpec] = {
            scalar.value: every_node(scalar) for scalar in spec.derived_scalars
        }
        wanted = {**nodes, "componentTotals": replace(spec, by_token=by_token)}
        calls.append([InferenceSubRequest(made.inference, wanted)])
    for (found,) in answers_of_calls(engine, calls):
        for scalar, total in totals_of(found).totals.items():
            expected = np.zeros(total.array.shape)
            for node, number in numbers_by_node(found.top_k(scalar.value)).items():
                place = () if node.layer_index is None else (node.layer_index,)
                if by_token:
                    place += node.tensor_indices[:1]
                if Dimension.ATTN_HEADS in scalar.declared.dimensions:
                    place += node.tensor_indices[-1:]
                expected[place] += number
            assert np.abs(expected).max() > 0 or is_traced
            np.testing.assert_allclose(total.array, expected, atol=1e-9, rtol=1e-9)
            heads = [Dimension.ATTN_HEADS] * (scalar.value.startswith("unflattened"))
            layers = [Dimension.LAYERS] * scalar.declared.is_per_layer
            tokens = [Dimension.SEQUENCE_TOKENS] * by_token
            assert total.dimensions == (*layers, *tokens, *heads)


def test_of_whole_components_by_token_nothing_is_left_to_sum() -> None:
    scalars = (DerivedScalar.WHOLE_HEAD_ACT_TIMES_GRAD, DerivedScalar.WHOLE_MLP_ACT_TIMES_GRAD)
    run = inference_sub_request(REQUEST).inference
    ((found, whole),) = answers_of_calls(
        small_model("gpt2").engine(),
        [
            [
                InferenceSubRequest(
                    run, {"componentTotals": ComponentTotalsSpec(scalars, by_token=one), **extra}
                )
                for one, extra in ((True, {one.value: every_node(one) for one in scalars}), (False, {}))
            ]
        ],
    )
    for scalar, total in totals_of(found).totals.items():
        for node, number in numbers_by_node(found.top_k(scalar.value)).items():
            place = (node.layer_index, *node.tensor_indices[: total.array.ndim - 1])
            assert total.array[place] == pytest.approx(number)
        np.testing.assert_allclose(total.array.sum(axis=1), totals_of(whole).totals[scalar].array)


def test_a_debug_request_has_them_where_it_says_so_and_may_leave_token_lists_out() -> None:
    engine = small_model("gpt2").engine()
    plain = inference_sub_request(replace(REQUEST, wants_component_totals=False))
    ((with_totals,),) = answers_of_calls(engine, [[inference_sub_request(REQUEST)]])
    ((without_lists,),) = answers_of_calls(
        engine, [[inference_sub_request(replace(REQUEST, omits_token_lists=True))]]
    )
    ((alone,),) = answers_of_calls(engine, [[plain]])
    assert set(with_totals.results) == {*plain.processing, "componentTotals"}
    assert set(alone.results) == set(plain.processing)
    assert set(without_lists.results) == {
        "topKComponents", "componentSumsForTokenDisplay", "topOutputTokenLogits", "componentTotals",
    }  # fmt: skip
    assert [*totals_of(with_totals).totals][:3] == [
        DerivedScalar.RESID_POST_EMBEDDING_NORM,
        DerivedScalar.MLP_WRITE_NORM,
        DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM,
    ]


def test_a_debug_request_may_leave_out_the_sums_of_its_ranking_and_nothing_else_changes() -> None:
    engine = small_model("gpt2").engine()
    whole, short = (inference_sub_request(replace(REQUEST, omits_top_k_sums=one)) for one in (False, True))
    ((of_whole, beside),) = answers_of_calls(engine, [[whole, short]])
    ((alone,),) = answers_of_calls(engine, [[short]])
    for answer in (beside, alone):
        for name in ("topKComponents", "componentSumsForTokenDisplay", "topOutputTokenLogits"):
            assert answer.top_k(name).nodes == of_whole.top_k(name).nodes
            for group, wanted in of_whole.top_k(name).groups.items():
                found = answer.top_k(name).groups[group]
                np.testing.assert_allclose(found.activations, wanted.activations)
                assert list(found.sums) == ([] if name == "topKComponents" else list(wanted.sums))
                for scalar, total in found.sums.items():
                    np.testing.assert_allclose(total.array, wanted.sums[scalar].array, atol=1e-12)
