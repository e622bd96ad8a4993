"""Edges between components: edge attribution patching, alone or with integrated gradients.

    score(w -> r) = sum over tokens of (write_w - mean of baselines' write_w) . d loss / d (input of r)

That is how much the loss would fall, to first order, if r alone were to see of w what w writes in the
baseline (EAP: Syed, Rager and Conmy 2023, "Attribution patching outperforms automated circuit discovery").
One forward and one backward pass give it for all pairs: gradients are kept at queries, keys, values and
behind layers, and taken from there to each reader's own input, as if each read a copy of the stream.

A gradient says little where the loss is flat. EAP-IG (Hanna, Pezzelle and Belinkov 2024, "Have faith in
faithfulness") takes the mean of the gradients in several runs, whose embeddings go from the baseline's to the
prompt's in even steps. The runs are rows of the batch, the last of them the prompt itself.

    tokens in blocks:
        writes of all writers                       [writers, t, d]
        layer by layer, the mean over runs of
            gradients at inputs of heads            [queries, keys and values, t, d]
            gradients at the input of the MLP       [t, d]
        scores += products of the two over t and d, of the writers before each reader

Writers and readers are never there together for all tokens and layers; a block is as many tokens as let the
writes take so much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.activation_cost import EDGE_WRITES
from tdb_server.domain.edges import EdgeShape, EdgesResult, EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.engine.rows import Rows
from tdb_server.engine.transfers import Array, download
from tdb_server.model.edge_maps import at_products, head_input_gradients, head_writes, mlp_input_gradients

_QUERIES_KEYS_VALUES = (HookPoint.ATTN_Q, HookPoint.ATTN_K, HookPoint.ATTN_V)


def edges(
    all_rows: Rows, row_index: int, spec: EdgesSpec, check_cancelled: Callable[[], None]
) -> EdgesResult:
    """The edges of a row.

    Args:
        all_rows: after both passes.
        row_index: which.
        spec: what is wanted of it.
        check_cancelled: asked between blocks and layers.
    """
    config = all_rows.model.decoder.config
    shape = EdgeShape(config.n_layers, config.n_heads, config.n_key_value_heads, all_rows.plan.is_parallel)
    scores = _scores(_Readers(all_rows, row_index), shape, check_cancelled)
    (found,) = download([scores])
    writers, readers = _largest(found, spec.top_k)
    return EdgesResult(
        shape.writers(),
        shape.readers(),
        shape.writers_before(),
        writers,
        readers,
        found[writers, readers],
        found if spec.whole_matrix else None,
    )


def _scores(readers: _Readers, shape: EdgeShape, check_cancelled: Callable[[], None]) -> Tensor:
    """Of all pairs [writers, readers]; 0 where the writer does not come first."""
    at_mlps = [readers.at_mlp(layer) for layer in range(shape.n_layers)]
    products = [readers.at_products(layer) for layer in range(shape.n_layers)]
    at_logits = readers.at_logits()
    scores = at_logits.new_zeros(shape.n_writers, shape.n_readers)
    n_tokens, d_model = at_logits.shape
    n_together = max(1, EDGE_WRITES // (shape.n_writers * d_model))
    for start in range(0, n_tokens, n_together):
        tokens = slice(start, min(start + n_together, n_tokens))
        written = readers.written(tokens)
        first = 0
        for layer in range(shape.n_layers):
            check_cancelled()
            at_heads = readers.at_heads(layer, products[layer], tokens)
            for n_before, gradients in (
                (shape.before_heads(layer), at_heads),
                (shape.before_mlp(layer), at_mlps[layer][None, tokens]),
            ):
                last = first + len(gradients)
                scores[:n_before, first:last] += written[:n_before].flatten(1) @ gradients.flatten(1).T
                first = last
        scores[:, first] += written.flatten(1) @ at_logits[tokens].flatten()
    return scores


def _largest(scores: Array, k: int) -> tuple[Array, Array]:
    """The k pairs of the largest absolute scores, in order; equal ones in that of writers and readers."""
    sizes = np.abs(scores).ravel()
    candidates = np.flatnonzero(sizes)
    if len(candidates) > k:
        least = np.partition(sizes[candidates], -k)[-k]
        candidates = candidates[sizes[candidates] >= least]
    chosen = candidates[np.argsort(-sizes[candidates], kind="stable")][:k]
    writers, readers = np.unravel_index(chosen, scores.shape)
    return writers, readers


class _Readers:
    """One row's writes, and the gradients at what is read in its runs."""

    def __init__(self, all_rows: Rows, row_index: int) -> None:
        self._all_rows, self._runs = all_rows, all_rows.plan.steps_of(row_index)
        self._own = all_rows.part(slice(row_index, row_index + 1))
        self._n_tokens = all_rows.plan.rows[row_index].n_tokens

    def written(self, tokens: slice) -> Tensor:
        """What all writers write at some tokens, less what they write in the baselines [writers, t, d]."""
        own = self._own
        (embedding,) = own.contrasts(HookPoint.RESID_POST_EMB).tensors
        found = [embedding[:, tokens]]
        of_heads = own.write_contrasts(HookPoint.ATTN_V_OUT).tensors
        of_mlps = own.contrasts(HookPoint.RESID_DELTA_MLP).tensors
        for (layer, block), v_out, delta in zip(own.blocks, of_heads, of_mlps, strict=True):
            scale = own.write_scale(HookPoint.ATTN_V_OUT, layer)
            own_scale = None if scale is None else scale[0, tokens]
            found += [head_writes(block.attention, v_out[0, :, tokens], own_scale), delta[:, tokens]]
        return torch.cat(found)

    def at_logits(self) -> Tensor:
        """At the last residual stream [T, d]."""
        return self._mean(self._gradient(run, self._n_layers - 1) for run in self._runs)

    def at_mlp(self, layer_index: int) -> Tensor:
        """At the input of a layer's MLP [T, d]."""
        mlp = self._all_rows.model.decoder.blocks[layer_index].mlp
        return self._mean(
            mlp_input_gradients(mlp, self._before_mlp(run, layer_index), self._gradient(run, layer_index))
            for run in self._runs
        )

    def at_products(self, layer_index: int) -> list[Tensor]:
        """At the products of a layer's queries, keys and values, of each run [T, S, e]."""
        attention = self._all_rows.model.decoder.blocks[layer_index].attention
        return [
            at_products(
                attention,
                self._before_layer(run, layer_index),
                *(self._at(run, one, layer_index, PassType.BACKWARD) for one in _QUERIES_KEYS_VALUES),
            )
            for run in self._runs
        ]

    def at_heads(self, layer_index: int, products: Sequence[Tensor], tokens: slice) -> Tensor:
        """At the inputs of a layer's queries, keys and values, at some tokens [S, t, d]."""
        attention = self._all_rows.model.decoder.blocks[layer_index].attention
        pairs = zip(self._runs, products, strict=True)
        return self._mean(
            head_input_gradients(attention, self._before_layer(run, layer_index)[tokens], one[tokens])
            for run, one in pairs
        )

    @property
    def _n_layers(self) -> int:
        return len(self._all_rows.model.decoder.blocks)

    def _mean(self, of_runs: Iterable[Tensor]) -> Tensor:
        return reduce(torch.add, of_runs) / len(self._runs)

    def _at(
        self, run: int, hook_point: HookPoint, layer_index: int | None, pass_type: PassType = PassType.FORWARD
    ) -> Tensor:
        """One run's values or gradients at its own tokens, [..., T, n]."""
        return self._all_rows.at_layer(hook_point, layer_index, pass_type)[run][..., : self._n_tokens, :]

    def _gradient(self, run: int, layer_index: int) -> Tensor:
        """Behind a layer, which is also that at what its MLP adds [T, d]."""
        return self._at(run, HookPoint.RESID_POST_MLP, layer_index, PassType.BACKWARD)

    def _before_layer(self, run: int, layer_index: int) -> Tensor:
        if layer_index == 0:
            return self._at(run, HookPoint.RESID_POST_EMB, None)
        return self._at(run, HookPoint.RESID_POST_MLP, layer_index - 1)

    def _before_mlp(self, run: int, layer_index: int) -> Tensor:
        if self._all_rows.plan.is_parallel:
            return self._before_layer(run, layer_index)
        return self._at(run, HookPoint.RESID_POST_ATTN, layer_index)
