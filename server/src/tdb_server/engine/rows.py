"""Some adjacent rows of a batch after its passes: what was kept, and what several scalars need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.engine.cache import Cache, Gradients
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.interventions import (
    HEAD_HOOK_POINTS,
    PAIR_HOOK_POINTS,
    Intervention,
)
from tdb_server.engine.latents import autoencoder_of
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_rows import Row
from tdb_server.engine.planned_interventions import latent_interventions
from tdb_server.engine.products import Layers, NodeCoordinates
from tdb_server.engine.references import References, nonzero
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Block
from tdb_server.model.precomputed import Precomputed

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that stand together in a batch. What several derived scalars are made of is computed once.

    Attributes:
        model: what was run.
        precomputed: what follows from its weights alone.
        plan: of the batch.
        inputs: of the batch, on the device.
        cache: of the batch's forward pass.
        backward: of its backward pass; None before that.
        references: the prompts that rows are compared with; None where there are none.
        span: which of the batch's rows they are.
        layers: those that are looked at.
    """

    model: SplicedModel
    precomputed: Precomputed
    plan: Plan
    inputs: Inputs
    cache: Cache
    backward: Gradients | None
    references: References | None
    span: slice
    layers: Sequence[int]
    _made: dict[object, Any] = field(default_factory=dict)

    def part(self, span: slice) -> Rows:
        """Some rows of the batch."""
        return replace(self, span=span, _made={})

    def after(self, backward: Gradients) -> Rows:
        """The same after the backward pass."""
        return replace(self, backward=backward, _made={})

    def of_layer(self, layer_index: int) -> Rows:
        """The same rows for what is asked of one layer: nothing of others is computed."""
        return self.once(("layer", layer_index), lambda: replace(self, layers=(layer_index,), _made={}))

    def once(self, key: object, make: Callable[[], Made]) -> Made:
        """What is made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found

    @property
    def planned(self) -> Sequence[Row]:
        """What is planned for them."""
        return self.plan.rows[self.span]

    @property
    def n_rows(self) -> int:
        """How many there are."""
        return len(self.planned)

    @property
    def blocks(self) -> list[tuple[int, Block]]:
        """The layers that are looked at."""
        return [(layer, self.model.decoder.blocks[layer]) for layer in self.layers]

    def layers_of(self, autoencoder: Autoencoder) -> list[tuple[int, AutoencoderLayer]]:
        """Those of these layers that an autoencoder has."""
        return [(layer, autoencoder.layers[layer]) for layer in self.layers if layer in autoencoder.layers]

    def at_layer(
        self, hook_point: HookPoint, layer_index: int | None, pass_type: PassType = PassType.FORWARD
    ) -> Tensor:
        """A hook point's values after interventions [B, ...], or gradients, zero where none is seen."""
        x = self.cache.values[hook_point][layer_index or 0]
        if pass_type is PassType.BACKWARD:
            assert self.backward is not None
            gradient = self.backward.at.get((hook_point, layer_index))
            like, kind = x, ("zeros", x.shape, x.dtype)
            x = self.once(kind, lambda: torch.zeros_like(like)) if gradient is None else gradient
        return x[self.span]

    def values(self, hook_point: HookPoint, pass_type: PassType = PassType.FORWARD) -> Layers:
        """The same in every layer."""
        layers = self.layers if hook_point.is_per_layer else (None,)
        return self.once(
            (hook_point, pass_type),
            lambda: Layers([self.at_layer(hook_point, one, pass_type) for one in layers]),
        )

    def gradients(self, hook_point: HookPoint) -> Layers:
        """Gradients of the objectives at a hook point; zero where an objective cannot see it."""
        return self.values(hook_point, PassType.BACKWARD)

    @property
    def has_baselines(self) -> bool:
        """Whether they are compared with baselines; of a group, all are or none."""
        return bool(self.planned[0].baselines)

    def contrasts(self, hook_point: HookPoint) -> Layers:
        """A hook point's values less their baselines'; the values themselves where there are no baselines."""
        values = self.values(hook_point)
        if not self.has_baselines:
            return values
        return self.once(
            ("contrasts", hook_point),
            lambda: of_each(torch.sub, values, self._of_baselines(hook_point)),
        )

    def write_contrasts(self, hook_point: HookPoint) -> Layers:
        """The same, as writes are told apart: over each one's scale, times that of the rows.

        Where writes are not divided by a scale, these are `contrasts`.
        """
        scales = self.write_scales(hook_point) if self.has_baselines else None
        if scales is None:
            return self.contrasts(hook_point)
        references, scale_point = self.references, self.model.decoder.write_scales[hook_point]
        assert references is not None
        writes = partial(references.writes, hook_point=hook_point, scale_point=scale_point)

        def compute() -> Layers:
            others = []
            for layer, scale in zip(self.layers, scales.tensors, strict=True):
                other = self.by_baselines(partial(writes, layer_index=layer))
                # Heads stand between rows and tokens.
                others.append(other * (scale.unsqueeze(1) if other.dim() > scale.dim() else scale))
            return of_each(torch.sub, self.values(hook_point), Layers(others))

        return self.once(("write contrasts", hook_point), compute)

    def by_baselines(self, compute: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """Something of each row's baselines [B, ...]; what rows share is computed once."""
        found = {one: compute(one) for one in {row.baselines for row in self.planned}}
        if len(found) == 1:
            (shared,) = found.values()
            return shared.expand(self.n_rows, *shared.shape)
        return torch.stack([found[row.baselines] for row in self.planned])

    def _of_baselines(self, hook_point: HookPoint) -> Layers:
        """The mean of the baselines' values, of each layer [B, ...]."""
        references = self.references
        assert references is not None
        layers = self.layers if hook_point.is_per_layer else (None,)
        of_layers = (partial(references.values, hook_point=hook_point, layer_index=one) for one in layers)
        return Layers([self.by_baselines(values) for values in of_layers])

    def before_layers(self, pass_type: PassType = PassType.FORWARD) -> Layers:
        """The residual stream before each layer, or gradients there."""
        return self.once(
            ("before layers", pass_type),
            lambda: Layers(
                [
                    self.at_layer(HookPoint.RESID_POST_MLP, layer - 1, pass_type)
                    if layer
                    else self.at_layer(HookPoint.RESID_POST_EMB, None, pass_type)
                    for layer in self.layers
                ]
            ),
        )

    def before_mlps(self) -> Layers:
        """The residual stream before each MLP."""
        return self.before_layers() if self.plan.is_parallel else self.values(HookPoint.RESID_POST_ATTN)

    def write_scale(self, hook_point: HookPoint, layer_index: int) -> Tensor | None:
        """What is written with the values of a hook point is divided by this, at the token it is written to.

        [B, T, 1]; None where it is not divided.
        """
        scale = self.model.decoder.write_scales.get(hook_point)
        return None if scale is None else nonzero(self.at_layer(scale, layer_index))

    def write_scales(self, hook_point: HookPoint) -> Layers | None:
        """The same in every layer."""
        found = [self.write_scale(hook_point, layer) for layer in self.layers]
        return Layers([one for one in found if one is not None]) if found[0] is not None else None

    def divided(self, x: Tensor, hook_point: HookPoint, where: NodeCoordinates, tokens: Tensor) -> Tensor:
        """Numbers of nodes [m] over the scales of their writes, at the tokens they are written to [m]."""
        scales = self.write_scales(hook_point)
        return x if scales is None else x / scales.at(where, tokens)[:, 0]

    @cached_property
    def directions(self) -> Tensor:
        """The directions of interest at their tokens [B, n, d]."""
        assert self.backward is not None
        return self.backward.directions[self.span]

    @cached_property
    def direction_tokens(self) -> Tensor:
        """These tokens [B, n]."""
        return self.inputs.direction_tokens[self.span]

    def seen_directions(self, depth: int) -> Tensor:
        """The directions for what is written at a depth: zero for rows whose objective does not see it."""
        if self.sees_all_writes:
            return self.directions
        is_seen = self.inputs.depths[self.span] >= depth
        return self.directions * is_seen[:, None, None]

    def seen_by_writes(self, hook_point: HookPoint, layer_index: int, depth: int) -> Tensor:
        """`seen_directions` over the scale of what is written with a hook point's values [B, n, d]."""
        directions, scale = self.seen_directions(depth), self.write_scale(hook_point, layer_index)
        return directions if scale is None else directions / self.picked(scale, 1)

    @property
    def sees_all_writes(self) -> bool:
        """Whether every row's objective is behind all layers."""
        return all(row.stream is None for row in self.planned)

    def at_direction_tokens(self, key: object, values: Layers, axes: Sequence[Dimension]) -> Layers:
        """Values at the tokens of the directions of interest, along the token axis."""
        axis = list(axes).index(Dimension.SEQUENCE_TOKENS)
        return self.once(
            ("at direction tokens", key),
            lambda: of_each(lambda x: self.picked(x, x.dim() - len(axes) + axis), values),
        )

    def picked(self, x: Tensor, token_axis: int) -> Tensor:
        """Values [B, ...] at the tokens of the directions of interest."""
        indices = self.inputs.row_indices[: self.n_rows, None]
        return x.movedim(token_axis, 1)[indices, self.direction_tokens].movedim(1, token_axis)

    @cached_property
    def absent_tokens(self) -> Tensor | None:
        """Where rows have only padding [B, T]."""
        if not self.inputs.has_padding:
            return None
        tokens = torch.arange(self.plan.n_tokens, device=self.inputs.n_tokens.device)
        return tokens >= self.inputs.n_tokens[self.span, None]

    def autoencoder(self, named: HookPoint | NodeType) -> Autoencoder:
        """The autoencoder that a hook point or a node type means."""
        return autoencoder_of(named, self.model.autoencoders)

    def in_these_rows(self, interventions: Iterable[Intervention]) -> list[Intervention]:
        """Those of interventions that are in these rows, of which the first is row 0."""
        rows = range(self.span.start, self.span.stop)
        return [replace(one, row=one.row - rows.start) for one in interventions if one.row in rows]

    def interventions(self, autoencoder: Autoencoder, layer_index: int) -> list[Intervention]:
        """What is set of an autoencoder's latents and errors."""
        return self.in_these_rows(latent_interventions(self.plan, self.model, autoencoder, layer_index))

    def read_by(self, autoencoder: Autoencoder, layer_index: int) -> Tensor:
        """What a dictionary reads, before anything is set of its latents [B, T, s]."""
        return self.cache.read[autoencoder.site, layer_index][self.span]

    def site_gradient(self, autoencoder: Autoencoder, layer_index: int) -> Tensor:
        """Gradient at the site's output, behind the splice [B, T, s]."""
        assert self.backward is not None
        found = self.backward.at_sites.get((autoencoder.site, layer_index))
        if found is None:
            return torch.zeros_like(self.read_by(autoencoder, layer_index))
        return found[self.span]


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
