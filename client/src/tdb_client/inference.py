"""The general request: any loss or trace, any place set, any derived scalars and token scores wanted.

Names of losses, derived scalars, groups, places and dimensions are the protos' in lower case: `logit_diff`,
`mlp_write_norm`, `act_times_grad`, `attn_qk_probs`, `sequence_tokens`. ModelInfo lists what a server offers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode, CircuitWords, circuit_nodes
from tdb_client.errors import InvalidValueError
from tdb_client.interventions import (
    Ablation,
    AblationValueType,
    AblationWords,
    Trace,
    TraceWords,
    ablations,
    as_trace,
    read_words,
)
from tdb_client.nodes import NodeType
from tdb_client.token_words import as_tokens, read_tokens

PassType = Literal["forward", "backward"]
LossName = Literal[
    "logit_diff", "logit_minus_mean", "probs", "zero", "log_prob", "kl_from_baseline", "direction"
]
BackwardRule = Literal["gradient", "frozen_norms", "relp", "gim"]
"""How gradients go back through what is not linear; docs/concepts.md has the formulas."""

Token = str | int
"""A token of the vocabulary: its text, or its vocabulary index where no text stands for it alone."""


@dataclass(frozen=True, slots=True)
class ResidualDirection:
    """A vector [d_model] at one place of the residual stream.

    Example:
        ResidualDirection("resid_post_mlp", 20, probe_weights)

    Attributes:
        place: `resid_post_emb`, `resid_post_attn` or `resid_post_mlp`.
        layer: its layer; None for `resid_post_emb`.
        vector: numbers, also as an array of numpy.
    """

    place: str
    layer: int | None
    vector: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", tuple(map(float, self.vector)))


@dataclass(frozen=True, slots=True)
class Loss:
    """The objective of a run that traces no node; tokens as in DebugSubRequest.

    Example:
        Loss("log_prob", " Mary", token=-1)
        Loss("kl_from_baseline")  # with baseline=... beside it; it has no targets
        Loss("direction", token=4, direction=ResidualDirection("resid_post_mlp", 20, probe_weights))

    Attributes:
        token: the token at which it is taken, from 0; -1, or None, for the last.
        target_weights: of `logit_diff` and `log_prob`, what each target counts, those given as text first;
            none given means their mean.
        direction: of `direction`, which has no targets, what the residual stream is projected onto.
    """

    name: LossName
    target: tuple[Token, ...] = ()
    distractor: tuple[Token, ...] = ()
    token: int | None = None
    target_weights: tuple[float, ...] = ()
    direction: ResidualDirection | None = None

    def __post_init__(self) -> None:
        read_tokens(self)
        object.__setattr__(self, "target_weights", tuple(map(float, self.target_weights)))


def chosen_loss(target: object, distractor: object, loss: Loss | None) -> Loss:
    """The loss that a caller gives, or else the difference of logits of target and distractor.

    Raises:
        InvalidValueError: both are given, or something is no token.
    """
    difference = Loss("logit_diff", as_tokens(target, "target"), as_tokens(distractor, "distractor"))
    if loss is not None and (difference.target or difference.distractor):
        raise InvalidValueError("loss", "takes the place of target and distractor; its tokens are its own")
    return loss or difference


@dataclass(frozen=True, slots=True)
class ActivationIndex:
    """One activation, or a slice, of a place such as `mlp_post_act`: an index per axis, None for all."""

    place: str
    layer: int | None
    indices: tuple[int | None, ...]
    pass_type: PassType = "forward"


@dataclass(frozen=True, slots=True)
class AblationSpec:
    """Sets activations, or with pass type backward gradients, at any place.

    Example:
        # Steering: more of a direction, such as a numpy array [d_model], in the stream of each token.
        everywhere = ActivationIndex("resid_post_mlp", 12, (None, None))
        AblationSpec(everywhere, 4.0, "add", direction)

    Attributes:
        index: which.
        value: the number; 0 with `baseline`.
        value_type: what is done with it: they are set to it, or to what they are in the baseline prompts,
            multiplied by it, or it is added.
        direction: with `add`, numbers along the place's last axis, whose index must be None; what is added is
            this times the value. None adds the value everywhere.
        attended_to: only in answers, of a head's row of `attn_v_out`: that only what is read from this token
            is set.
    """

    index: ActivationIndex
    value: float = 0.0
    value_type: AblationValueType = "number"
    direction: Sequence[float] | npt.NDArray[np.floating] | None = None
    attended_to: int | None = None

    def __post_init__(self) -> None:
        if self.direction is not None:
            object.__setattr__(self, "direction", tuple(map(float, self.direction)))


HOLD_FINAL_NORM_SCALE = AblationSpec(ActivationIndex("resid_ln_f_scale", None, (None, None), "backward"))
"""As debug requests have it: what gradients are multiplied with adds up to what these say."""


def held_norm_scales(ablations: Iterable[AblationSpec]) -> tuple[str, ...]:
    """The norms whose scales are held constant at all tokens, because their gradients are set to 0.

    Returns:
        `resid_ln_f_scale` for the final norm, `L3 attn_ln_scale` and such for others.
    """
    return tuple(
        f"L{index.layer} {index.place}" if index.layer is not None else index.place
        for index, value in ((one.index, one.value) for one in ablations if one.value_type == "number")
        if index.place.endswith("_scale")
        and index.pass_type == "backward"
        and value == 0
        and not any(axis is not None for axis in index.indices)
    )


@dataclass(frozen=True, slots=True)
class MultipleTopKSpec:
    """Asks for the nodes with the largest (and smallest) derived scalars, and for sums over nodes.

    Attributes:
        groups: derived scalars by the group they are ranked in.
        k: how many nodes from each end, per group and derived scalar.
        token: only nodes of this token, -1 for the last; None for all tokens.
        pass_type: values or gradients.
        keep: dimensions that are not summed over; none given means both token dimensions.
        sums: whether sums are wanted, or nodes alone.
    """

    groups: Mapping[str, Sequence[str]]
    k: int = 10
    token: int | None = None
    pass_type: PassType = "forward"
    keep: Sequence[str] = ()
    sums: bool = True


@dataclass(frozen=True, slots=True)
class DerivedScalarsSpec:
    """Asks for one component's derived scalar at every token; `n_top_tokens` adds tokens from each end.

    Activations are also given relative to `normalizer`, or to the largest of the prompt with
    `normalize_by_prompt_maximum`.
    """

    derived_scalar: str
    layer: int | None = None
    index: int = 0
    pass_type: PassType = "forward"
    normalizer: float | None = None
    n_top_tokens: int | None = None
    normalize_by_prompt_maximum: bool = False


@dataclass(frozen=True, slots=True)
class DerivedAttentionScalarsSpec:
    """Asks for one head's derived scalar for every token pair, normalized by what is given or the largest."""

    derived_scalar: str
    layer: int
    head: int = 0
    max_scalar: float | None = None
    max_total_scalar_in: float | None = None
    max_total_scalar_out: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredTokensSpec:
    """Asks for tokens scored against the nodes of the MultipleTopKSpec named `depends_on`.

    `scoring` is `upvoted_output_tokens`, `input_tokens_that_upvote_mlp`, `..._attn_q` or `..._attn_k`.
    """

    depends_on: str
    scoring: str = "upvoted_output_tokens"
    n_tokens: int = 10


