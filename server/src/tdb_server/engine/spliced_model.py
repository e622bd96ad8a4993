"""What the engine runs."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.domain.hook_point import HookPoint
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import HookSite


@dataclass(frozen=True)
class SplicedModel:
    """A decoder, and the autoencoders that are spliced into it."""

    decoder: Decoder
    autoencoders: tuple[Autoencoder, ...]

    @property
    def last_residual(self) -> HookSite:
        """The residual stream that the final norm reads."""
        return HookPoint.RESID_POST_MLP, self.decoder.config.n_layers - 1
