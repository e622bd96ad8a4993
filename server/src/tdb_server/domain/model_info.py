"""What a server holds: the facts that requests are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tdb_server.domain.hook_point import DICTIONARY_HOOK_POINTS, HookPoint
from tdb_server.domain.node import NodeType


class Site(Enum):
    """Where a dictionary reads and writes. All but the transcoder's write where they read."""

    MLP_POST_ACT = "mlp_post_act"
    RESID_DELTA_MLP = "resid_delta_mlp"
    RESID_DELTA_ATTN = "resid_delta_attn"
    ATTN_V_OUT = "attn_v_out"
    RESID_POST_ATTN = "resid_post_attn"
    RESID_POST_MLP = "resid_post_mlp"
    MLP_TRANSCODER = "mlp_transcoder"

    @property
    def is_mlp(self) -> bool:
        """Whether the site belongs to the MLP."""
        return self in (Site.MLP_POST_ACT, Site.RESID_DELTA_MLP, Site.MLP_TRANSCODER)

    @property
    def is_attention(self) -> bool:
        """Whether the site belongs to attention: what is read there comes from all tokens attended to."""
        return self in (Site.RESID_DELTA_ATTN, Site.ATTN_V_OUT)

    @property
    def is_stream(self) -> bool:
        """Whether the site is the residual stream itself, of which blocks are parts."""
        return self in (Site.RESID_POST_ATTN, Site.RESID_POST_MLP)

    @property
    def hook_point(self) -> HookPoint:
        """Where the dictionary writes."""
        return HookPoint.RESID_DELTA_MLP if self is Site.MLP_TRANSCODER else HookPoint[self.name]

    @property
    def node_type(self) -> NodeType:
        """What its latents are called as nodes."""
        return _NODE_TYPES[self]

    @property
    def latent_hook_point(self) -> HookPoint:
        """Where its latents are read."""
        return DICTIONARY_HOOK_POINTS[self.node_type][0]

    @property
    def error_hook_point(self) -> HookPoint:
        """Where what it fails to reconstruct is read."""
        return DICTIONARY_HOOK_POINTS[self.node_type][1]


_NODE_TYPES = {
    Site.MLP_POST_ACT: NodeType.MLP_AUTOENCODER_LATENT,
    Site.RESID_DELTA_MLP: NodeType.MLP_AUTOENCODER_LATENT,
    Site.RESID_DELTA_ATTN: NodeType.ATTENTION_AUTOENCODER_LATENT,
    Site.ATTN_V_OUT: NodeType.ATTENTION_AUTOENCODER_LATENT,
    Site.RESID_POST_ATTN: NodeType.RESID_POST_ATTN_AUTOENCODER_LATENT,
    Site.RESID_POST_MLP: NodeType.RESID_POST_MLP_AUTOENCODER_LATENT,
    Site.MLP_TRANSCODER: NodeType.MLP_TRANSCODER_LATENT,
}


@dataclass(frozen=True, slots=True)
class LatentNotes:
    """What people have said of one layer's latents.

    Attributes:
        layer_index: the layer.
        link: address of a latent's page, in which {latent} stands for its number; empty where there is none.
        labels: by latent.
    """

    layer_index: int
    link: str
    labels: Mapping[int, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class AutoencoderInfo:
    """One loaded dictionary: its site, its size and the layers it covers.

    `n_active` is how many latents were active at one token, at the most, when that was tried; None where it
    was not. `norms_inputs` says whether inputs are layer normed.
    """

    site: Site
    n_latents: int
    layers: tuple[int, ...]
    activation: str
    n_active: int | None = None
    norms_inputs: bool = False
    notes: tuple[LatentNotes, ...] = ()


class KernelOutcome(Enum):
    """What the trial of one way to compute something showed."""

    CHOSEN = "is used"
    SLOWER = "is slower than another way"
    STOPPED = "was stopped because a part took longer than the plain way takes for all"
    WRONG = "gives wrong numbers"
    FAILED = "fails"


@dataclass(frozen=True, slots=True)
class KernelTrial:
    """One way to compute something, and what it took when it was tried.

    Attributes:
        name: of the way.
        seconds: what the trial took; None where it was not timed to the end.
        outcome: what it showed.
    """

    name: str
    seconds: float | None
    outcome: KernelOutcome


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Which of several ways to compute the same a worker uses.

    Attributes:
        operation: what is computed.
        chosen: the way that is used.
        is_configured: whether a setting named it; else it was the fastest right one.
        trials: what was tried, the plain way first.
    """

    operation: str
    chosen: str
    is_configured: bool
    trials: tuple[KernelTrial, ...]

    def __str__(self) -> str:
        tried = "; ".join(
            f"{one.name} {one.outcome.value}" + (f", {one.seconds * 1000:.1f} ms" if one.seconds else "")
            for one in self.trials
        )
        return f"{self.operation}: {self.chosen}{' as configured' if self.is_configured else ''} ({tried})"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Name, weights and dimensions of the model that is served.

    Attributes:
        absent_hook_points: what other models have and this one has not.
        attention_cap, logit_cap: bounds of soft caps of attention and of final logits; None without.
        windows: by layer, how many tokens back attention may look, None without bound; empty without any.
        kernels: how the first worker computes; others may differ, on another processor, and serve the same.
    """

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
    absent_hook_points: frozenset[HookPoint] = frozenset()
    attention_cap: float | None = None
    logit_cap: float | None = None
    windows: tuple[int | None, ...] = ()
    kernels: tuple[KernelChoice, ...] = field(default=(), compare=False)

    @property
    def is_parallel(self) -> bool:
        """Whether MLPs read the residual stream before their layer, side by side with attention."""
        return HookPoint.RESID_POST_ATTN in self.absent_hook_points

    def autoencoder(self, node_type: NodeType) -> AutoencoderInfo | None:
        """The dictionary that is loaded for latents of a type that says whose they are."""
        return next((one for one in self.autoencoders if one.site.node_type is node_type), None)

    def site_width(self, site: Site) -> int:
        """Channels of what is read and written at a site."""
        match site:
            case Site.MLP_POST_ACT:
                return self.n_neurons
            case Site.ATTN_V_OUT:
                return self.n_heads * self.d_head
            case _:
                return self.d_model
