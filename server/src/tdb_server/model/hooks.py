"""What sees the tensors of a forward pass, at its hook points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.model.backward_rules import BackwardRules

HookSite = tuple[HookPoint, int | None]
"""A hook point in a layer; None for those that no layer has."""
Hook = Callable[[HookPoint, int | None, Tensor], Tensor]
"""From a hook point, its layer and its tensor to the tensor to go on with."""
NORM_SCALES = frozenset(
    {
        HookPoint.ATTN_LN_SCALE,
        HookPoint.ATTN_POST_LN_SCALE,
        HookPoint.MLP_LN_SCALE,
        HookPoint.MLP_POST_LN_SCALE,
        HookPoint.RESID_LN_F_SCALE,
    }
)
INNER_HOOK_POINTS = NORM_SCALES | {HookPoint.MLP_PRE_ACT}
"""Hook points inside norms and gated MLPs."""


@dataclass(frozen=True)
class Hooks:
    """A hook, and where it must be called.

    Attributes:
        hook: may keep a tensor, replace it, or return one whose gradient is altered.
        inner: the inner hook points at which it is called; a norm or a gated MLP with none of them is
            computed in one step.
        rules: how the rows of the batch go back; None where all do by the derivative.
        computed_rows: by site, the rows whose tensor must be computed [b], as the hook does not replace all
            of it; sites where that is every row are absent. Only for passes without a gradient in which
            nothing inside the component is hooked: it is computed without hooks.
    """

    hook: Hook
    inner: frozenset[HookPoint] = INNER_HOOK_POINTS
    rules: BackwardRules | None = None
    computed_rows: Mapping[HookSite, Tensor] = field(default_factory=dict)

    def __call__(self, hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        """Calls the hook."""
        return self.hook(hook_point, layer_index, x)

    def compute_and_call(
        self, hook_point: HookPoint, layer_index: int, compute: Callable[[Tensor, Hooks], Tensor], x: Tensor
    ) -> Tensor:
        """Calls the hook with what is computed from `x` [B, ...]: 0 for rows that it replaces as a whole."""
        rows = self.computed_rows.get((hook_point, layer_index))
        if rows is None:
            return self(hook_point, layer_index, compute(x, self))
        computed = compute(x[rows], NO_HOOKS)
        found = computed.new_zeros(len(x), *computed.shape[1:])
        found[rows] = computed
        return self(hook_point, layer_index, found)


NO_HOOKS = Hooks(lambda hook_point, layer_index, x: x, frozenset())


def _hold_norm_scale(hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
    return x.detach() if hook_point in NORM_SCALES else x


HOLD_NORM_SCALES = Hooks(_hold_norm_scale, NORM_SCALES)
"""With these, norm scales are constants on the way back."""
