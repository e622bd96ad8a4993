"""Direct effects of everything that writes add up to the objective, its norm's scale held constant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import LossConfig, LossName
from torch import Tensor

from tests.property.finite_differences import gradient
from tests.property.plain_edits import loss_value
from tests.property.plain_model import PlainModel, Seen
from tests.property.requests import Answer, answer, every_node, examples, inference, losses, prompts
from tests.property.small_models import MODELS, small_model
from tests.property.trace_definitions import definition, direction_of_loss, residual_before
from tests.property.traces import traces_of

EFFECTS = {
    "embeddings": DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
    "neurons": DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
    "heads": DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
}


def total_effect(found: Answer) -> float:
    """The sum over all nodes, which must be the sum that is reported too."""
    total = 0.0
    for name, scalar in EFFECTS.items():
        (group,) = found.top_k(name).groups.values()
        of_nodes = float(group.activations.sum())
        assert of_nodes == pytest.approx(float(group.sums[scalar].array.sum()), abs=1e-9)
        total += of_nodes
    return total


def effect_of_biases(
    model: PlainModel, seen: Seen, direction: Tensor, n_attentions: int, n_mlps: int
) -> float:
    """What the output biases of so many attention and MLP blocks, written at every token, contribute."""
    written = [
        model.attn_out_bias(layer) * model.times_behind(seen, layer, "attn") for layer in range(n_attentions)
    ]
    written += [model.mlp_out_bias(layer) * model.times_behind(seen, layer, "mlp") for layer in range(n_mlps)]
    return sum(float((direction * one).sum()) for one in written)


@pytest.mark.parametrize("name", MODELS)
@examples(8)
@given(token_ids=prompts(1, 6), loss=losses().filter(lambda one: one.name is not LossName.PROBS))
def test_of_a_loss(name: str, token_ids: tuple[int, ...], loss: LossConfig) -> None:
    """These losses are linear in the logits, so nothing is left over but the final norm's own bias."""
    model = small_model(name)
    plain = model.plain
    found = answer(
        model.engine(), inference(token_ids, loss), **{one: every_node(EFFECTS[one]) for one in EFFECTS}
    )
    seen = plain.run(token_ids)
    direction = direction_of_loss(plain, seen, loss)
    of_biases = effect_of_biases(plain, seen, direction, plain.n_layers, plain.n_layers)
    final_bias = (plain.final_bias @ plain.unembedding.T)[None, None]
    assert found.loss is not None
    assert total_effect(found) + of_biases + loss_value(loss, final_bias).item() == pytest.approx(
        found.loss, abs=1e-6
    )


@pytest.mark.parametrize("name", MODELS)
@examples(5)
@given(data=st.data(), token_ids=prompts(2, 5))
def test_of_a_trace(name: str, data: st.DataObject, token_ids: tuple[int, ...]) -> None:
    """They add up to the direction times the residual stream before the node: later ones are zero."""
    model = small_model(name)
    kinds = ["Q", "K", "QK", "neuron"]
    trace = data.draw(traces_of(data.draw(st.sampled_from(kinds)), model.config, len(token_ids)))
    found = answer(
        model.engine(),
        inference(token_ids, trace=trace),
        **{one: every_node(EFFECTS[one]) for one in EFFECTS},
    )
    base: Seen = model.plain.run(token_ids)
    residual = base[residual_before(model.plain, trace)][0]
    direction = gradient(definition(model.plain, trace, base), residual)
    layer = trace.node.layer_index
    assert layer is not None
    is_behind_attention = trace.node.node_type is NodeType.MLP_NEURON and not model.plain.is_parallel
    of_biases = effect_of_biases(model.plain, base, direction, layer + is_behind_attention, layer)
    assert total_effect(found) + of_biases == pytest.approx(float((direction * residual).sum()), abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-biases-one-group", "gpt_neox"])
def test_biases_have_a_share(name: str) -> None:
    """The models above do have biases that matter, where their family has any."""
    plain = small_model(name).plain
    loss = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    seen = plain.run((3, 4))
    direction = direction_of_loss(plain, seen, loss)
    assert abs(effect_of_biases(plain, seen, direction, plain.n_layers, plain.n_layers)) > 1e-2
