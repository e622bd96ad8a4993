"""Dictionaries of the residual stream, of heads side by side, and transcoders, against the plain model.

What a dictionary reads and writes is taken from the plain forward pass here, all latents are computed
densely, and whatever is set is set there by edits.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionComponent,
    DebugSubRequest,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    ResidualStreamComponent,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
)
from tdb_server.domain.results import ScoredTokensResult, TokenPairAttributionResult
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.finite_differences import (
    STEP,
    Objective,
    assert_same,
    gradient,
    slopes_of_adding,
    slopes_of_scaling,
)
from tests.property.plain_dictionaries import (
    EMBEDDING,
    before_mlp,
    behind,
    dense_latents,
    read_by,
    reconstruction_of,
    scalar,
    setting,
    side_by_side,
    unit_writes,
)
from tests.property.plain_edits import (
    ablated_latents,
    loss_value,
    pre_activations_of,
    with_edit,
)
from tests.property.plain_model import Edit, PlainModel, Seen, Spot
from tests.property.requests import (
    answer,
    answers_of_calls,
    every_node,
    examples,
    inference,
    losses,
    numbers_by_node,
    numbers_of_layer,
    prompts,
)
from tests.property.small_models import N_LATENTS, TOP_K, small_autoencoder, small_model
from tests.property.trace_definitions import Definition, definition, direction_of_loss

SITES = (Site.ATTN_V_OUT, Site.RESID_POST_ATTN, Site.RESID_POST_MLP, Site.MLP_TRANSCODER)
MODELS = ("gpt2", "qwen3", "gemma2", "gpt_neox", "olmo2")
PARALLEL = "gpt_neox"
MODELS_AND_SITES = [
    (name, site) for name in MODELS for site in SITES if (name, site) != (PARALLEL, Site.RESID_POST_ATTN)
]
FINAL_SCALE = (HookPoint.RESID_LN_F_SCALE, None)
KINDS = ({}, {"top_k": TOP_K}, {"jumps": True})


def ablate(hook_point: HookPoint, layer: int, indices: tuple[int | None, ...], value: float) -> AblationSpec:
    return AblationSpec(ActivationIndex(hook_point, layer, indices), value)


def some_ablations(site: Site, last: int) -> list[AblationSpec]:
    return [
        ablate(site.latent_hook_point, 0, (0, 3), 0.0),
        ablate(site.latent_hook_point, 0, (last, 9), 0.8),
        ablate(site.error_hook_point, 0, (last, 2), 0.3),
        ablate(site.latent_hook_point, 1, (last, None), 0.4),
    ]


def of_loss(model: PlainModel, loss: LossConfig) -> Objective:
    return lambda seen: loss_value(loss, seen[HookPoint.LOGITS, None], model.logit_cap)


def slopes_of_tokens(
    model: PlainModel, token_ids: tuple[int, ...], objective: Objective, edits: dict[Spot, Edit]
) -> Tensor:
    """Slopes when whole embeddings are scaled, before any edit there looks at them [T, 1]."""
    base = model.run(token_ids)[EMBEDDING][0]
    directions = torch.eye(len(base), dtype=base.dtype)[:, :, None] * base
    keep = edits.get(EMBEDDING, lambda x: x)
    above, below = (
        objective(model.run(token_ids, {**edits, EMBEDDING: lambda x, by=by: keep(x + by * directions)}))
        for by in (STEP, -STEP)
    )
    return ((above - below).expand(len(base)) / (2 * STEP))[:, None]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("name", "site"), MODELS_AND_SITES)
@examples(2)
@given(token_ids=prompts(1, 5), loss=losses())
def test_latents_norms_errors_and_direct_effects(
    name: str, site: Site, kind: dict[str, int], token_ids: tuple[int, ...], loss: LossConfig
) -> None:
    """Effects of latents, of biases, of the skip and of the error add up to that of what is written."""
    model, dictionary = small_model(name), small_autoencoder(name, site, **kind)
    found = answer(
        model.engine(dictionary),
        inference(token_ids, loss),
        latents=every_node(scalar(site, "LATENT")),
        norms=every_node(scalar(site, "WRITE_NORM")),
        effects=every_node(scalar(site, "WRITE_TO_FINAL_RESIDUAL_GRAD")),
        errors=every_node(scalar(site, "ERROR")),
    )
    seen = model.plain.run(token_ids)
    direction = direction_of_loss(model.plain, seen, loss)
    for layer, weights in dictionary.layers.items():
        inputs = read_by(model.plain, site, seen, layer)[0]
        latents = dense_latents(weights, inputs)
        writes = unit_writes(model.plain, site, layer, weights, seen)
        assert ((latents > 0).sum(dim=1) <= kind.get("top_k", N_LATENTS)).all()
        numbers = {
            one: numbers_of_layer(found.top_k(one), layer, latents.shape)
            for one in ("latents", "norms", "effects")
        }
        assert_same(latents, numbers["latents"])
        assert_same(latents * writes.norm(dim=-1), numbers["norms"])
        assert_same(latents * torch.einsum("td,tnd->tn", direction, writes), numbers["effects"])
        written = side_by_side(site, seen[site.hook_point, layer])[0]
        errors = numbers_of_layer(found.top_k("errors"), layer, written.shape)
        assert_same(written - reconstruction_of(weights, inputs), errors)
        onto = direction
        if site is Site.ATTN_V_OUT:
            out_weights = model.plain.out_weights(layer).flatten(0, 1)
            onto = direction * behind(model.plain, seen, layer, "attn") @ out_weights.T
        rest = reconstruction_of(weights, inputs) - latents @ weights.directions
        total = numbers["effects"].sum() + ((errors + rest) * onto).sum()
        assert float(total) == pytest.approx(float((written * onto).sum()), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("name", "site"), MODELS_AND_SITES)
@examples(4)
@given(token_ids=prompts(1, 5), loss=losses())
def test_what_is_set_changes_the_forward_pass(
    name: str, site: Site, kind: dict[str, int], token_ids: tuple[int, ...], loss: LossConfig
) -> None:
    model, dictionary = small_model(name), small_autoencoder(name, site, **kind)
    ablations = some_ablations(site, len(token_ids) - 1)
    found = answer(
        model.engine(dictionary),
        inference(token_ids, loss, ablations=ablations),
        latents=every_node(scalar(site, "LATENT")),
    )
    seen = model.plain.run(token_ids, setting(model.plain, dictionary, ablations))
    objective = of_loss(model.plain, loss)
    expected = objective(seen).item()
    assert found.loss == pytest.approx(expected, abs=1e-6)
    assert abs(expected - objective(model.plain.run(token_ids)).item()) > 1e-6
    for layer, weights in dictionary.layers.items():
        earlier = [one for one in ablations if (one.index.layer_index or 0) < layer]
        before = model.plain.run(token_ids, setting(model.plain, dictionary, earlier))
        own = [
            one
            for one in ablations
            if one.index.layer_index == layer and one.index.hook_point is site.latent_hook_point
        ]
        latents = ablated_latents(dense_latents(weights, read_by(model.plain, site, before, layer)[0]), own)
        assert_same(latents, numbers_of_layer(found.top_k("latents"), layer, latents.shape))


def stream_of(model: PlainModel, trace: Trace) -> Spot:
    layer = trace.node.layer_index
    assert layer is not None
    match trace.node.node_type:
        case NodeType.RESID_POST_MLP_AUTOENCODER_LATENT:
            return HookPoint.RESID_POST_MLP, layer
        case NodeType.ATTENTION_AUTOENCODER_LATENT:
            return (HookPoint.RESID_POST_MLP, layer - 1) if layer else EMBEDDING
        case NodeType.RESID_POST_ATTN_AUTOENCODER_LATENT:
            return HookPoint.RESID_POST_ATTN, layer
        case _:
            return before_mlp(model, layer)


def definition_of(model: PlainModel, trace: Trace, base: Seen, dictionary: Autoencoder) -> Definition:
    """The traced pre-activation as a function of the stream; norm scales are those of `base`."""
    if not trace.node.node_type.is_latent:
        return definition(model, trace, base)
    layer, (token, latent) = trace.node.layer_index, trace.node.tensor_indices
    assert layer is not None
    weights, site = dictionary.layers[layer], dictionary.site

    def of_stream(x: Tensor) -> Tensor:
        inputs = x
        if site is Site.MLP_TRANSCODER:
            scale = base.get((HookPoint.MLP_LN_SCALE, layer))
            inputs = x if scale is None else model.centred(x) / scale
        if site is Site.ATTN_V_OUT:
            seen: Seen = {}

            def tap(place: HookPoint, at: int | None, y: Tensor) -> Tensor:
                seen[place, at] = y
                return base[place, at] if place is HookPoint.ATTN_LN_SCALE else y

            model.attention(layer, x, tap)
            inputs = side_by_side(site, seen[site.hook_point, layer])
        encode = dense_latents if trace.post_act else pre_activations_of
        return encode(weights, inputs)[:, token, latent]

    return of_stream


def slopes_of_latents(
    model: PlainModel,
    token_ids: tuple[int, ...],
    objective: Objective,
    edits: dict[Spot, Edit],
    dictionary: Autoencoder,
    layer: int,
    latents: Tensor,
) -> Tensor:
    """What the objective does when an active latent alone is scaled a little [T, n]."""
    spot = (dictionary.site.hook_point, layer)
    token, latent = latents.nonzero(as_tuple=True)
    directions = dictionary.layers[layer].directions
    writes = torch.zeros(len(token), len(latents), directions.shape[1], dtype=latents.dtype)
    writes[torch.arange(len(token)), token] = latents[token, latent, None] * directions[latent]
    shape = model.run(token_ids)[spot].shape[1:]
    slopes = torch.zeros_like(latents)
    slopes[token, latent] = slopes_of_adding(
        model, token_ids, objective, spot, edits, writes.view(len(token), *shape)
    )
    return slopes


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("name", "site"), MODELS_AND_SITES)
@examples(4)
@given(token_ids=prompts(2, 5), loss=losses(), is_traced=st.booleans(), is_ablated=st.booleans())
def test_act_times_grad(
    name: str,
    site: Site,
    kind: dict[str, int],
    token_ids: tuple[int, ...],
    loss: LossConfig,
    is_traced: bool,
    is_ablated: bool,
) -> None:
    """Towards a loss or a neuron. Gradients reach the embedding through latents that were set, too."""
    model, dictionary = small_model(name), small_autoencoder(name, site, **kind)
    last = len(token_ids) - 1
    ablations = some_ablations(site, last)[: 4 * is_ablated]
    trace = Trace(NodeIndex(NodeType.MLP_NEURON, 1, (last, 5))) if is_traced else None
    found = answer(
        model.engine(dictionary),
        inference(token_ids, None if is_traced else loss, trace, ablations),
        latents=every_node(scalar(site, "ACT_TIMES_GRAD")),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    )
    edits = setting(model.plain, dictionary, ablations)
    base = model.plain.run(token_ids, edits)
    edits = with_edit(edits, FINAL_SCALE, lambda x: base[FINAL_SCALE])
    objective = of_loss(model.plain, loss)
    if trace is not None:
        of_stream = definition(model.plain, trace, base)
        objective = lambda seen: of_stream(seen[before_mlp(model.plain, 1)])  # noqa: E731
    for layer, weights in dictionary.layers.items():
        earlier = [one for one in ablations if (one.index.layer_index or 0) < layer]
        before = model.plain.run(token_ids, setting(model.plain, dictionary, earlier))
        own = [
            one
            for one in ablations
            if one.index.layer_index == layer and one.index.hook_point is site.latent_hook_point
        ]
        latents = ablated_latents(dense_latents(weights, read_by(model.plain, site, before, layer)[0]), own)
        slopes = slopes_of_latents(model.plain, token_ids, objective, edits, dictionary, layer, latents)
        assert_same(slopes, numbers_of_layer(found.top_k("latents"), layer, slopes.shape))
    of_tokens = slopes_of_tokens(model.plain, token_ids, objective, edits)
    assert_same(of_tokens, numbers_of_layer(found.top_k("embeddings"), None, of_tokens.shape))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("name", "site"), MODELS_AND_SITES)
@examples(4)
@given(data=st.data(), token_ids=prompts(2, 5), post_act=st.booleans(), is_ablated=st.booleans())
def test_traces(
    name: str,
    site: Site,
    kind: dict[str, int],
    data: st.DataObject,
    token_ids: tuple[int, ...],
    post_act: bool,
    is_ablated: bool,
) -> None:
    """The value and every slope are the definition's; nodes at or after the traced one have none."""
    model, dictionary = small_model(name), small_autoencoder(name, site, **kind)
    token = data.draw(st.integers(0, len(token_ids) - 1))
    layer, latent = data.draw(st.integers(0, 1)), data.draw(st.integers(0, N_LATENTS - 1))
    trace = Trace(NodeIndex(site.node_type, layer, (token, latent)), None, post_act)
    ablations = some_ablations(site, 0)[: 3 * (is_ablated and layer == 1)]
    found = answer(
        model.engine(dictionary),
        inference(token_ids, None, trace, ablations),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
        neurons=every_node(DerivedScalar.MLP_ACT_TIMES_GRAD),
        heads=every_node(DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD),
        latents=every_node(scalar(site, "ACT_TIMES_GRAD")),
        effects=every_node(scalar(site, "WRITE_TO_FINAL_RESIDUAL_GRAD")),
    )
    edits = setting(model.plain, dictionary, ablations)
    base = model.plain.run(token_ids, edits)
    stream = stream_of(model.plain, trace)
    of_stream = definition_of(model.plain, trace, base, dictionary)
    assert found.activation_value == pytest.approx(of_stream(base[stream]).item(), abs=1e-6)

    def objective(seen: Seen) -> Tensor:
        return of_stream(seen[stream])

    of_tokens = slopes_of_tokens(model.plain, token_ids, objective, edits)
    listed_tokens = numbers_of_layer(found.top_k("embeddings"), None, of_tokens.shape)
    assert_same(of_tokens, listed_tokens, 1e-4)  # whole embeddings: differences are less exact
    direction = gradient(of_stream, base[stream][0])
    for at, weights in dictionary.layers.items():
        for place, listed in ((HookPoint.MLP_POST_ACT, "neurons"), (HookPoint.ATTN_QK_PROBS, "heads")):
            slopes = slopes_of_scaling(model.plain, token_ids, objective, (place, at), edits)
            assert_same(slopes, numbers_of_layer(found.top_k(listed), at, slopes.shape))
        own = [one for one in ablations if one.index.layer_index == at]
        of_latents = [one for one in own if one.index.hook_point is site.latent_hook_point]
        before = model.plain.run(token_ids)  # what is set, is set in the first layer
        inputs = read_by(model.plain, site, before if at == 0 else base, at)[0]
        latents = ablated_latents(dense_latents(weights, inputs), of_latents)
        writes = unit_writes(model.plain, site, at, weights, base)
        if at < layer:
            slopes = slopes_of_latents(model.plain, token_ids, objective, edits, dictionary, at, latents)
            effects = latents * torch.einsum("td,tnd->tn", direction, writes)
        else:
            slopes = effects = torch.zeros_like(latents)
        assert_same(slopes, numbers_of_layer(found.top_k("latents"), at, slopes.shape))
        assert_same(effects, numbers_of_layer(found.top_k("effects"), at, effects.shape))


