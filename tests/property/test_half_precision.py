"""A model in bfloat16: its pass has three digits, and what is derived of that is float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionTraceType,
    Circuit,
    CircuitNode,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    NodeAblation,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenScoringType,
    Trace,
    ValueType,
)
from tdb_server.domain.results import (
    DerivedScalarsResult,
    MultipleTopKResult,
    ObjectiveValues,
    ScoredTokensResult,
)
from tdb_server.engine import logit_scalars
from tdb_server.model import precision
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.precision import widened
from torch.utils._python_dispatch import TorchDispatchMode

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import (
    Answer,
    answer,
    answers_of_calls,
    every_node,
    examples,
    inference,
    losses,
    numbers_by_node,
    of_every_node,
    prompts,
)
from tests.property.small_models import MODELS, VOCABULARY_SIZE, small_autoencoder, small_model

SITES = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)
DTYPES = (torch.float32, torch.bfloat16)
MEDIAN_ERROR = 0.03
"""Of a sum, by its norm: a random model's digits cancel more than a trained one's."""


@pytest.mark.parametrize("name", MODELS)
@examples(3)
@given(data=st.data())
def test_bfloat16_is_near_float32(name: str, data: st.DataObject) -> None:
    sub_request = data.draw(debug_sub_requests(small_model(name).config, n_tokens=5))
    wanted = of_every_node(inference_sub_request(sub_request))
    exact, rounded = (
        answers_of_calls(
            small_model(name, dtype).engine(*(small_autoencoder(name, site, dtype=dtype) for site in SITES)),
            [[wanted]],
        )[0][0]
        for dtype in DTYPES
    )
    if exact.loss is not None:
        assert rounded.loss == pytest.approx(exact.loss, rel=0.05, abs=0.1)
    errors = [
        np.linalg.norm(other - one) / np.linalg.norm(one)
        for one, other in zip(_sums(exact), _sums(rounded), strict=True)
        if np.linalg.norm(one) > 1e-2
    ]
    assert not errors or np.median(errors) < MEDIAN_ERROR


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
@examples(2)
@given(data=st.data())
def test_beside_baselines(name: str, data: st.DataObject) -> None:
    """As above, with nodes set to the baselines'; a circuit of everything keeps the objective."""
    config = small_model(name).config
    debug = data.draw(debug_sub_requests(config, n_tokens=5).filter(lambda one: one.upstream_trace is None))
    latent = NodeIndex(NodeType.MLP_AUTOENCODER_LATENT, 0, (4, 3))
    ablated = [
        NodeIndex(NodeType.ATTENTION_HEAD, 0, (4, 2, 1)),
        NodeIndex(NodeType.MLP_NEURON, 1, (4, 3)),
        latent,
    ]
    pairs = [
        NodeAblation(one, 0.0, one.node_type is NodeType.ATTENTION_HEAD, ValueType.BASELINE)
        for one in ablated
    ]
    added = NodeAblation(NodeIndex(NodeType.WHOLE_MLP, 1, (3, 0)), 0.3, False, ValueType.ADD)
    nodes = [
        CircuitNode(NodeType.WHOLE_HEAD, layer, None, head)
        for layer in range(config.n_layers)
        for head in range(config.n_heads)
    ]
    compared = replace(debug, baselines=((3, 1, 4, 1, 5), (9, 2, 6, 5, 3)), node_ablations=(*pairs, added))
    whole = replace(
        compared, node_ablations=(), circuit=Circuit(frozenset({NodeType.WHOLE_HEAD}), tuple(nodes))
    )
    found = []
    for dtype in DTYPES:
        engine = small_model(name, dtype).engine(
            *(small_autoencoder(name, site, dtype=dtype) for site in SITES)
        )
        found.append(answers_of_calls(engine, [[of_every_node(inference_sub_request(compared))]])[0][0])
        call = Call("0", (InferenceSubRequest(inference_sub_request(whole).inference),))
        events = [event for _, event in engine.run([call], lambda _: False)]
        (kept,) = (event.circuit for event in events if isinstance(event, ObjectiveValues))
        assert kept is not None
        digits = 1e-5 if dtype is torch.float32 else 0.02
        assert kept.objective == pytest.approx(kept.of_prompt, rel=digits, abs=digits)
    exact, rounded = found
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05, abs=0.1)
    errors = [
        np.linalg.norm(other - one) / np.linalg.norm(one)
        for one, other in zip(_sums(exact), _sums(rounded), strict=True)
        if np.linalg.norm(one) > 1e-2
    ]
    assert not errors or np.median(errors) < 2 * MEDIAN_ERROR, "differences have fewer digits"


def _sums(found: Answer) -> Iterator[npt.NDArray[np.float64]]:
    for result in found.results.values():
        if isinstance(result, MultipleTopKResult):
            for group in result.groups.values():
                for one in group.sums.values():
                    yield np.asarray(one.array, dtype=np.float64)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@examples(3)
