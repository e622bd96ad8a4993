"""Token lists are those of a direct computation: each node's own vector times the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionTraceType,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenScoringType,
    Trace,
)
from tdb_server.domain.results import ScoredTokensResult
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.finite_differences import gradient
from tests.property.plain_edits import latents_of, written_by
from tests.property.plain_model import PlainModel, Seen
from tests.property.requests import answer, examples, inference, prompts
from tests.property.small_models import (
    AUTOENCODER_KINDS,
    MAIN_MODELS,
    MODELS,
    VOCABULARY_SIZE,
    small_autoencoder,
    small_model,
)
from tests.property.trace_definitions import definition, residual_before

LOSS = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
NEURONS_AND_HEADS = (
    DerivedScalar.TOKEN_ATTRIBUTION,
    DerivedScalar.MLP_ACT_TIMES_GRAD,
    DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
)
WHOLE_BLOCKS = (DerivedScalar.WHOLE_HEAD_ACT_TIMES_GRAD, DerivedScalar.WHOLE_MLP_ACT_TIMES_GRAD)
LATENTS = (
    DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
)


def top_nodes(*scalars: DerivedScalar) -> MultipleTopKSpec:
    return MultipleTopKSpec(((GroupId.SINGLETON, scalars),), 12)


def scored(scoring: TokenScoringType, n_tokens: int = 10) -> ScoredTokensSpec:
    return ScoredTokensSpec("nodes", scoring, n_tokens)


def write_vector(
    model: PlainModel, node: NodeIndex, seen: Seen, autoencoders: Sequence[Autoencoder]
) -> Tensor:
    """What a node adds to the residual stream [d]."""
    layer, indices = node.layer_index, node.tensor_indices
    assert layer is not None or node.node_type is NodeType.LAYER
    match node.node_type:
        case NodeType.LAYER:
            return seen[HookPoint.RESID_POST_EMB, None][0, indices[0]]
        case NodeType.MLP_NEURON:
            write = seen[HookPoint.MLP_POST_ACT, layer][0][indices] * model.mlp_out_weight(layer)[indices[1]]
            return write * model.times_behind(seen, layer, "mlp")[indices[0]]
        case NodeType.ATTENTION_HEAD:
            query, key, head = indices
            value = model.for_heads(seen[HookPoint.ATTN_V, layer])[0, key, head]
            write = seen[HookPoint.ATTN_QK_PROBS, layer][0][indices] * (
                value @ model.out_weights(layer)[head]
            )
            return write * model.times_behind(seen, layer, "attn")[query]
        case NodeType.WHOLE_HEAD:
            query, head = indices
            values = model.for_heads(seen[HookPoint.ATTN_V, layer])[0, :, head]
            read = seen[HookPoint.ATTN_QK_PROBS, layer][0, query, :, head] @ values
            return read @ model.out_weights(layer)[head] * model.times_behind(seen, layer, "attn")[query]
        case NodeType.WHOLE_MLP:
            return seen[HookPoint.RESID_DELTA_MLP, layer][0, indices[0]]
        case node_type:
            autoencoder = next(one for one in autoencoders if one.site.node_type is node_type)
            weights = autoencoder.layers[layer]
            site = seen[autoencoder.site.hook_point, layer][0]
            latents = torch.zeros_like(latents_of(weights, site))
            latents[indices] = latents_of(weights, site)[indices]
            write = written_by(weights, latents, site)[indices[0]]
            if autoencoder.site is not Site.MLP_POST_ACT:
                return write
            return write @ model.mlp_out_weight(layer) * model.times_behind(seen, layer, "mlp")[indices[0]]


def read_vector(
    model: PlainModel,
    node: NodeIndex,
    seen: Seen,
    autoencoders: Sequence[Autoencoder],
    through: AttentionTraceType | None,
) -> Tensor:
    """Gradient of a node's pre-activation at the residual stream before it, at the token it reads [d]."""
    trace = Trace(node, through)
    token = node.tensor_indices[1 if through is AttentionTraceType.K else 0]
    of_residual = definition(model, trace, seen, autoencoders)
    return gradient(of_residual, seen[residual_before(model, trace)][0])[token]