@pytest.mark.parametrize("name", [one for one in MODELS if one != PARALLEL])
@examples(4)
@given(token_ids=prompts(2, 5))
def test_a_neuron_reads_the_latents_of_the_stream_before_it(name: str, token_ids: tuple[int, ...]) -> None:
    """Those of its own layer's resid.post_attn too, and not those behind its MLP."""
    model = small_model(name)
    dictionaries = [small_autoencoder(name, site) for site in (Site.RESID_POST_ATTN, Site.RESID_POST_MLP)]
    trace = Trace(NodeIndex(NodeType.MLP_NEURON, 1, (len(token_ids) - 1, 3)))
    effects = "WRITE_TO_FINAL_RESIDUAL_GRAD"
    found = answer(
        model.engine(*dictionaries),
        inference(token_ids, trace=trace),
        **{one.site.value: every_node(scalar(one.site, effects)) for one in dictionaries},
    )
    base = model.plain.run(token_ids)
    direction = gradient(definition(model.plain, trace, base), base[HookPoint.RESID_POST_ATTN, 1][0])
    for dictionary in dictionaries:
        for layer, weights in dictionary.layers.items():
            latents = dense_latents(weights, base[dictionary.site.hook_point, layer][0])
            is_seen = layer == 0 or dictionary.site is Site.RESID_POST_ATTN
            expected = latents * (direction @ weights.directions.T) * is_seen
            listed = found.top_k(dictionary.site.value)
            assert_same(expected, numbers_of_layer(listed, layer, expected.shape))


