"""What MLPs read in a forward pass, which no hook point has."""

from __future__ import annotations

from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.model.backward_rules import BackwardRules, with_constant_scale
from tdb_server.model.decoder import Decoder


class MlpInputs:
    """What MLPs read in a forward pass, before the gain of their norms, put together at its hook points."""

    def __init__(self, decoder: Decoder, rules: BackwardRules | None = None) -> None:
        """For one pass, whose rows go back by these rules."""
        self._rules = rules
        before_layers = (HookPoint.RESID_POST_EMB, HookPoint.RESID_POST_MLP)
        self._streams = before_layers if decoder.config.parallel_blocks else (HookPoint.RESID_POST_ATTN,)
        self._blocks = decoder.blocks
        self._stream: Tensor | None = None
        self._scale: Tensor | None = None

    def see(self, hook_point: HookPoint, x: Tensor) -> None:
        """Takes what goes on from a hook point."""
        if hook_point in self._streams:
            self._stream = x
        elif hook_point is HookPoint.MLP_LN_SCALE:
            self._scale = with_constant_scale(x, self._rules)

    def of_layer(self, layer_index: int) -> Tensor:
        """[B, T, d], once the MLP of the layer has read it."""
        assert self._stream is not None
        centered = self._blocks[layer_index].mlp.norm.centered(self._stream)
        # Some families norm only what is added.
        return centered if self._scale is None else centered / self._scale
