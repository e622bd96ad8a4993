"""What a server holds: the facts that requests are checked against."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tdb_server.domain.hook_point import NODE_HOOK_POINTS, HookPoint
from tdb_server.domain.node import NodeType


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
    def hook_point(self) -> HookPoint:
        """Where the site is read."""
        return HookPoint[self.name]

    @property
    def node_type(self) -> NodeType:
        """What its latents are called as nodes."""
        return NodeType.MLP_AUTOENCODER_LATENT if self.is_mlp else NodeType.ATTENTION_AUTOENCODER_LATENT

    @property
    def latent_hook_point(self) -> HookPoint:
        """Where its latents are read."""
        return NODE_HOOK_POINTS[self.node_type]


@dataclass(frozen=True, slots=True)
class AutoencoderInfo:
    """One loaded autoencoder: its site, its size and the layers it covers.

    `n_active` is how many latents were active at one token, at the most, when that was tried; None where it
    was not. `norms_inputs` says whether inputs are layer normed.
    """

    site: Site
    n_latents: int
    layers: tuple[int, ...]
    activation: str
    n_active: int | None = None
    norms_inputs: bool = False


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

    def autoencoder(self, *, is_mlp: bool) -> AutoencoderInfo | None:
        """The one loaded for the MLP, or the one loaded for attention."""
        return next((one for one in self.autoencoders if one.site.is_mlp == is_mlp), None)
