"""A run: one forward and one backward pass over a batch, and what was kept of them.

The embedding output alone requires a gradient, so the graph holds activations only. The forward pass keeps
the places that somebody asked for; one `autograd.grad` from the sum of all rows' objectives gives their
gradients. Rows do not touch each other, so the gradient of the sum is each row's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import AttentionTraceType, InferenceSpec, Trace
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import INNER_PLACES, Decoder, Tap
from tdb_server.scalars.cells import (
    Cells,
    ablate,
    batch_cells,
    override_gradient,
)
from tdb_server.scalars.directions_of_interest import DirectionsOfInterest
from tdb_server.scalars.latents import (
    LatentAblation,
    autoencoder_of,
    is_autoencoder_place,
    splice,
)
from tdb_server.scalars.objectives import (
    Spot,
    loss,
    loss_direction,
    specific_trace,
    trace_place,
    traced_value,
)
from tdb_server.scalars.vocabulary_product import vocabulary_product
from tdb_server.scalars.weight_facts import WeightFacts

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        inference: how it is run.
        logit_tokens: the tokens whose logits are wanted beside the last; None for all of them.
    """

    inference: InferenceSpec
    logit_tokens: frozenset[int] | None = frozenset()

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.inference.token_ids)


@dataclass
class Needs:
    """What a batch must keep, by place; every layer of a place is kept."""

    values: set[Place] = field(default_factory=set)
    gradients: set[Place] = field(default_factory=set)
    site_gradients: set[Site] = field(default_factory=set)

    def update(self, other: Needs) -> None:
        """Adds what another needs."""
        self.values |= other.values
        self.gradients |= other.gradients
        self.site_gradients |= other.site_gradients