@pytest.mark.parametrize("name", MODELS)
@examples(3)
@given(token_ids=prompts(1, 5), loss=losses())
def test_all_at_once_leave_the_forward_pass_alone(
    name: str, token_ids: tuple[int, ...], loss: LossConfig
) -> None:
    """At most one for each node type: every latent and every error is set to what it is."""
    model = small_model(name)
    sites = (Site.MLP_POST_ACT, *(site for one, site in MODELS_AND_SITES if one == name))
    dictionaries = [small_autoencoder(name, site) for site in sites]
    seen = model.plain.run(token_ids)
    last, ablations = len(token_ids) - 1, []
    for dictionary in dictionaries:
        inputs = read_by(model.plain, dictionary.site, seen, 0)
        latents = dense_latents(dictionary.layers[0], inputs)[0, last]
        written = side_by_side(dictionary.site, seen[dictionary.site.hook_point, 0])
        errors = (written - reconstruction_of(dictionary.layers[0], inputs))[0, last]
        for hook_point, values in (
            (dictionary.site.latent_hook_point, latents),
            (dictionary.site.error_hook_point, errors),
        ):
            ablations += [
                ablate(hook_point, 0, (last, index), value) for index, value in enumerate(values.tolist())
            ]
    engine = model.engine(*dictionaries)
    spliced = answer(engine, inference(token_ids, loss, ablations=ablations)).loss
    bare = answer(engine, inference(token_ids, loss)).loss
    assert spliced == pytest.approx(bare, abs=1e-6)


