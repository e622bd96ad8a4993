"""The estimate of a batch's memory is an upper bound of what torch allocates, and of its order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tdb_server.domain.activation_cost import activation_bytes
from tdb_server.domain.call import Call
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE, inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    AttentionComponent,
    AttentionTraceType,
    BackwardRule,
    Circuit,
    CircuitNode,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    LensSpec,
    LossConfig,
    LossName,
    MlpComponent,
    MultipleTopKSpec,
    NodeAblation,
    ProcessingSpec,
    Trace,
)
from tdb_server.engine.engine import Engine
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder
from tdb_server.workers.engine_loading import model_info

from tests.property.peak_memory import peak_bytes
from tests.property.scalars_of_sites import ranked_scalars
from tests.random_models import write_random_model

N_LATENTS = 256
N_CALLS = 6
MAX_TIMES = 10
"""How many times as much as was needed may be estimated, in the median."""
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_inner": 192, "n_positions": 512, "vocab_size": 1000},
    "llama": {
        "num_hidden_layers": 6,
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "intermediate_size": 128,
        "max_position_embeddings": 512,
        "vocab_size": 1000,
    },
}


SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)


def decoder_of(family: str, dtype: str, **sizes: int) -> Decoder:
    with TemporaryDirectory() as folder:
        sizes = _SIZES[family] | sizes
        path = write_random_model(Path(folder), family, bos_token_id=0, eos_token_id=0, **sizes)
        return load_decoder(path, "cpu", getattr(torch, dtype))


@cache
def loaded(family: str, has_autoencoders: bool, dtype: str = "float32") -> tuple[Engine, ModelInfo]:
    decoder = decoder_of(family, dtype)
    autoencoders = []
    if has_autoencoders:
        autoencoders = [
            autoencoder(decoder, site, top_k) for site, top_k in zip(SITES, (None, 8), strict=True)
        ]
    engine = Engine(decoder, autoencoders)
    return engine, model_info("small", "d", dtype, engine)


def autoencoder(decoder: Decoder, site: Site, top_k: int | None, n_latents: int = N_LATENTS) -> Autoencoder:
    """A random one: without a k, about half of its latents are active."""
    generator = torch.Generator().manual_seed(1)
    config = decoder.config
    widths = {Site.MLP_POST_ACT: config.n_neurons, Site.ATTN_V_OUT: config.n_heads * config.d_head}
    width = widths.get(site, config.d_model)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(decoder.dtype)

    found = Autoencoder(
        site,
        {
            layer_index: AutoencoderLayer(
                0.1 * noise(width), noise(n_latents, width), noise(n_latents), noise(n_latents, width), top_k
            )
            for layer_index in range(config.n_layers)
        },
    )
    found.compute_write_norms(decoder)
    found.count_active(decoder)
    return found


def random_call(dice: random.Random, info: ModelInfo) -> tuple[InferenceSubRequest, ...]:
    """Prompts of one length, many or few nodes, traces, ablations, latents, and company."""
    n_rows, longest = dice.choice([(1, 200), (1, 60), (2, 100), (4, 30), (6, 12)])
    n_tokens = dice.randint(2, longest)
    return tuple(random_sub_request(dice, info, n_tokens) for _ in range(n_rows))


def random_sub_request(dice: random.Random, info: ModelInfo, n_tokens: int) -> InferenceSubRequest:
    has_latents = bool(info.autoencoders)
    layer, token = dice.randrange(info.n_layers), dice.randrange(n_tokens)
    head = NodeIndex(NodeType.ATTENTION_HEAD, layer, (token, dice.randint(0, token), 1))
    neuron = NodeIndex(NodeType.MLP_NEURON, layer, (token, 3))
    latent = NodeIndex(NodeType.MLP_AUTOENCODER_LATENT, layer, (token, dice.randrange(N_LATENTS)))
    traces = [None, None, Trace(neuron), Trace(head, dice.choice(list(AttentionTraceType)))]
    ablated = [NodeAblation(one) for one in (head, neuron, *([latent] if has_latents else []))]
    return inference_sub_request(
        DebugSubRequest(
            token_ids=tuple(dice.randrange(info.vocabulary_size) for _ in range(n_tokens)),
            target_tokens=(1,),
            distractor_tokens=(2,),
            mlp_component=dice.choice([MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT])
            if has_latents
            else MlpComponent.NEURON,
            attention_component=(
                dice.choice(list(AttentionComponent)) if has_latents else AttentionComponent.ATTENTION_HEAD
            ),
            top_and_bottom_k=dice.choice([1, 10, 10, 50, 300]),
            node_ablations=tuple(dice.sample(ablated, dice.randint(0, len(ablated)))),
            upstream_trace=dice.choice(traces),
        )
    )


def times_too_much(engine: Engine, info: ModelInfo, call: Sequence[InferenceSubRequest]) -> float:
    """The estimate, divided by what was needed by an engine that remembers nothing."""
    return activation_bytes(info, call) / needed_bytes(engine, call)


def needed_bytes(engine: Engine, call: Sequence[InferenceSubRequest]) -> int:
    engine._ranker._remembered.clear()
    batch = [Call("1", tuple(call))]
    needed = peak_bytes(lambda: [None for _ in engine.run(batch, lambda _: False)])
    assert needed > 0
    return needed


@pytest.mark.parametrize("has_autoencoders", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_debug_requests_take_no_more_than_is_estimated(family: str, has_autoencoders: bool) -> None:
    engine, info = loaded(family, has_autoencoders)
    dice = random.Random(f"{family} {has_autoencoders}")
    found = [times_too_much(engine, info, random_call(dice, info)) for _ in range(N_CALLS)]
    assert min(found) >= 1
    assert median(found) <= MAX_TIMES


@pytest.mark.parametrize("has_autoencoders", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_derived_scalar_at_once_takes_no_more_than_is_estimated(
    family: str, has_autoencoders: bool
) -> None:
    engine, info = loaded(family, has_autoencoders)
    specs = {
        scalar.value: MultipleTopKSpec(((GroupId.SINGLETON, (scalar,)),), 20)
        for scalar in ranked_scalars(*(SITES if has_autoencoders else ()))
    }
    for n_tokens in (5, 100):
        assert times_too_much(engine, info, [InferenceSubRequest(run_of(n_tokens), specs)]) >= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_long_prompts_take_no_more_than_is_estimated(family: str, dtype: str) -> None:
    """There attention's pairs of tokens outweigh all else: of every layer, and of what is ranked together."""
    engine, info = loaded(family, False, dtype)
    debug = inference_sub_request(
        DebugSubRequest(
            tuple(range(500)), (1,), (2,), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 10
        )
    )
    assert 1 <= times_too_much(engine, info, [debug]) <= 4
    scalars = (
        DerivedScalar.ATTN_QK_PROBS,
        DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
        DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM,
    )
    specs = {one.value: MultipleTopKSpec(((GroupId.SINGLETON, (one,)),), 20) for one in scalars}
    for n_tokens in (100, 400):
        assert 1 <= times_too_much(engine, info, [InferenceSubRequest(run_of(n_tokens), specs)]) <= 6