class BatchRun:
    """A batch while it runs, and afterwards: values, gradients and logits of every row."""

    def __init__(
        self,
        decoder: Decoder,
        facts: WeightFacts,
        autoencoders: Sequence[Autoencoder],
        rows: Sequence[Row],
        needs: Needs,
        check_cancelled: Callable[[], None],
    ) -> None:
        self.decoder = decoder
        self.facts = facts
        self.autoencoders = tuple(autoencoders)
        self.rows = rows
        self.n_tokens = max((row.n_tokens for row in rows), default=0)  # of the longest row
        self.needs = needs
        self.check_cancelled = check_cancelled
        self.values: dict[Spot, Tensor] = {}
        self.gradients: dict[Spot, Tensor] = {}
        self.site_gradients: dict[tuple[Site, int], Tensor] = {}
        self.losses: list[Tensor | None] = [None] * len(rows)
        self.traced: list[Tensor | None] = [None] * len(rows)
        self.traces = [
            None if row.inference.trace is None else specific_trace(row.inference.trace, autoencoders)
            for row in rows
        ]
        self.forward_seconds = self.backward_seconds = 0.0
        self.logit_gradients: dict[int, Tensor] = {}
        self.earlier_logit_gradients: dict[int, Tensor] = {}
        self.last_logits: list[Tensor] = []
        self._ablated_logits: list[Tensor] = []
        self._site_outputs: dict[tuple[Site, int], Tensor] = {}
        self._forward_cells: dict[Spot, list[Cells]] = {}
        self._backward_cells: dict[Spot, list[Cells]] = {}
        self._past_trace: set[int] = set()
        self.latent_ablations: dict[tuple[Site, int], list[LatentAblation]] = {}
        self._trace_spots = {
            trace_place(one)
            for trace in self.traces
            if trace is not None
            for one in (trace, trace.downstream)
            if one
        }
        if any(one is not None and one.attention_trace_type is AttentionTraceType.V for one in self.traces):
            self.needs.values.add(Place.ATTN_QK_PROBS)
        self._collect_ablations()

    @property
    def has_objective(self) -> bool:
        """Whether there is anything to differentiate."""
        return any(row.inference.loss or row.inference.trace for row in self.rows)

    def forward(self) -> None:
        """Runs the forward pass and the last token's logits."""
        start = perf_counter()
        padded = [[*row.inference.token_ids, *[0] * (self.n_tokens - row.n_tokens)] for row in self.rows]
        token_ids = torch.tensor(padded, device=self.decoder.device)
        with torch.set_grad_enabled(self.has_objective):
            embedding = self.decoder.embed(token_ids).requires_grad_(self.has_objective)
            tap = Tap(self._look, INNER_PLACES & self._places())
            self.final_residual = self.decoder.forward(embedding, tap)
            self.final_normed = self.decoder.final_normed(self.final_residual, tap)
            self._compute_logits()
        self._synchronize()
        self.forward_seconds = perf_counter() - start

    def backward(self) -> None:
        """Runs the backward pass from every row's objective, and lets go of the graph."""
        start = perf_counter()
        if self.has_objective:
            with torch.enable_grad():
                objectives = [self._objective(index) for index in range(len(self.rows))]
                total = torch.stack([one for one in objectives if one is not None]).sum()
            self._differentiate(total)
        self.values = {spot: x.detach() for spot, x in self.values.items()}
        self.last_logits = [x.detach() for x in self.last_logits]
        self.final_residual = self.final_residual.detach()
        self.final_normed = self.final_normed.detach()
        self._site_outputs.clear()
        self._ablated_logits.clear()
        self._synchronize()
        self.backward_seconds = perf_counter() - start

    def _differentiate(self, total: Tensor) -> None:
        spots = {spot: x for spot, x in self.values.items() if self._wants_gradient(spot)}
        logits = dict(enumerate(self._ablated_logits)) if Place.LOGITS in self.needs.gradients else {}
        inputs = [*spots.values(), *self._site_outputs.values(), *logits.values()]
        found = iter(torch.autograd.grad(total, inputs, allow_unused=True))
        self.gradients = _present(spots, found)
        self.site_gradients = _present(self._site_outputs, found)
        self.logit_gradients = _present(logits, found)

    def row_gradient(self, spot: Spot, row_index: int) -> Tensor:
        """A row's gradient at a place, padding included; zero where the objective cannot see it."""
        found = self.gradients.get(spot)
        return torch.zeros_like(self.values[spot][row_index]) if found is None else found[row_index]

    @cached_property
    def directions(self) -> DirectionsOfInterest:
        """Gradient of each row's objective at the last residual stream that it can see, once it is known."""
        found = []
        for index, (row, trace) in enumerate(zip(self.rows, self.traces, strict=True)):
            spot = self._last_residual if trace is None else trace_place(trace)
            found.append(self.row_gradient(spot, index)[: row.n_tokens])
        return DirectionsOfInterest(found)

    @property
    def _last_residual(self) -> Spot:
        return Place.RESID_POST_MLP, self.decoder.config.n_layers - 1

    def _wants_gradient(self, spot: Spot) -> bool:
        return spot[0] in self.needs.gradients or spot == self._last_residual or spot in self._trace_spots

    def _collect_ablations(self) -> None:
        mask = self.decoder.mask(self.n_tokens)
        for row_index, row in enumerate(self.rows):
            for spec in row.inference.ablations:
                index = spec.index
                if is_autoencoder_place(index.place):
                    site = autoencoder_of(index.place, self.autoencoders).site
                    assert index.layer_index is not None
                    ablation = LatentAblation(row_index, row.n_tokens, spec)
                    self.latent_ablations.setdefault((site, index.layer_index), []).append(ablation)
                    continue
                cells = batch_cells(index, spec.value, row_index, row.n_tokens, mask)
                of_pass = self._forward_cells if index.pass_type is PassType.FORWARD else self._backward_cells
                of_pass.setdefault((index.place, index.layer_index), []).append(cells)

    def _places(self) -> set[Place]:
        """The places that are kept or altered."""
        altered = {place for place, _ in (*self._forward_cells, *self._backward_cells)}
        return self.needs.values | self.needs.gradients | altered

    def _look(self, place: Place, layer_index: int | None, x: Tensor) -> Tensor:
        if place is Place.RESID_POST_MLP:
            check_cancelled = self.check_cancelled
            check_cancelled()
            if x.requires_grad:
                # Not through `self`, which holds the graph: a cycle across autograd is never collected.
                x.register_hook(lambda _: check_cancelled())  # type: ignore[no-untyped-call]
        spot = (place, layer_index)
        x = ablate(x, self._forward_cells.get(spot, ()))
        if (
            place in self.needs.values
            or place in self.needs.gradients
            or spot == self._last_residual
            or spot in self._trace_spots
        ):
            self.values[spot] = x
        self._past_trace |= {
            index for index, one in enumerate(self.traces) if one is not None and trace_place(one) == spot
        }
        x = override_gradient(x, self._gradient_cells(spot))
        for autoencoder in self.autoencoders:
            if autoencoder.site.place is place and layer_index in autoencoder.layers:
                x = self._splice(autoencoder, layer_index, x)
        return x

    def _gradient_cells(self, spot: Spot) -> list[Cells]:
        """The gradients to set at a place: none of a row whose trace starts there or before.

        Its own gradients never get there, but those of other rows take the whole batch's tensor along.
        """
        return [one for one in self._backward_cells.get(spot, ()) if one.index[0] not in self._past_trace]

    def _splice(self, autoencoder: Autoencoder, layer_index: int, x: Tensor) -> Tensor:
        key = (autoencoder.site, layer_index)
        ablations = [
            one
            for one in self.latent_ablations.get(key, ())
            if one.is_forward or one.row not in self._past_trace
        ]
        if ablations:
            x = splice(autoencoder.layers[layer_index], x, ablations)
        if autoencoder.site in self.needs.site_gradients and x.requires_grad:
            self._site_outputs[key] = x
        return x

    def _compute_logits(self) -> None:
        """The last token's logits of every row, after ablation."""
        cells_by_row = {index: self._logit_cells(index) for index in range(len(self.rows))}
        last = torch.stack(
            [self.final_normed[index, row.n_tokens - 1] for index, row in enumerate(self.rows)]
        )
        logits = vocabulary_product(last, self.decoder.weights.unembedding)  # [B, V]
        self._ablated_logits, self.last_logits = [], []
        for index in range(len(self.rows)):
            forward, backward = cells_by_row[index]
            altered = ablate(logits[index], forward)
            self._ablated_logits.append(altered)
            self.last_logits.append(override_gradient(altered, backward))

    def _logit_cells(self, row_index: int) -> tuple[list[Cells], list[Cells]]:
        """Ablations of a row's last logits [V], forward and backward."""
        row = self.rows[row_index]
        found: dict[PassType, list[Cells]] = {PassType.FORWARD: [], PassType.BACKWARD: []}
        for spec in row.inference.ablations:
            if spec.index.place is Place.LOGITS:
                token, entry = spec.index.tensor_indices
                if token is None or token == row.n_tokens - 1:
                    cells = Cells((slice(None) if entry is None else entry,), spec.value)
                    found[spec.index.pass_type].append(cells)
        return found[PassType.FORWARD], found[PassType.BACKWARD]

    def _set_at_earlier_logits(self, row_index: int) -> Tensor | float:
        """What gives logits before the last token's, which no loss sees, the gradients that the row sets."""
        row = self.rows[row_index]
        n_earlier = row.n_tokens - 1
        specs = [one for one in row.inference.ablations if one.index.place is Place.LOGITS]
        if not any(one.index.pass_type is PassType.BACKWARD and one.value != 0 for one in specs):
            return 0.0
        gradient = self.last_logits[row_index].new_zeros(n_earlier, len(self.decoder.weights.unembedding))
        is_set = torch.zeros_like(gradient, dtype=torch.bool)
        for one in specs:
            token, entry = one.index.tensor_indices
            if token == n_earlier:
                continue
            cells = (slice(None) if token is None else token, slice(None) if entry is None else entry)
            if one.index.pass_type is PassType.BACKWARD:
                gradient[cells] = one.value
            else:
                is_set[cells] = True
        self.earlier_logit_gradients[row_index] = gradient
        flowing = gradient.masked_fill(is_set, 0) @ self.decoder.weights.unembedding  # [T - 1, d]
        return (self.final_normed[row_index, :n_earlier] * flowing).sum()

    def _objective(self, row_index: int) -> Tensor | None:
        inference, n_tokens = self.rows[row_index].inference, self.rows[row_index].n_tokens
        if inference.loss is not None:
            self.losses[row_index] = loss(inference.loss, self.last_logits[row_index])
        trace = self.traces[row_index]
        if trace is None:
            found = self.losses[row_index]
            return found if found is None else found + self._set_at_earlier_logits(row_index)
        residual = self.values[trace_place(trace)][row_index, :n_tokens]
        probs = direction = None
        if trace.attention_trace_type is AttentionTraceType.V:
            query, key, head = trace.node.tensor_indices
            layer_index = trace.node.layer_index
            probs = self.values[Place.ATTN_QK_PROBS, layer_index][row_index, head, query, key].detach()
            direction = self._downstream_direction(row_index, trace)
        value = traced_value(self.decoder, self.autoencoders, trace, residual, probs, direction)
        self.traced[row_index] = value
        return value

    def _downstream_direction(self, row_index: int, trace: Trace) -> Tensor:
        """Where a traced value is projected: the downstream node's read direction, or the loss's [T, d]."""
        row = self.rows[row_index]
        if trace.downstream is None:
            assert row.inference.loss is not None
            return loss_direction(
                self.decoder, row.inference.loss, self.final_residual[row_index, : row.n_tokens]
            )
        before = self.values[trace_place(trace.downstream)][row_index, : row.n_tokens]
        residual = before.detach().requires_grad_()
        value = traced_value(self.decoder, self.autoencoders, trace.downstream, residual)
        (direction,) = torch.autograd.grad(value, residual)
        return direction

    def _synchronize(self) -> None:
        if self.decoder.device.type == "cuda":
            torch.cuda.synchronize(self.decoder.device)


def _present(asked: dict[Key, Tensor], found: Iterator[Tensor | None]) -> dict[Key, Tensor]:
    """The gradients that are not absent, under the keys they were asked for."""
    return {key: gradient for key, gradient in zip(asked, found, strict=False) if gradient is not None}