@pytest.mark.parametrize("site", SITES)
@examples(3)
@given(first=prompts(2, 3), second=prompts(4, 5), loss=losses())
def test_batched_as_alone(
    site: Site, first: tuple[int, ...], second: tuple[int, ...], loss: LossConfig
) -> None:
    model, dictionary = small_model("llama"), small_autoencoder("llama", site)
    trace = Trace(NodeIndex(site.node_type, 1, (1, 4)))
    kinds = ("LATENT", "ACT_TIMES_GRAD", "WRITE_NORM", "WRITE_TO_FINAL_RESIDUAL_GRAD", "ERROR")
    specs = {one: every_node(scalar(site, one)) for one in kinds}
    backward = ActivationIndex(site.latent_hook_point, 0, (0, None), PassType.BACKWARD)
    runs = [
        inference(first, loss, ablations=some_ablations(site, len(first) - 1)),
        inference(second, trace=trace),
        inference(second, loss, ablations=[AblationSpec(backward, 0.5)]),
        inference(first, trace=replace(trace, post_act=True)),
    ]
    engine = model.engine(dictionary)
    together = answers_of_calls(engine, [[InferenceSubRequest(one, specs)] for one in runs])
    for run, (batched,) in zip(runs, together, strict=True):
        alone = answer(engine, run, **specs)
        assert batched.loss == pytest.approx(alone.loss, abs=1e-9)
        assert batched.activation_value == pytest.approx(alone.activation_value, abs=1e-9)
        for name in specs:
            one, other = (numbers_by_node(found.top_k(name)) for found in (batched, alone))
            assert one.keys() == other.keys()
            assert one == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
