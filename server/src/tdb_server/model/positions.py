"""Where tokens are: which of them attention may look at, and by which angles queries and keys turn.

Both are tables that the layers of one kind share, made when they are first needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.model.config import DecoderConfig, Rotary
from tdb_server.model.rotary import rotary_frequencies

MIN_ROTARY_TOKENS = 1024


@dataclass(frozen=True)
class LayerKind:
    """What tells the positions of one layer from those of another."""

    window: int | None
    rotary: Rotary | None


def positions_of_layers(config: DecoderConfig, device: torch.device) -> list[Positions]:
    """Each layer's tables; layers of one kind have the same ones."""
    made: list[tuple[LayerKind, Positions]] = []
    found = []
    for layer_index in range(config.n_layers):
        kind = LayerKind(config.window_of(layer_index), config.rotary_of(layer_index))
        known = next((positions for one, positions in made if one == kind), None)
        if known is None:
            made.append((kind, known := Positions(config, kind, device)))
        found.append(known)
    return found


class Positions:
    """The tables of one kind of layer. The last of each is kept: most calls need one of the same length."""

    def __init__(self, config: DecoderConfig, kind: LayerKind, device: torch.device) -> None:
        """Tables are made on the device."""
        self._config, self._kind, self._device = config, kind, device
        scale = config.attention_scale
        self._half_scale: float = config.d_head**-0.25 if scale is None else scale**0.5
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._mask: Tensor | None = None
        self._barrier: Tensor | None = None

    def turns(self, tokens: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | None]:
        """What queries and keys are multiplied with for their scale and their rotation, at some tokens.

        Each carries half of the scale of attention. Without rotation, that alone and None.
        """
        if self._kind.rotary is None:
            return self._half_scale, None
        n_tokens = tokens.stop if isinstance(tokens, slice) else 0
        if self._rotary is None or len(self._rotary[0]) < n_tokens:
            self._rotary = self._scaled_frequencies(self._kind.rotary, n_tokens)
        cosine, sine = (table[tokens].to(dtype) for table in self._rotary)
        return cosine, sine

    def _scaled_frequencies(self, rotary: Rotary, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Tables long enough: they grow in powers of two, as far as the context goes.

        A model may claim a context that nobody's memory has room for.
        """
        n_rows = max(MIN_ROTARY_TOKENS, 1 << (n_tokens - 1).bit_length())
        n_rows = min(n_rows, self._config.context_length)
        cosine, sine = rotary_frequencies(rotary, n_rows, self._device)
        n_still = self._config.d_head - rotary.n_channels
        if n_still:
            cosine = torch.cat((cosine, cosine.new_ones(n_rows, n_still)), dim=1)
        return cosine * self._half_scale, sine * self._half_scale

    def mask(self, n_tokens: int) -> Tensor:
        """True where attention may not look: [T, T]."""
        if self._mask is None or len(self._mask) != n_tokens:
            ones = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=self._device)
            self._mask = ones.triu(1)
            if self._kind.window is not None:
                self._mask |= ones.tril(-self._kind.window)
        return self._mask

    def hide(self, logits: Tensor) -> None:
        """Makes logits [..., T, T] -inf where attention may not look, in place.

        On a CPU, `tril_` and `add_` take a quarter of the time of `masked_fill_`, and clear what is not a
        number. On a GPU one kernel is better than two.
        """
        n_tokens = logits.shape[-1]
        if logits.device.type != "cpu":
            logits.masked_fill_(self.mask(n_tokens), -torch.inf)
            return
        if self._barrier is None or len(self._barrier) != n_tokens:
            self._barrier = logits.new_zeros(n_tokens, n_tokens).masked_fill(self.mask(n_tokens), -torch.inf)
        logits.tril_()
        if self._kind.window is not None:
            logits.triu_(1 - self._kind.window)
        logits.add_(self._barrier)
