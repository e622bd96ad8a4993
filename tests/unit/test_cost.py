from __future__ import annotations

import dataclasses

import pytest
from tdb_server.domain.cost import estimated_cost
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import AutoencoderInfo, ModelInfo, Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    Circuit,
    DebugSubRequest,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    ResidualStreamComponent,
)

INFO = ModelInfo("small", "d", "gpt2", 12, 768, 12, 12, 64, 3072, 50257, 1024, "float32")


def sub_request(n_tokens: int = 64, k: int = 10) -> InferenceSubRequest:
    return inference_sub_request(
        DebugSubRequest((0,) * n_tokens, (1,), (), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, k)
    )


def test_sums_over_token_pairs_are_certain():
    """Eight sums of attention, of two results with four groups each; the rest has one axis."""
    least = estimated_cost(INFO, [sub_request(n_tokens=100, k=1)]).least_response_bytes
    assert 8 * 100 * 100 * 4 < least < 8 * 100 * 100 * 4 + 30 * 100 * 4


def test_a_call_of_gpt2_small_at_256_tokens_takes_less_than_three_gigabytes():
    assert 2**29 < estimated_cost(INFO, [sub_request(256)]).activation_bytes < 3 * 2**30


@pytest.mark.parametrize("field", ["activation_bytes", "response_bytes", "least_response_bytes"])
def test_more_costs_more(field):
    def cost(*sub_requests: InferenceSubRequest) -> int:
        return getattr(estimated_cost(INFO, sub_requests), field)

    assert cost(sub_request()) < cost(sub_request(), sub_request())
    assert cost(sub_request(64)) < cost(sub_request(128))


def test_each_circuit_has_the_logits_of_all_that_it_is_compared_with():
    """Circuits of one prompt share their baselines; but each has its own loss of each of them."""

    def cost(n_rows: int, n_baselines: int) -> int:
        run = dataclasses.replace(
            sub_request(16).inference,
            baselines=tuple((token,) * 16 for token in range(n_baselines)),
            circuit=Circuit(frozenset({NodeType.WHOLE_HEAD}), ()),
        )
        return estimated_cost(INFO, [InferenceSubRequest(run)] * n_rows).activation_bytes

    of_logits = INFO.vocabulary_size * 4
    assert cost(64, 100) - cost(64, 10) - cost(1, 100) + cost(1, 10) > 63 * 90 * 2 * of_logits


def test_a_divergence_holds_what_baselines_predict():
    """Of each baseline, and for each row, what they predict together."""

    def cost(loss: LossName, n_rows: int, n_baselines: int) -> int:
        baselines = tuple((token,) * 16 for token in range(n_baselines))
        run = dataclasses.replace(sub_request(16).inference, loss=LossConfig(loss), baselines=baselines)
        return estimated_cost(INFO, [InferenceSubRequest(run)] * n_rows).activation_bytes

    of_logits = INFO.vocabulary_size * 4
    for n_rows, n_baselines in ((1, 1), (1, 20), (30, 1)):
        more = cost(LossName.KL_FROM_BASELINE, n_rows, n_baselines) - cost(LossName.ZERO, n_rows, n_baselines)
        assert more >= 4 * (n_rows + n_baselines) * of_logits


def test_k_and_company_lengthen_the_lists():
    def cost(*sub_requests: InferenceSubRequest) -> int:
        return estimated_cost(INFO, sub_requests).response_bytes

    assert cost(sub_request(k=10)) < cost(sub_request(k=20))
    assert cost(sub_request(), sub_request()) > 2 * cost(sub_request())  # each reports the other's nodes


def test_autoencoders_and_wide_types_cost_more():
    latents = AutoencoderInfo(Site.RESID_DELTA_MLP, 32768, tuple(range(12)), "relu")
    plain = estimated_cost(INFO, [sub_request()]).activation_bytes
    with_latents = dataclasses.replace(INFO, autoencoders=(latents,))
    assert estimated_cost(with_latents, [sub_request()]).activation_bytes > 2 * plain
    wide = dataclasses.replace(INFO, dtype="float64")
    assert 1.9 * plain < estimated_cost(wide, [sub_request()]).activation_bytes <= 2 * plain


def test_latents_of_the_residual_stream_lengthen_the_lists():
    sites = (Site.RESID_POST_ATTN, Site.RESID_POST_MLP)
    latents = tuple(AutoencoderInfo(site, 32768, tuple(range(12)), "topk(32)") for site in sites)
    info = dataclasses.replace(INFO, autoencoders=latents)
    neurons_and_heads = MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD

    def costs(*components: ResidualStreamComponent) -> tuple[int, int]:
        asked = DebugSubRequest(
            (0,) * 64, (1,), (), *neurons_and_heads, 10, residual_stream_components=components
        )
        cost = estimated_cost(info, [inference_sub_request(asked)])
        return cost.activation_bytes, cost.response_bytes

    places = tuple(ResidualStreamComponent)
    for none, one, both in zip(costs(), costs(places[0]), costs(*places), strict=True):
        assert none < one < both


def test_of_latents_those_that_may_be_active_cost():
    def cost(activation: str, n_active: int | None) -> int:
        latents = AutoencoderInfo(Site.RESID_DELTA_MLP, 32768, tuple(range(12)), activation, n_active)
        info = dataclasses.replace(INFO, autoencoders=(latents,))
        return estimated_cost(info, [sub_request()]).activation_bytes

    assert cost("relu", 8) == cost("topk(32)", None) == cost("topk(32)", 5)
    assert cost("relu", 8) < cost("relu", 100) < cost("relu", None) == cost("relu", 32768)


def test_nodes_are_counted_as_far_as_there_are_so_many():
    def cost(k: int) -> int:
        return estimated_cost(INFO, [sub_request(n_tokens=2, k=k)]).activation_bytes

    assert cost(10) < cost(100) < cost(10**6) == cost(10**7)