@given(token_ids=prompts(), loss=losses())
def test_what_is_derived_has_all_digits_of_float32(
    name: str, token_ids: tuple[int, ...], loss: LossConfig
) -> None:
    """A write norm is the very activation that is given, times the norm of the weights as they are stored."""
    model = small_model(name, torch.bfloat16)
    found = answer(
        model.engine(),
        inference(token_ids, loss),
        activations=every_node(DerivedScalar.MLP_POST_ACT),
        norms=every_node(DerivedScalar.MLP_WRITE_NORM),
    )
    activations, norms = (numbers_by_node(found.top_k(one)) for one in ("activations", "norms"))
    weights = [block.mlp.weights.mlp_out_weight.double().norm(dim=0) for block in model.decoder.blocks]
    for node, activation in activations.items():
        assert node.layer_index is not None
        weight = weights[node.layer_index][node.tensor_indices[1]].item()
        assert norms.get(node, 0.0) == pytest.approx(activation * weight, rel=1e-6, abs=1e-30)


def test_weights_are_widened_when_they_are_read() -> None:
    layer = small_autoencoder("gpt2", Site.RESID_DELTA_MLP, dtype=torch.bfloat16).layers[0]
    wide = widened(layer)
    assert isinstance(wide, AutoencoderLayer)
    assert wide.encoder_weight.dtype == torch.float32
    assert torch.equal(wide.encoder_weight, layer.encoder_weight.float())
    assert layer.encoder_weight.dtype == torch.bfloat16
    decoder = small_model("gpt2", torch.float32).decoder
    assert decoder.widened() is decoder


SHAPE = (VOCABULARY_SIZE, 16)
"""Of the vocabulary's matrices: nothing else that is computed here has it."""


class _Float32Copies(TorchDispatchMode):
    """Counts tensors of a shape, either way round, that are made in float32."""

    n_found = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32:
                self.n_found += tuple(one.shape) in (SHAPE, SHAPE[::-1])
        return made


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_no_vocabulary_is_widened_as_a_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for all tokens' logits, traces through values, gradients set at logits, or what embeddings give."""
    decoder = small_model(name, torch.bfloat16).decoder
    assert decoder.unembedding.shape == SHAPE

    def run_all() -> list[Answer]:
        engine = small_model(name, torch.bfloat16).engine()
        return [answer(engine, run, **processing) for run, processing in _runs_that_read_the_vocabulary()]

    whole = run_all()
    monkeypatch.setattr(precision, "WIDENED_NUMBERS", 7 * SHAPE[1])
    monkeypatch.setattr(logit_scalars, "_N_EMBEDDINGS", 7)
    with _Float32Copies() as copies:
        in_parts = run_all()
        assert copies.n_found == 0
        decoder.unembedding.float()
        assert copies.n_found == 1
    for one, other in zip(whole, in_parts, strict=True):
        assert one.loss == other.loss
        for expected, found in zip(_numbers(one), _numbers(other), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _runs_that_read_the_vocabulary() -> Iterator[tuple[InferenceSpec, dict[str, ProcessingSpec]]]:
    prompt, loss = (3, 9, 27), LossConfig(LossName.LOGIT_MINUS_MEAN, (1,))
    some = {
        one.value: MultipleTopKSpec(((GroupId.SINGLETON, (one,)),), 2)
        for one in (DerivedScalar.LOGITS, DerivedScalar.MLP_ACT_TIMES_GRAD)
    }
    tokens = ScoredTokensSpec(
        DerivedScalar.MLP_ACT_TIMES_GRAD.value, TokenScoringType.UPVOTED_OUTPUT_TOKENS, 3
    )
    yield inference(prompt, loss), {**some, "tokens": tokens}
    head = NodeIndex(NodeType.ATTENTION_HEAD, 1, (2, 1, 0))
    yield inference(prompt, loss, Trace(head, AttentionTraceType.V)), some
    for pass_type in PassType:
        at_logits = AblationSpec(ActivationIndex(HookPoint.LOGITS, None, (0, 5), pass_type), 2.0)
        yield inference(prompt, loss, ablations=[at_logits]), some
    neuron = AblationSpec(ActivationIndex(HookPoint.MLP_POST_ACT, 0, (1, 4), PassType.BACKWARD), 1.0)
    reads = DerivedScalarsSpec(DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, None, 0, n_top_tokens=5)
    yield InferenceSpec(prompt, LossConfig(LossName.ZERO), ablations=(neuron,)), {"reads": reads}


def _numbers(found: Answer) -> Iterator[npt.NDArray[np.float64]]:
    """Of nodes and token lists, by node and rank."""
    yield from _sums(found)
    for result in found.results.values():
        if isinstance(result, MultipleTopKResult):
            yield np.array([value for _, value in sorted(numbers_by_node(result).items(), key=str)])
        elif isinstance(result, ScoredTokensResult):
            yield result.tokens.top_scalars
        elif isinstance(result, DerivedScalarsResult):
            assert result.top_tokens is not None
            yield result.top_tokens.top_scalars