def assert_ranked(result: ScoredTokensResult, row: int, scores: Tensor, excluded: Sequence[int] = ()) -> None:
    """A node's lists are the best and worst of the scores [V]."""
    listed = np.setdiff1d(np.arange(len(scores)), excluded)
    order = listed[np.argsort(-scores.numpy()[listed], kind="stable")]
    tokens, n_listed = result.tokens, min(result.tokens.top_ids.shape[1], len(order))
    best, worst = order[:n_listed], order[::-1][:n_listed]
    limit = 1e-5 * float(scores.abs().max())
    np.testing.assert_allclose(tokens.top_scalars[row], scores[best], atol=limit)
    np.testing.assert_allclose(tokens.bottom_scalars[row], scores[worst.copy()], atol=limit)
    for ids, expected in ((tokens.top_ids[row], best), (tokens.bottom_ids[row], worst)):
        np.testing.assert_allclose(scores[ids.astype(np.int64)], scores[expected.copy()], atol=limit)
        assert len(set(ids.tolist())) == n_listed
        assert not set(ids.tolist()) & set(excluded)
    leading = max(abs(scores[best[0]]), abs(scores[worst[0]]))
    np.testing.assert_allclose(tokens.top_normalized[row], scores[best] / leading, atol=1e-5)
    np.testing.assert_allclose(tokens.bottom_normalized[row], scores[worst.copy()] / leading, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@examples(3)
@given(token_ids=prompts(), n_tokens=st.sampled_from([1, 10, 500]), is_excluding=st.booleans())
def test_output_tokens_of_neurons_and_heads(
    name: str, token_ids: tuple[int, ...], n_tokens: int, is_excluding: bool
) -> None:
    model = small_model(name)
    excluded = (0, 17, 30) if is_excluding else ()
    found = answer(
        model.engine(excluded_tokens=excluded),
        inference(token_ids, LOSS),
        nodes=top_nodes(*NEURONS_AND_HEADS),
        tokens=scored(TokenScoringType.UPVOTED_OUTPUT_TOKENS, n_tokens),
    )
    seen, result = model.plain.run(token_ids), found.results["tokens"]
    assert isinstance(result, ScoredTokensResult)
    assert result.tokens.top_ids.shape[1] == min(n_tokens, VOCABULARY_SIZE - len(excluded))
    assert {node.node_type for node in result.nodes} > {NodeType.MLP_NEURON, NodeType.ATTENTION_HEAD}
    for node, row in zip(result.nodes, result.rows, strict=True):
        write = write_vector(model.plain, node, seen, [])
        scores = model.plain.unembedding @ (write * model.plain.final_gain)
        assert_ranked(result, row, scores - scores.mean(), excluded)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("baselines", [(), ((9, 8, 7, 6),)], ids=["alone", "compared"])
def test_output_tokens_of_whole_heads_and_mlps(name: str, baselines: tuple[tuple[int, ...], ...]) -> None:
    """Of what they add in the prompt, whatever it is compared with; nothing else is said of their tokens."""
    model, token_ids = small_model(name), (3, 41, 7, 22)
    found = answer(
        model.engine(),
        replace(inference(token_ids, LOSS), baselines=baselines),
        nodes=top_nodes(*WHOLE_BLOCKS),
        tokens=scored(TokenScoringType.UPVOTED_OUTPUT_TOKENS),
        read=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP),
        queries=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
    )
    seen, result = model.plain.run(token_ids), found.results["tokens"]
    assert isinstance(result, ScoredTokensResult)
    assert {node.node_type for node in result.nodes} == {NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP}
    for node, row in zip(result.nodes, result.rows, strict=True):
        scores = model.plain.unembedding @ (
            write_vector(model.plain, node, seen, []) * model.plain.final_gain
        )
        assert_ranked(result, row, scores - scores.mean())
    for other in ("read", "queries"):
        nothing = found.results[other]
        assert isinstance(nothing, ScoredTokensResult)
        assert (nothing.rows == -1).all()


