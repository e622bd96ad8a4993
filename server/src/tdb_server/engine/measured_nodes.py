"""Activations of all nodes of chosen kinds, layer by layer, as a forward pass comes by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.examples.kinds import Kind
from tdb_server.model.hooks import Hooks
from tdb_server.model.mlp_inputs import MlpInputs
from tdb_server.model.precision import wide
from tdb_server.model.precomputed import Precomputed, value_write_norms

Take = Callable[[Kind, int, Tensor], None]
"""Takes a kind, a layer, and activations [B, cells, n] in float32."""
_OF_HEADS = (HookPoint.ATTN_V, HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_POST_LN_SCALE)


class MeasuredNodes:
    """What is measured of a model: neurons, latents of its dictionaries, and what heads move between tokens.

    A head's activation for a pair of tokens is the attention times the norm of what the value writes, as
    `unflattened_attn_write_norm` is.
    """

    def __init__(self, model: SplicedModel, precomputed: Precomputed, kinds: Sequence[Kind]) -> None:
        self._model, self._grams = model, precomputed.head_write_grams
        by_type = {kind.node_type: kind for kind in kinds}
        self._neurons, self._heads = by_type.get(NodeType.MLP_NEURON), by_type.get(NodeType.ATTENTION_HEAD)
        self._latents = [
            (kind, one) for one in model.autoencoders if (kind := by_type.get(one.site.node_type)) is not None
        ]
        inner = set()
        if any(one.site is Site.MLP_TRANSCODER for _, one in self._latents):
            inner.add(HookPoint.MLP_LN_SCALE)
        self._scale_point = model.decoder.write_scales.get(HookPoint.ATTN_QK_PROBS)
        if self._heads is not None and self._scale_point is not None:
            inner.add(self._scale_point)
        self._inner = frozenset(inner)

    @torch.no_grad()
    def measure(self, token_ids: Tensor, take: Take) -> None:
        """Runs rows of tokens [B, T], padded on the right, and hands over every layer's activations."""
        decoder = self._model.decoder
        mlp_inputs = MlpInputs(decoder)
        of_heads: dict[HookPoint, Tensor] = {}

        def hook(hook_point: HookPoint, layer: int | None, x: Tensor) -> Tensor:
            if layer is not None:
                if hook_point is HookPoint.MLP_POST_ACT and self._neurons is not None:
                    take(self._neurons, layer, x.float())
                elif hook_point in _OF_HEADS and self._heads is not None:
                    of_heads[hook_point] = x
                elif hook_point is HookPoint.RESID_DELTA_ATTN and self._heads is not None:
                    take(self._heads, layer, self._pairs(of_heads, layer))
                for kind, one in self._latents:
                    if one.site.hook_point is hook_point and layer in one.layers:
                        read = one.read_in_pass(layer, one.side_by_side(x), mlp_inputs)
                        take(kind, layer, one.layers[layer].encode(wide(read)).float())  # [B, T, n]
            mlp_inputs.see(hook_point, x)
            return x

        decoder.forward(decoder.embed(token_ids), Hooks(hook, self._inner))

    def _pairs(self, seen: dict[HookPoint, Tensor], layer: int) -> Tensor:
        """What heads move from token to token [B, pairs, H]: of each token, from those up to itself."""
        attention = self._model.decoder.blocks[layer].attention
        values = attention.by_head(wide(seen[HookPoint.ATTN_V]))  # [B, H, T, e]
        norms = value_write_norms(values, self._grams[layer])
        moved = wide(seen[HookPoint.ATTN_QK_PROBS]) * norms[:, :, None]  # [B, H, T, T]
        if self._scale_point is not None:
            moved = moved / wide(seen[self._scale_point])[:, None]
        query, key = torch.tril_indices(*moved.shape[-2:], device=moved.device)
        return moved[:, :, query, key].transpose(1, 2).float()
