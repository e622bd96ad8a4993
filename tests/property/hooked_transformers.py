"""Ablations done to a transformers model with hooks: a second implementation of what the engine does.

Attention is altered by standing in for the module's own attention function, everything else by hooks on the
modules whose input or output is the tensor in question.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import NodeAblation
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.property.plain_edits import latents_of, written_by


@torch.no_grad()
def ablated_logits(
    model: PreTrainedModel,
    token_ids: tuple[int, ...],
    ablations: Sequence[NodeAblation],
    autoencoders: Sequence[Autoencoder] = (),
) -> Tensor:
    """Logits [T, V] with the nodes' activations set."""
    with ExitStack() as stack:
        for layer, block in enumerate(_blocks(model)):
            of_layer = [one for one in ablations if one.node.layer_index == layer]
            neurons = [one for one in of_layer if one.node.node_type is NodeType.MLP_NEURON]
            heads = [one for one in of_layer if one.node.node_type is NodeType.ATTENTION_HEAD]
            stack.enter_context(_input_altered(_mlp_weights(block), _set_neurons(neurons)))
            stack.enter_context(_attention_altered(_attention(block), heads))
            for autoencoder in autoencoders:
                nodes = [one for one in of_layer if one.node.node_type is autoencoder.site.node_type]
                alter = _set_latents(autoencoder, layer, nodes)
                match autoencoder.site:
                    case Site.MLP_POST_ACT:
                        stack.enter_context(_input_altered(_mlp_weights(block), alter))
                    case Site.RESID_DELTA_MLP:
                        stack.enter_context(_output_altered(_mlp_out(block), alter))
                    case Site.RESID_DELTA_ATTN:
                        stack.enter_context(_output_altered(_attention_out(block), alter))
        return model(torch.tensor([token_ids])).logits[0]


def _blocks(model: Any) -> Sequence[Any]:
    if hasattr(model, "transformer"):
        return model.transformer.h
    return model.gpt_neox.layers if hasattr(model, "gpt_neox") else model.model.layers


def _attention(block: Any) -> nn.Module:
    names = ("attn", "attention", "self_attn")
    return next(getattr(block, name) for name in names if hasattr(block, name))


def _attention_out(block: Any) -> nn.Module:
    """What gives what attention adds: its output weights, or the norm behind them."""
    if hasattr(block, "post_feedforward_layernorm"):
        return block.post_attention_layernorm
    attention: Any = _attention(block)
    names = ("c_proj", "dense", "o_proj")
    return next(getattr(attention, name) for name in names if hasattr(attention, name))


def _mlp_weights(block: Any) -> nn.Module:
    names = ("c_proj", "dense_4h_to_h", "down_proj")
    return next(getattr(block.mlp, name) for name in names if hasattr(block.mlp, name))


def _mlp_out(block: Any) -> nn.Module:
    """What gives what the MLP adds: its output weights, or the norm behind them."""
    return getattr(block, "post_feedforward_layernorm", None) or _mlp_weights(block)


@contextmanager
def _input_altered(module: nn.Module, alter: Callable[[Tensor], Tensor]) -> Iterator[None]:
    hook = module.register_forward_pre_hook(lambda _, inputs: (alter(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _output_altered(module: nn.Module, alter: Callable[[Tensor], Tensor]) -> Iterator[None]:
    hook = module.register_forward_hook(lambda _, inputs, output: alter(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _attention_altered(attention: nn.Module, ablations: Sequence[NodeAblation]) -> Iterator[None]:
    """Sets a head's attention from a query to every token it sees, and attends anew with that."""
    modeling = sys.modules[type(attention).__module__]
    original: Any = modeling.eager_attention_forward  # type: ignore[attr-defined]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        output, probs = original(module, query, key, value, *args, **kwargs)
        if module is not attention:
            return output, probs
        for one in ablations:
            q, _, head = one.node.tensor_indices
            is_seen = probs[:, head, q] > 0
            probs[:, head, q] = torch.where(is_seen, one.value, 0.0)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return (probs @ value).transpose(1, 2), probs

    with patch.object(modeling, "eager_attention_forward", attend):
        yield


def _set_neurons(ablations: Sequence[NodeAblation]) -> Callable[[Tensor], Tensor]:
    def alter(x: Tensor) -> Tensor:
        x = x.clone()
        for one in ablations:
            token, neuron = one.node.tensor_indices
            x[:, token, neuron] = one.value
        return x

    return alter


def _set_latents(
    autoencoder: Autoencoder, layer_index: int, ablations: Sequence[NodeAblation]
) -> Callable[[Tensor], Tensor]:
    layer = autoencoder.layers.get(layer_index)

    def alter(site: Tensor) -> Tensor:
        if layer is None or not ablations:
            return site
        latents = latents_of(layer, site.double())
        altered = latents.clone()
        for one in ablations:
            token, latent = one.node.tensor_indices
            altered[:, token, latent] = one.value
        return site + written_by(layer, altered - latents, site.double()).to(site.dtype)

    return alter