@pytest.mark.parametrize("n_steps", [1, 5])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_edges_take_no_more_than_is_estimated(family: str, n_steps: int) -> None:
    engine, info = loaded(family, False)
    for n_tokens in (4, 40, 160):
        of = replace(run_of(n_tokens), baselines=(tuple(range(1, 1 + n_tokens)),))
        asked = InferenceSubRequest(of, {"edges": EdgesSpec(20, n_steps, whole_matrix=True)})
        assert 1 <= times_too_much(engine, info, [asked]) <= MAX_TIMES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("site", "scalar"),
    [
        (Site.ATTN_V_OUT, DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD),
        (Site.MLP_TRANSCODER, DerivedScalar.ONLINE_MLP_TRANSCODER_ACT_TIMES_GRAD),
    ],
)
def test_copies_that_dictionaries_read_take_no_more_than_is_estimated(
    site: Site, scalar: DerivedScalar, dtype: str
) -> None:
    """All heads side by side, or what MLPs read of a norm: of each layer, and more than one latent takes."""
    decoder = decoder_of("llama", dtype, head_dim=48, hidden_size=256, intermediate_size=16, vocab_size=100)
    specs = {"act": MultipleTopKSpec(((GroupId.SINGLETON, (DerivedScalar.MLP_ACT_TIMES_GRAD,)),), 2)}
    with_latents = specs | {"latents": MultipleTopKSpec(((GroupId.SINGLETON, (scalar,)),), 2)}
    needed, estimated = [], []
    for autoencoders, asked in (([], specs), ([autoencoder(decoder, site, 1, n_latents=1)], with_latents)):
        engine = Engine(decoder, autoencoders)
        call = [InferenceSubRequest(run_of(30), asked)]
        needed.append(needed_bytes(engine, call))
        estimated.append(activation_bytes(model_info("small", "d", dtype, engine), call))
    assert 0 < needed[1] - needed[0] <= estimated[1] - estimated[0]


