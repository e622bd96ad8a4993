"""Some adjacent rows of a batch after its passes: what was kept, and what several scalars need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeType
from tdb_server.engine.interventions import HEAD_HOOK_POINTS, PAIR_HOOK_POINTS, Intervention
from tdb_server.engine.latents import active_latents
from tdb_server.engine.passes import (
    Cache,
    Gradients,
    Inputs,
    Model,
    latent_interventions,
)
from tdb_server.engine.plan import (
    Plan,
    Row,
    autoencoder_of,
)
from tdb_server.engine.products import Layers
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.precomputed import Precomputed


class Rows:
    """Rows that stand together in a batch. What several derived scalars are made of is computed once.

    Attributes:
        model: what was run.
        precomputed: what follows from its weights alone.
        plan: of the batch.
        inputs: of the batch, on the device.
        cache: of the batch's forward pass.
        backward: of its backward pass; None before that.
        rows: which of the batch's rows they are.
    """

    def __init__(
        self,
        model: Model,
        precomputed: Precomputed,
        plan: Plan,
        inputs: Inputs,
        cache: Cache,
        backward: Gradients | None,
        rows: slice,
    ) -> None:
        self.model, self.precomputed, self.plan, self.inputs = model, precomputed, plan, inputs
        self.cache, self.backward, self.rows = cache, backward, rows
        self._layers: dict[object, Layers] = {}
        self._latents: dict[Site, tuple[Layers, Layers]] = {}
        self._of_layers: dict[int, Rows] = {}

    @property
    def planned(self) -> Sequence[Row]:
        """What is planned for them."""
        return self.plan.rows[self.rows]

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return len(self.planned)

    def values(self, hook_point: HookPoint) -> Layers:
        """A hook point's values after interventions, in every layer."""
        return self.once(("value", hook_point), lambda: [x[self.rows] for x in self.cache.values[hook_point]])

    def gradients(self, hook_point: HookPoint) -> Layers:
        """Gradients of the objectives at a hook point; zero where an objective cannot see it."""
        return self.once(("gradient", hook_point), lambda: list(self._gradients_at(hook_point)))

    def _gradients_at(self, hook_point: HookPoint) -> Sequence[Tensor]:
        assert self.backward is not None
        at = self.backward.at
        layered = hook_point.is_per_layer
        zeros: dict[torch.Size, Tensor] = {}
        found = []
        for layer, x in enumerate(self.cache.values[hook_point]):
            gradient = at.get((hook_point, layer if layered else None))
            if gradient is None:
                gradient = zeros.setdefault(x.shape, torch.zeros_like(x))
            found.append(gradient[self.rows])
        return found

    def once(self, key: object, tensors: Callable[[], Sequence[Tensor]]) -> Layers:
        """A tensor for each layer, made when it is first asked for under this key."""
        if key not in self._layers:
            self._layers[key] = Layers(tensors())
        return self._layers[key]

    @cached_property
    def directions(self) -> Tensor:
        """The directions of interest at their tokens [B, n, d]."""
        assert self.backward is not None
        return self.backward.directions[self.rows]

    @cached_property
    def direction_tokens(self) -> Tensor:
        """These tokens [B, n]."""
        return self.inputs.direction_tokens[self.rows]

    def seen_directions(self, depth: int) -> Tensor:
        """The directions for what is written at a depth: zero for rows whose objective does not see it."""
        if not self.has_traces:
            return self.directions
        is_seen = self.inputs.depths[self.rows] >= depth
        return self.directions * is_seen[:, None, None]

    @property
    def has_traces(self) -> bool:
        """Whether any row's objective is a traced node."""
        return any(row.trace is not None for row in self.planned)

    def at_direction_tokens(self, key: object, values: Layers, axes: Sequence[Dimension]) -> Layers:
        """Values at the tokens of the directions of interest, along the token axis."""
        key = "at direction tokens", key
        if key not in self._layers:
            axis = list(axes).index(Dimension.SEQUENCE_TOKENS)
            self._layers[key] = of_each(lambda x: self.picked(x, x.dim() - len(axes) + axis), values)
        return self._layers[key]

    def picked(self, x: Tensor, token_axis: int) -> Tensor:
        """Values [B, ...] at the tokens of the directions of interest."""
        rows = self.inputs.rows[: self.n_rows, None]
        return x.movedim(token_axis, 1)[rows, self.direction_tokens].movedim(1, token_axis)

    @cached_property
    def absent_tokens(self) -> Tensor | None:
        """Where rows have only padding [B, T]."""
        if not self.inputs.has_padding:
            return None
        tokens = torch.arange(self.plan.n_tokens, device=self.inputs.n_tokens.device)
        return tokens >= self.inputs.n_tokens[self.rows, None]

    def autoencoder(self, named: HookPoint | NodeType) -> Autoencoder:
        """The autoencoder that a hook point or a node type means."""
        return autoencoder_of(named, self.model.autoencoders)

    def interventions(self, autoencoder: Autoencoder, layer_index: int) -> list[Intervention]:
        """What is set of its latents and errors in the rows of the group, whose first row is 0."""
        return [
            Intervention(one.row - self.rows.start, one.n_tokens, one.ablation)
            for one in latent_interventions(self.plan, self.model, autoencoder, layer_index)
            if self.rows.start <= one.row < self.rows.stop
        ]

    def with_latents_of(self, layer_index: int) -> Rows:
        """The same rows for what is asked of one layer: others' latents are not computed."""
        if layer_index not in self._of_layers:
            autoencoders = [
                replace(one, layers={layer_index: one.layers[layer_index]})
                for one in self.model.autoencoders
                if layer_index in one.layers
            ]
            model = Model(self.model.decoder, tuple(autoencoders))
            self._of_layers[layer_index] = Rows(
                model, self.precomputed, self.plan, self.inputs, self.cache, self.backward, self.rows
            )
        return self._of_layers[layer_index]

    def latents(self, autoencoder: Autoencoder) -> tuple[Layers, Layers]:
        """The active latents of its layers, after interventions: which, and their activations [B, T, K]."""
        key = autoencoder.site
        if key not in self._latents:
            active = [
                active_latents(
                    autoencoder.layers[layer_index],
                    self.values(autoencoder.site.hook_point).tensors[layer_index],
                    self.interventions(autoencoder, layer_index),
                )
                for layer_index in sorted(autoencoder.layers)
            ]
            ids, values = (Layers(same_width(one)) for one in zip(*active, strict=True))
            absent = self.absent_tokens
            if absent is not None:
                values = of_each(
                    lambda x: x.masked_fill(absent.view(len(absent), *[1] * (x.dim() - 3), -1, 1), 0), values
                )
            self._latents[key] = ids, values
        return self._latents[key]

    def site_gradient(self, autoencoder: Autoencoder, layer_index: int) -> Tensor:
        """Gradient at the site's output, behind the splice [B, T, s]."""
        assert self.backward is not None
        found = self.backward.at_sites.get((autoencoder.site, layer_index))
        if found is None:
            return torch.zeros_like(self.values(autoencoder.site.hook_point).tensors[layer_index])
        return found[self.rows]


def of_each(compute: Callable[..., Tensor], *factors: Layers) -> Layers:
    """Something of each layer, of all at once where they are joined."""
    if all(one.together is not None for one in factors):
        return Layers.of(compute(*(one.together for one in factors)))
    return Layers([compute(*own) for own in zip(*(one.tensors for one in factors), strict=True)])


def axes_of(hook_point: HookPoint) -> tuple[Dimension, ...]:
    """A hook point's axes as they are laid out in a pass."""
    dimensions = hook_point.dimensions
    if hook_point in PAIR_HOOK_POINTS:
        query, key, head = dimensions
        return head, query, key
    if hook_point in HEAD_HOOK_POINTS:
        token, head, channel = dimensions
        return head, token, channel
    return dimensions


def same_width(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [B, T, K] of the same K: the last entry is repeated for ids, zeros are added for numbers."""
    width = max(one.shape[-1] for one in tensors)
    found = []
    for one in tensors:
        missing = width - one.shape[-1]
        if missing and one.is_floating_point():
            one = torch.nn.functional.pad(one, (0, missing))
        elif missing:
            one = torch.cat((one, one[..., -1:].expand(*one.shape[:-1], missing)), dim=-1)
        found.append(one)
    return found
