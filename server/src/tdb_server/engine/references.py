"""Prompts that rows are compared with. They are run forward alone, before the batch itself.

What is measured of a node is then measured of the difference between its activation and that in the baseline
prompt, and a node can be set to what it is there. Several baselines count with their mean. The objective of a
circuit is compared with those of its prompt and its baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.results import CircuitValues
from tdb_server.engine.cache import Cache
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.objectives import LossTerms, Predictions, losses
from tdb_server.engine.plan import Plan
from tdb_server.engine.transfers import Array
from tdb_server.model.autoencoder import Autoencoder


@dataclass(frozen=True)
class References:
    """What is kept of the prompts that rows are compared with. Indices are rows of its cache.

    Attributes:
        cache: of their forward pass, widened, zero in padding.
        logits: of `Plan.circuit_pairs`, at the tokens of the rows' losses, before their cap [n, V].
        capped: the same behind it.
        predictions: of the sets of baselines in `Plan.divergence_targets`; None where there are none.
    """

    cache: Cache
    logits: Tensor
    capped: Tensor
    predictions: Predictions | None

    def values(self, indices: Sequence[int], hook_point: HookPoint, layer_index: int | None) -> Tensor:
        """The mean of a hook point's values over some of them [...]."""
        return self._mean(self.cache.values[hook_point][layer_index or 0], indices)

    def writes(
        self, indices: Sequence[int], hook_point: HookPoint, scale_point: HookPoint, layer_index: int
    ) -> Tensor:
        """The mean over some of them of a hook point's values, each over the scale of its writes [...]."""
        x, scale = self.cache.values[hook_point][layer_index], self.cache.values[scale_point][layer_index]
        return torch.stack([x[one] / nonzero(scale[one]) for one in indices]).mean(dim=0)

    def contribution(
        self, indices: Sequence[int], layer_index: int, query: int, key: int, head: int, group: int
    ) -> Tensor:
        """What a head reads from a token, attention times value: the mean over some of them [e]."""
        probs, values = (
            self.cache.values[one][layer_index] for one in (HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V)
        )
        found = [probs[one, head, query, key] * values[one, group, key] for one in indices]
        return torch.stack(found).mean(dim=0)

    def latents(self, indices: Sequence[int], autoencoder: Autoencoder, layer_index: int) -> Tensor:
        """The mean of a dictionary's latents over some of them [T, n]."""
        read = self.cache.read[autoencoder.site, layer_index]
        layer = autoencoder.layers[layer_index]
        return torch.stack([layer.encode(read[one : one + 1])[0] for one in indices]).mean(dim=0)

    def latent_writes(
        self, indices: Sequence[int], autoencoder: Autoencoder, layer_index: int, scale: HookPoint | None
    ) -> Tensor:
        """The mean of latents times what each writes per unit there [T, n].

        Args:
            scale: the scale that writes are divided by, where there is one.
        """
        layer, found = autoencoder.layers[layer_index], []
        for one in indices:
            read = self.cache.read[autoencoder.site, layer_index][one : one + 1]
            written = layer.times_write_scale(layer.encode(read), read)[0]
            found.append(
                written if scale is None else written / nonzero(self.cache.values[scale][layer_index][one])
            )
        return torch.stack(found).mean(dim=0)

    @staticmethod
    def _mean(x: Tensor, indices: Sequence[int]) -> Tensor:
        if len(indices) == 1:
            return x[indices[0]]
        return torch.stack([x[one] for one in indices]).mean(dim=0)


def circuit_losses(plan: Plan, inputs: Inputs, references: References | None) -> Tensor:
    """Losses of the prompts that circuits are compared with, under the rows' own targets.

    Returns:
        One for each of `Plan.circuit_pairs`.
    """
    if references is None or not plan.circuit_pairs:
        return inputs.circuit_pairs[0].new_zeros(0, dtype=torch.float32)
    (rows, others), predictions = inputs.circuit_pairs, references.predictions
    host_rows = [row for row, _ in plan.circuit_pairs]
    host = LossTerms(*(one[host_rows] for one in inputs.host_loss_terms))
    terms = LossTerms(*(one[rows] for one in inputs.loss_terms))
    compared = references.logits, references.capped, predictions, inputs.circuit_divergences
    found = losses(host, terms, *compared)
    tokens = inputs.loss_tokens[rows]
    for own, along in zip(plan.losses_along_directions.values(), inputs.directions, strict=True):
        if not set(own) & set(host_rows):
            continue  # of rows without circuits, whose streams are not kept here
        hook_point, layer_index = along.stream.hook_point, along.stream.layer_index
        stream = references.cache.values[hook_point][layer_index or 0][others, tokens]
        for row, vector in zip(along.rows, along.vectors, strict=True):
            found = torch.where(rows == row, (stream * vector.to(stream.dtype)).sum(dim=-1), found)
    return found


def circuit_values(plan: Plan, row: int, row_losses: Array, reference_losses: Array) -> CircuitValues | None:
    """How much of its objective a row keeps; None where it is no circuit.

    Args:
        row_losses: the rows' own.
        reference_losses: as `circuit_losses` gives them.
    """
    pair_indices = [index for index, (of_row, _) in enumerate(plan.circuit_pairs) if of_row == row]
    if not pair_indices:
        return None
    of_prompt, *of_baselines = reference_losses[pair_indices].tolist()
    return CircuitValues(float(row_losses[row]), of_prompt, math.fsum(of_baselines) / len(of_baselines))


def nonzero(scale: Tensor) -> Tensor:
    """A norm's scale, with 1 in place of the zeros of padding."""
    return scale.masked_fill(scale == 0, 1)