@pytest.mark.parametrize("sizes", [{"intermediate_size": 1024}, {"vocab_size": 4000}])
@pytest.mark.parametrize("has_dictionary", [False, True])
def test_widened_weights_are_estimated(sizes: dict[str, int], has_dictionary: bool) -> None:
    """Of a short prompt in half precision most is what one matrix takes while it is float32."""
    decoder = decoder_of("llama", "bfloat16", hidden_size=128, num_hidden_layers=2, **sizes)
    found = [autoencoder(decoder, Site.MLP_POST_ACT, 8)] if has_dictionary else []
    engine = Engine(decoder, found)
    info = model_info("small", "d", "bfloat16", engine)
    specs = {
        one.value: MultipleTopKSpec(((GroupId.SINGLETON, (one,)),), 2)
        for one in ranked_scalars(*(one.site for one in found))
    }
    assert 1 <= times_too_much(engine, info, [InferenceSubRequest(run_of(3), specs)]) <= MAX_TIMES


@pytest.mark.parametrize(("family", "n_tokens"), [("gpt2", 60), ("llama", 60), ("llama", 300)])
def test_backward_rules_take_no_more_than_is_estimated(family: str, n_tokens: int) -> None:
    """Alone, and in a batch that goes back by all of them."""
    engine, info = loaded(family, False)
    plain = DebugSubRequest(
        tuple(range(n_tokens)), (1,), (2,), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 10
    )
    rules = [inference_sub_request(replace(plain, backward_rule=rule)) for rule in BackwardRule]
    for call in ([rules[2]], [rules[3]], rules):
        assert 1 <= times_too_much(engine, info, call) <= 6


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", "float32"), ("llama", "bfloat16")])
def test_objectives_alone_take_no_more_than_is_estimated(family: str, dtype: str) -> None:
    """Of rows that part at once, and of one that is traced; the first run makes tables, which stay."""
    engine, info = loaded(family, False, dtype)
    embedding = ActivationIndex(HookPoint.RESID_POST_EMB, None, (0, 0))
    rows = [
        InferenceSubRequest(replace(run_of(150), ablations=(AblationSpec(embedding, value),)))
        for value in (1.0, 2.0, 3.0)
    ]
    times_too_much(engine, info, rows[:1])
    assert 1 <= times_too_much(engine, info, rows) <= 6
    traced = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 1, (9, 4, 1)), AttentionTraceType.V)
    assert times_too_much(engine, info, [InferenceSubRequest(replace(run_of(10), trace=traced))]) >= 1