@dataclass(frozen=True, slots=True)
class TokenPairAttributionSpec:
    """Asks which attended-to tokens excite attention latents of the MultipleTopKSpec named `depends_on`."""

    depends_on: str
    n_tokens_attended_to: int = 3


@dataclass(frozen=True, slots=True)
class ComponentTotalsSpec:
    """Asks for derived scalars summed over all tokens, by layer and, of heads, by head.

    Attributes:
        derived_scalars: their names.
        by_token: whether tokens are kept apart, too, each with what is written there.
    """

    derived_scalars: Sequence[str]
    by_token: bool = False


@dataclass(frozen=True, slots=True)
class LensSpec:
    """Asks what the model would predict from the residual stream behind each layer.

    Attributes:
        tokens: vocabulary tokens whose logits are wanted, one or several.
        n_top_tokens: how many of the likeliest tokens to name; None for none.
        layers: none given means all.
        at: tokens of the prompt, -1 for the last; none given means the last.
        place: `resid_post_mlp` or `resid_post_attn`.
    """

    tokens: tuple[Token, ...] = ()
    n_top_tokens: int | None = None
    layers: Sequence[int] = ()
    at: Sequence[int] = ()
    place: str = "resid_post_mlp"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", as_tokens(self.tokens, "tokens"))


@dataclass(frozen=True, slots=True)
class ActivationsSpec:
    """Asks for the values of a place such as `mlp_post_act`, or with pass type backward the gradients there.

    No layers given means all that have it; no tokens in `at` means all.
    """

    place: str
    layers: Sequence[int] = ()
    at: Sequence[int] = ()
    pass_type: PassType = "forward"


