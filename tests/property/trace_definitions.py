"""The objectives of traces, by their definitions, as functions of the residual stream before the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AttentionTraceType, LossConfig, Trace
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.finite_differences import gradient
from tests.property.plain_edits import deviation_of, latents_of, loss_value, pre_activations_of
from tests.property.plain_model import PlainModel, Seen, Spot

Definition = Callable[[Tensor], Tensor]
"""The residual stream [c, T, d] to the objective [c]."""
_SCALES = (
    HookPoint.ATTN_LN_SCALE,
    HookPoint.MLP_LN_SCALE,
    HookPoint.ATTN_POST_LN_SCALE,
    HookPoint.MLP_POST_LN_SCALE,
)


def residual_before(model: PlainModel, trace: Trace) -> Spot:
    layer_index = trace.node.layer_index
    assert layer_index is not None
    is_mlp = trace.node.node_type in (NodeType.MLP_NEURON, NodeType.MLP_AUTOENCODER_LATENT)
    if is_mlp and not model.is_parallel:
        return HookPoint.RESID_POST_ATTN, layer_index
    return (HookPoint.RESID_POST_MLP, layer_index - 1) if layer_index else (HookPoint.RESID_POST_EMB, None)


def definition(
    model: PlainModel,
    trace: Trace,
    base: Seen,
    autoencoders: Sequence[Autoencoder] = (),
    loss: LossConfig | None = None,
) -> Definition:
    """What is constant (norm scales, and what the trace lets no gradient through) is taken from `base`."""
    match trace.node.node_type:
        case NodeType.MLP_NEURON:
            return _neuron(model, trace, base)
        case NodeType.ATTENTION_HEAD if trace.attention_trace_type is AttentionTraceType.V:
            return _value(model, trace, base, direction_of_value(model, trace, base, autoencoders, loss))
        case NodeType.ATTENTION_HEAD:
            return _attention(model, trace, base)
        case _:
            return _latent(model, trace, base, autoencoders)


def direction_of_value(
    model: PlainModel,
    trace: Trace,
    base: Seen,
    autoencoders: Sequence[Autoencoder],
    loss: LossConfig | None,
) -> Tensor:
    """Where a traced value is projected [T, d]: what the downstream node, or the loss, would like to see."""
    if trace.downstream is not None:
        of_downstream = definition(model, trace.downstream, base, autoencoders)
        return gradient(of_downstream, base[residual_before(model, trace.downstream)][0])
    return direction_of_loss(model, base, loss)


def direction_of_loss(model: PlainModel, base: Seen, loss: LossConfig | None) -> Tensor:
    """Gradient of the loss at the last residual stream, the final norm's scale held constant [T, d]."""
    assert loss is not None
    scale = base[HookPoint.RESID_LN_F_SCALE, None]

    def of_residual(x: Tensor) -> Tensor:
        logits = model.norm(x, scale, model.names["final_norm"]) @ model.unembedding.T
        return loss_value(loss, model.capped(logits), model.logit_cap)

    return gradient(of_residual, base[HookPoint.RESID_POST_MLP, model.n_layers - 1][0])


def _neuron(model: PlainModel, trace: Trace, base: Seen) -> Definition:
    layer, (token, neuron) = trace.node.layer_index, trace.node.tensor_indices
    scale = base.get((HookPoint.MLP_LN_SCALE, layer))

    def of_residual(x: Tensor) -> Tensor:
        pre, up = model.mlp_inputs(layer, x, scale)
        has_single_input = not model.is_gated and not trace.post_act
        objective = pre if has_single_input else model.activate(pre) * up
        return objective[:, token, neuron]

    return of_residual


def _attention(model: PlainModel, trace: Trace, base: Seen) -> Definition:
    layer, (query, key, head) = trace.node.layer_index, trace.node.tensor_indices
    scale = base.get((HookPoint.ATTN_LN_SCALE, layer))
    base_q, base_k, _ = model.queries_keys_values(layer, base[residual_before(model, trace)], scale)

    def of_residual(x: Tensor) -> Tensor:
        q, k, _ = model.queries_keys_values(layer, x, scale)
        if trace.attention_trace_type is AttentionTraceType.Q:
            k = base_k
        if trace.attention_trace_type is AttentionTraceType.K:
            q = base_q
        logits = (q[:, query, head, None] * model.for_heads(k)[:, :, head]).sum(dim=-1)  # [c, T]
        logits = model.attention_capped(logits)
        if not trace.post_act:
            return logits[:, key]
        logits = logits.masked_fill(model.masked(x.shape[1], layer)[query], -torch.inf)
        return logits.exp()[:, key] / logits.exp().sum(dim=1)

    return of_residual


def _value(model: PlainModel, trace: Trace, base: Seen, direction: Tensor) -> Definition:
    layer, (query, key, head) = trace.node.layer_index, trace.node.tensor_indices
    scale, probs = base.get((HookPoint.ATTN_LN_SCALE, layer)), base[HookPoint.ATTN_QK_PROBS, layer]
    behind = model.times_behind(base, layer, "attn")[query]

    def of_residual(x: Tensor) -> Tensor:
        _, _, v = model.queries_keys_values(layer, x, scale)
        write = model.for_heads(v)[:, key, head] @ model.out_weights(layer)[head] * behind  # [c, d]
        return probs[0, query, key, head] * (write @ direction[query])

    return of_residual


def _latent(model: PlainModel, trace: Trace, base: Seen, autoencoders: Sequence[Autoencoder]) -> Definition:
    layer, (token, latent) = trace.node.layer_index, trace.node.tensor_indices
    autoencoder = next(one for one in autoencoders if one.site.node_type is trace.node.node_type)
    weights = autoencoder.layers[layer]
    block = model.mlp if autoencoder.site.is_mlp else model.attention

    def site_of(x: Tensor) -> Tensor:
        site: list[Tensor] = []

        def tap(place: HookPoint, at_layer: int | None, x: Tensor) -> Tensor:
            if place is autoencoder.site.hook_point:
                site.append(x)
            return base[place, at_layer] if place in _SCALES else x

        block(layer, x, tap)
        return site[0]

    deviation = deviation_of(
        site_of(base[residual_before(model, trace)])
    )  # of normed inputs, a scale like others

    def of_residual(x: Tensor) -> Tensor:
        encode = latents_of if trace.post_act else pre_activations_of
        return encode(weights, site_of(x), deviation)[:, token, latent]

    return of_residual