@pytest.mark.parametrize("site", [Site.MLP_POST_ACT, Site.RESID_DELTA_MLP])
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(3)
@given(token_ids=prompts(), kind=st.sampled_from(AUTOENCODER_KINDS))
def test_output_tokens_of_latents(
    name: str, site: Site, token_ids: tuple[int, ...], kind: tuple[int | None, bool]
) -> None:
    model = small_model(name)
    autoencoders = [
        small_autoencoder(name, one, kind[0], norms_inputs=kind[1]) for one in (site, Site.RESID_DELTA_ATTN)
    ]
    found = answer(
        model.engine(*autoencoders),
        inference(token_ids, LOSS),
        nodes=top_nodes(*LATENTS),
        tokens=scored(TokenScoringType.UPVOTED_OUTPUT_TOKENS),
    )
    seen, result = model.plain.run(token_ids), found.results["tokens"]
    assert isinstance(result, ScoredTokensResult)
    assert len({node.node_type for node in result.nodes}) == len(autoencoders)
    for node, row in zip(result.nodes, result.rows, strict=True):
        write = write_vector(model.plain, node, seen, autoencoders)
        scores = model.plain.unembedding @ (write * model.plain.final_gain)
        assert_ranked(result, row, scores - scores.mean())


@pytest.mark.parametrize("name", MODELS)
@examples(2)
@given(token_ids=prompts())
def test_input_tokens_of_neurons_and_heads(name: str, token_ids: tuple[int, ...]) -> None:
    model = small_model(name)
    found = answer(
        model.engine(),
        inference(token_ids, LOSS),
        nodes=top_nodes(*NEURONS_AND_HEADS),
        mlp=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP),
        query=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
        key=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K),
    )
    seen = model.plain.run(token_ids)
    for how, node_type, through in (
        ("mlp", NodeType.MLP_NEURON, None),
        ("query", NodeType.ATTENTION_HEAD, AttentionTraceType.Q),
        ("key", NodeType.ATTENTION_HEAD, AttentionTraceType.K),
    ):
        result = found.results[how]
        assert isinstance(result, ScoredTokensResult)
        assert (result.rows >= 0).any()
        for node, row in zip(result.nodes, result.rows, strict=True):
            assert (row >= 0) == (node.node_type is node_type)
            if row >= 0:
                read = read_vector(model.plain, node, seen, [], through)
                assert_ranked(result, row, model.plain.token_embedding @ read)


@pytest.mark.parametrize("site", [Site.MLP_POST_ACT, Site.RESID_DELTA_MLP])
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(2)
@given(token_ids=prompts(), kind=st.sampled_from(AUTOENCODER_KINDS))
def test_input_tokens_of_latents(
    name: str, site: Site, token_ids: tuple[int, ...], kind: tuple[int | None, bool]
) -> None:
    """Latents of attention have none."""
    model = small_model(name)
    autoencoders = [
        small_autoencoder(name, one, kind[0], norms_inputs=kind[1]) for one in (site, Site.RESID_DELTA_ATTN)
    ]
    found = answer(
        model.engine(*autoencoders),
        inference(token_ids, LOSS),
        nodes=top_nodes(*LATENTS),
        mlp=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP),
        query=scored(TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q),
    )
    seen, result, through_query = model.plain.run(token_ids), found.results["mlp"], found.results["query"]
    assert isinstance(result, ScoredTokensResult)
    assert isinstance(through_query, ScoredTokensResult)
    assert (through_query.rows < 0).all()
    for node, row in zip(result.nodes, result.rows, strict=True):
        assert (row >= 0) == (node.node_type is NodeType.MLP_AUTOENCODER_LATENT)
        if row >= 0:
            read = read_vector(model.plain, node, seen, autoencoders, None)
            assert_ranked(result, row, model.plain.token_embedding @ read)