@examples(2)
@given(token_ids=prompts(2, 4), loss=losses())
def test_tokens_that_feed_a_transcoder(name: str, token_ids: tuple[int, ...], loss: LossConfig) -> None:
    """Embeddings along what a latent reads, through the norm with its scale held."""
    model, dictionary = small_model(name), small_autoencoder(name, Site.MLP_TRANSCODER)
    scoring = TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP
    found = answer(
        model.engine(dictionary),
        inference(token_ids, loss),
        latents=replace(every_node(scalar(Site.MLP_TRANSCODER, "LATENT")), top_and_bottom_k=3),
        tokens=ScoredTokensSpec("latents", scoring),
    )
    result = found.results["tokens"]
    assert isinstance(result, ScoredTokensResult)
    seen = model.plain.run(token_ids)
    embedding = model.plain.token_embedding
    listed = list(result.nodes)
    assert listed
    for position, node in enumerate(listed):
        layer, (token, latent) = node.layer_index, node.tensor_indices
        assert layer is not None
        row = dictionary.layers[layer].encoder_weight[latent]
        scale = seen.get((HookPoint.MLP_LN_SCALE, layer))
        scores = embedding @ row if scale is None else model.plain.centred(embedding) @ row / scale[0, token]
        best = int(result.tokens.top_ids[result.rows[position]][0])
        assert scores[best].item() == pytest.approx(scores.max().item(), rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
@examples(3)
@given(token_ids=prompts(2, 4), loss=losses())
def test_tokens_that_feed_latents_of_heads(name: str, token_ids: tuple[int, ...], loss: LossConfig) -> None:
    """Each token's part of what an active latent reads: attention · value · its own rows."""
    model, dictionary = small_model(name), small_autoencoder(name, Site.ATTN_V_OUT)
    found = answer(
        model.engine(dictionary),
        inference(token_ids, loss),
        latents=replace(every_node(scalar(Site.ATTN_V_OUT, "LATENT")), top_and_bottom_k=4),
        pairs=TokenPairAttributionSpec("latents", len(token_ids)),
    )
    result = found.results["pairs"]
    assert isinstance(result, TokenPairAttributionResult)
    seen = model.plain.run(token_ids)
    assert len(result.nodes) > 0
    for position, node in enumerate(result.nodes):
        layer, (token, latent) = node.layer_index, node.tensor_indices
        assert layer is not None
        row = dictionary.layers[layer].encoder_weight[latent].view(model.config.n_heads, -1)
        values = model.plain.for_heads(seen[HookPoint.ATTN_V, layer])[0]  # [T, H, e]
        parts = torch.einsum("kh,khe,he->k", seen[HookPoint.ATTN_QK_PROBS, layer][0, token], values, row)
        at = result.rows[position]
        order = torch.from_numpy(result.token_indices[at]).long()
        assert_same(parts[order], torch.from_numpy(result.attributions[at]).double())
        bias = dictionary.layers[layer].encoder_weight[latent] @ dictionary.layers[layer].pre_bias
        pre = pre_activations_of(
            dictionary.layers[layer], read_by(model.plain, Site.ATTN_V_OUT, seen, layer)[0, token]
        )[latent]
        rest = dictionary.layers[layer].latent_bias[latent] - bias
        assert float(parts.sum() + rest) == pytest.approx(float(pre), abs=1e-6)


def test_transcoder_latents_stand_for_mlps_in_the_node_table() -> None:
    model, dictionary = small_model("gpt2"), small_autoencoder("gpt2", Site.MLP_TRANSCODER)
    request = DebugSubRequest(
        (3, 7, 11), (1,), (2,), MlpComponent.TRANSCODER_LATENT, AttentionComponent.ATTENTION_HEAD, 5
    )
    sub_request = inference_sub_request(request)
    found = answer(model.engine(dictionary), sub_request.inference, **sub_request.processing)
    table = found.top_k("topKComponents")
    latents = [one for one in table.nodes if one.node_type is NodeType.MLP_TRANSCODER_LATENT]
    assert len(latents) >= 5
    assert not any(one.node_type is NodeType.MLP_NEURON for one in table.nodes)
    effects = answer(
        model.engine(dictionary),
        sub_request.inference,
        effects=every_node(scalar(Site.MLP_TRANSCODER, "WRITE_TO_FINAL_RESIDUAL_GRAD")),
    )
    by_node = numbers_by_node(effects.top_k("effects"))
    listed = numbers_by_node(table, GroupId.DIRECTION_WRITE)
    assert {one: listed[one] for one in latents} == pytest.approx(
        {one: by_node.get(one, 0.0) for one in latents}, abs=1e-9
    )
    tokens = found.results["inputTokensThatUpvoteMlp"]
    assert isinstance(tokens, ScoredTokensResult)
    assert all(tokens.rows[table.nodes.index(one)] >= 0 for one in latents)


MEASURES = {
    GroupId.WRITE_NORM: "WRITE_NORM",
    GroupId.ACT_TIMES_GRAD: "ACT_TIMES_GRAD",
    GroupId.DIRECTION_WRITE: "WRITE_TO_FINAL_RESIDUAL_GRAD",
    GroupId.ACTIVATION: "LATENT",
}


@pytest.mark.parametrize(
    "trace", [None, Trace(NodeIndex(NodeType.MLP_NEURON, 1, (2, 5)))], ids=["loss", "trace"]
)
def test_latents_of_the_stream_stand_beside_blocks_in_the_node_table(trace: Trace | None) -> None:
    """With the numbers that they have when they are asked for by name; all other nodes keep theirs."""
    sites = (Site.RESID_POST_ATTN, Site.RESID_POST_MLP)
    engine = small_model("gpt2").engine(*(small_autoencoder("gpt2", site) for site in sites))
    neurons_and_heads = MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD
    bare = DebugSubRequest((3, 7, 11), (1,), (2,), *neurons_and_heads, 5, upstream_trace=trace)
    asked = replace(bare, residual_stream_components=tuple(ResidualStreamComponent))
    run = inference_sub_request(asked).inference
    found, plain = (answer(engine, run, **inference_sub_request(one).processing) for one in (asked, bare))
    table = found.top_k("topKComponents")
    by_name = answer(
        engine,
        run,
        **{f"{site} {one}": every_node(scalar(site, one)) for site in sites for one in MEASURES.values()},
    )
    for group, measure in MEASURES.items():
        listed = numbers_by_node(table, group)
        others = numbers_by_node(plain.top_k("topKComponents"), group)
        for site in sites:
            of_all = numbers_by_node(by_name.top_k(f"{site} {measure}"))
            latents = {node: number for node, number in listed.items() if node.node_type is site.node_type}
            assert latents == pytest.approx({node: of_all.get(node, 0.0) for node in latents}, abs=1e-12)
            assert set(sorted(of_all, key=lambda node: of_all[node])[-5:]) <= set(latents)
            others |= latents
        assert listed == pytest.approx(others, abs=1e-12)
    sums = found.top_k("componentSumsForTokenDisplay")
    assert not any(node.node_type.is_latent for node in sums.nodes)
    tokens = found.results["upvotedOutputTokens"]
    assert isinstance(tokens, ScoredTokensResult)
    assert all(row >= 0 for row in tokens.rows)


@examples(3)
@given(token_ids=prompts(3, 4), loss=losses())
def test_the_order_of_dictionaries_says_nothing(token_ids: tuple[int, ...], loss: LossConfig) -> None:
    """A dictionary of what the MLP adds sees what is set of a transcoder, whichever is named first."""
    sites = (Site.RESID_DELTA_MLP, Site.MLP_TRANSCODER)
    dictionaries = [small_autoencoder("gpt2", site) for site in sites]
    ablations = [one for site in sites for one in some_ablations(site, len(token_ids) - 1)]
    one, other = (
        answer(small_model("gpt2").engine(*order), inference(token_ids, loss, ablations=ablations)).loss
        for order in (dictionaries, dictionaries[::-1])
    )
    assert one == other


def test_a_latent_that_is_given_can_be_set_in_bfloat16() -> None:
    """Which latents are active is decided once: in float32, from what the pass has."""
    site, token_ids = Site.RESID_POST_MLP, (3, 59, 43, 1, 34)
    model = small_model("gemma2", torch.bfloat16)
    dictionary = small_autoencoder("gemma2", site, jumps=True, dtype=torch.bfloat16)
    engine = model.engine(dictionary)
    loss = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    found = answer(engine, inference(token_ids, loss), latents=every_node(scalar(site, "LATENT")))
    layer = dictionary.layers[0]
    active = {node for node, value in numbers_by_node(found.top_k("latents")).items() if value > 0}
    assert active
    read: list[torch.Tensor] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        read.append(x)
        return type(layer).encode(wide_layer, x)

    wide_layer = engine.model.autoencoders[0].layers[0]
    assert wide_layer.encoder_weight.dtype == torch.float32
    in_layer = {node.tensor_indices for node in active if node.layer_index == 0}
    node = next(iter(sorted(in_layer)))
    spec = AblationSpec(ActivationIndex(site.latent_hook_point, 0, node), 0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wide_layer, "encode", encode)
        answer(engine, inference(token_ids, loss, ablations=[spec]))
    (x,) = read
    assert x.dtype == torch.float32
    assert in_layer == {tuple(one) for one in (wide_layer.encode(x)[0] > 0).nonzero().tolist()}
