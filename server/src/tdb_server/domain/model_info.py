"""What a server holds: the facts that requests are checked against."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tdb_server.domain.node import NodeType
from tdb_server.domain.place import Place


class Site(Enum):
    """The tensors that an autoencoder can be trained on."""

    MLP_POST_ACT = "mlp_post_act"
    RESID_DELTA_MLP = "resid_delta_mlp"
    RESID_DELTA_ATTN = "resid_delta_attn"

    @property
    def is_mlp(self) -> bool:
        """Whether the site belongs to the MLP rather than to attention."""
        return self is not Site.RESID_DELTA_ATTN

    @property
    def place(self) -> Place:
        """Where the site is read."""
        return {
            Site.MLP_POST_ACT: Place.MLP_POST_ACT,
            Site.RESID_DELTA_MLP: Place.RESID_DELTA_MLP,
            Site.RESID_DELTA_ATTN: Place.RESID_DELTA_ATTN,
        }[self]

    @property
    def node_type(self) -> NodeType:
        """What its latents are called as nodes."""
        return NodeType.MLP_AUTOENCODER_LATENT if self.is_mlp else NodeType.ATTENTION_AUTOENCODER_LATENT

    @property
    def latent_place(self) -> Place:
        """Where its latents are read."""
        return (
            Place.ONLINE_MLP_AUTOENCODER_LATENT if self.is_mlp else Place.ONLINE_ATTENTION_AUTOENCODER_LATENT
        )


@dataclass(frozen=True, slots=True)
class AutoencoderInfo:
    """One loaded autoencoder: its site, its size and the layers it covers."""

    site: Site
    n_latents: int
    layers: tuple[int, ...]
    activation: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Name, weights and dimensions of the model that is served."""

    name: str
    digest: str
    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    n_neurons: int
    vocabulary_size: int
    context_length: int
    dtype: str
    autoencoders: tuple[AutoencoderInfo, ...] = ()

    def autoencoder(self, *, is_mlp: bool) -> AutoencoderInfo | None:
        """The one loaded for the MLP, or the one loaded for attention."""
        return next((one for one in self.autoencoders if one.site.is_mlp == is_mlp), None)