def test_places_and_lenses_take_no_more_than_is_estimated() -> None:
    engine, info = loaded("llama", True)
    layers, tokens = tuple(range(info.n_layers)), tuple(range(60))
    specs: dict[str, ProcessingSpec] = {
        "lens": LensSpec(HookPoint.RESID_POST_MLP, layers, tokens, (1, 2), 5),
        "logits": ActivationsSpec(HookPoint.LOGITS, (None,), tokens),
        "latents": ActivationsSpec(HookPoint.ONLINE_MLP_AUTOENCODER_LATENT, layers, tokens),
        "pairs": ActivationsSpec(HookPoint.ATTN_QK_PROBS, layers, tokens, PassType.BACKWARD),
    }
    for own in (dict(list(specs.items())[:2]), specs):
        assert times_too_much(engine, info, [InferenceSubRequest(run_of(60), own)]) >= 1


@pytest.mark.parametrize(("family", "has_autoencoders"), [("gpt2", False), ("llama", True)])
def test_prompts_to_compare_with_take_no_more_than_is_estimated(family: str, has_autoencoders: bool) -> None:
    """Several baselines of one row, circuits with and without any; and divergences from baselines."""
    engine, info = loaded(family, has_autoencoders)
    dice = random.Random(f"compared {family} {has_autoencoders}")
    found = []
    heads = Circuit(frozenset({NodeType.WHOLE_HEAD}), (CircuitNode(NodeType.WHOLE_HEAD, 1, None, 2),))
    parts = Circuit(frozenset({NodeType.MLP_NEURON, NodeType.WHOLE_MLP}), ())
    if has_autoencoders:
        parts = Circuit(frozenset({site.node_type for site in SITES}), ())
    for n_rows, n_baselines, circuit in ((1, 6, None), (2, 2, heads), (1, 1, parts), (1, 0, parts)):
        rows = [random_sub_request(dice, info, 40) for _ in range(n_rows)]
        baselines = tuple(tuple(dice.randrange(900) for _ in range(40)) for _ in range(n_baselines))
        if circuit is not None:
            loss = LossConfig(LossName.KL_FROM_BASELINE) if n_baselines else run_of(40).loss
            rows = [InferenceSubRequest(replace(run_of(40), loss=loss), one.processing) for one in rows]
        compared = [
            replace(one, inference=replace(one.inference, baselines=baselines, circuit=circuit))
            for one in rows
        ]
        found.append(times_too_much(engine, info, compared))
    assert min(found) >= 1
    assert median(found) <= 2 * MAX_TIMES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_baselines_predict_takes_no_more_than_is_estimated(dtype: str) -> None:
    """Of a vocabulary that is most of the model: many baselines, many rows, and circuits."""
    engine = Engine(decoder_of("llama", dtype, num_hidden_layers=2, vocab_size=20_000), [])
    info = model_info("small", "d", dtype, engine)
    loss, heads = LossConfig(LossName.KL_FROM_BASELINE), Circuit(frozenset({NodeType.WHOLE_HEAD}), ())
    ranked = {"nodes": MultipleTopKSpec(((GroupId.SINGLETON, (DerivedScalar.MLP_ACT_TIMES_GRAD,)),), 3)}
    found = []
    for n_rows, n_baselines, circuit, specs in ((1, 20, None, {}), (20, 1, None, ranked), (5, 2, heads, {})):
        others = tuple((one, 2, 3, 4) for one in range(n_baselines))
        run = replace(run_of(4), loss=loss, baselines=others, circuit=circuit)
        rows = [replace(run, token_ids=(row, 2, 3, 5)) for row in range(n_rows)]
        found.append(times_too_much(engine, info, [InferenceSubRequest(one, {**specs}) for one in rows]))
    assert min(found) >= 1
    assert median(found) <= MAX_TIMES


def run_of(n_tokens: int) -> InferenceSpec:
    loss = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    return InferenceSpec(tuple(range(n_tokens)), loss, None, (HOLD_FINAL_NORM_SCALE,))


def test_the_measure_knows_what_torch_allocates() -> None:
    """Three matrices of 4 MB, of which the first is gone before the third comes."""

    def work() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        second @ second

    assert 8_000_000 <= peak_bytes(work) < 9_000_000