ProcessingSpec = (
    MultipleTopKSpec
    | DerivedScalarsSpec
    | DerivedAttentionScalarsSpec
    | ScoredTokensSpec
    | TokenPairAttributionSpec
    | ComponentTotalsSpec
    | LensSpec
    | ActivationsSpec
)


@dataclass(frozen=True, slots=True)
class InferenceSubRequest:
    """One prompt, how to run it, and what is wanted of it. `InferenceSubRequest.of` takes looser words.

    Attributes:
        prompt: the prompt.
        loss: the loss. Give a loss or a trace; both only for a V trace without a downstream node.
        trace: the node to explain in place of the loss.
        downstream: for a V trace, the node that gives it its direction.
        ablate: activations and gradients to set, or nodes.
        within_layer_gradient: a latent whose gradient within its own layer is wanted, token axis None.
        results: what is wanted, under names of your choice.
        add_bos: whether the beginning-of-text token stands in front of the prompt; see DebugSubRequest.
        backward_rule: how gradients go back through what is not linear; see DebugSubRequest.
        attention_pattern_gradients: see DebugSubRequest.
        baseline: prompts to compare with; see DebugSubRequest.
        only_these: nodes that alone are kept; see DebugSubRequest.
        node_types: the types whose other nodes are set.
    """

    prompt: str
    loss: Loss | None = None
    trace: Trace | None = None
    downstream: Trace | None = None
    ablate: tuple[AblationSpec | Ablation, ...] = ()
    within_layer_gradient: ActivationIndex | None = None
    results: Mapping[str, ProcessingSpec] = field(default_factory=dict)
    add_bos: bool | None = None
    backward_rule: BackwardRule = "gradient"
    attention_pattern_gradients: bool = False
    baseline: tuple[str, ...] = ()
    only_these: tuple[CircuitNode, ...] | None = None
    node_types: tuple[NodeType, ...] = WHOLE_NODE_TYPES

    def __post_init__(self) -> None:
        read_words(self)
        read_comparison(self)

    @classmethod
    def of(
        cls,
        prompt: str,
        loss: Loss | None = None,
        *,
        ablate: AblationSpec | AblationWords | Sequence[AblationSpec | AblationWords] = (),
        trace: TraceWords | None = None,
        downstream: TraceWords | None = None,
        within_layer_gradient: ActivationIndex | None = None,
        results: Mapping[str, ProcessingSpec] | None = None,
        add_bos: bool | None = None,
        backward_rule: BackwardRule = "gradient",
        attention_pattern_gradients: bool = False,
        baseline: str | Sequence[Any] = (),
        only_these: CircuitWords | Sequence[CircuitWords] | None = None,
        node_types: Sequence[NodeType] = WHOLE_NODE_TYPES,
    ) -> InferenceSubRequest:
        """Makes a sub-request: nodes may be spelled, and one ablation may stand for a list of them.

        Example:
            InferenceSubRequest.of("When Mary ...", ablate=[head(9, 6, token=-1), "L5 neuron 7 @ 3 = 2"])

        Raises:
            NodeError: a spelling cannot be read.
        """
        return cls(
            prompt,
            loss,
            as_trace(trace),
            as_trace(downstream),
            ablations(ablate),
            within_layer_gradient,
            results or {},
            add_bos,
            backward_rule,
            attention_pattern_gradients,
            as_texts(baseline, "baseline"),
            circuit_nodes(only_these),
            tuple(node_types),
        )


def as_texts(words: object, path: str) -> tuple[Any, ...]:
    """One text may stand for a list of them.

    Raises:
        InvalidValueError: something is no text.
    """
    several = tuple(words) if isinstance(words, Iterable) and not isinstance(words, str) else (words,)
    for i, one in enumerate(several):
        if not isinstance(one, str):
            raise InvalidValueError(f"{path}[{i}]", f"{one!r} is no text")
    return several


def read_comparison(sub_request: Any) -> None:
    """Reads what a new sub-request is compared with, as `read_words` reads its nodes."""
    object.__setattr__(sub_request, "baseline", as_texts(sub_request.baseline, "baseline"))
    object.__setattr__(sub_request, "only_these", circuit_nodes(sub_request.only_these))
    object.__setattr__(sub_request, "node_types", as_texts(sub_request.node_types, "node_types"))
