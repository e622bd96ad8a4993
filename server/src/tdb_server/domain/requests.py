"""What a client asks, in plain data: TDB sub-requests and general inference sub-requests.

Texts are already token ids here; names are already resolved. `tdb_server.domain.debug` turns a TDB
sub-request into a general one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType


class LossName(Enum):
    """The objectives that are functions of one token's logits, or of its residual stream."""

    LOGIT_DIFF = "logit_diff"
    LOGIT_MINUS_MEAN = "logit_minus_mean"
    PROBS = "probs"
    ZERO = "zero"
    LOG_PROB = "log_prob"
    KL_FROM_BASELINE = "kl_from_baseline"
    DIRECTION = "direction"


class BackwardRule(Enum):
    """How gradients go back through what is not linear (formulas: `tdb_server.model.backward_rules`)."""

    GRADIENT = "gradient"
    FROZEN_NORMS = "frozen_norms"
    RELP = "relp"
    GIM = "gim"


class AttentionTraceType(Enum):
    """Which of a head's inputs a trace lets the gradient through."""

    Q = "Q"
    K = "K"
    QK = "QK"
    V = "V"


class MlpComponent(Enum):
    """What stands for an MLP in the node table."""

    NEURON = "neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"
    TRANSCODER_LATENT = "transcoder_latent"
    WHOLE_MLP = "whole_mlp"


class AttentionComponent(Enum):
    """What stands for attention in the node table."""

    ATTENTION_HEAD = "attention_head"
    AUTOENCODER_LATENT = "autoencoder_latent"
    WHOLE_HEAD = "whole_head"


class ResidualStreamComponent(Enum):
    """What stands for the residual stream in the node table, beside its blocks."""

    POST_ATTN_LATENT = "post_attn_latent"
    POST_MLP_LATENT = "post_mlp_latent"


Component = MlpComponent | AttentionComponent | ResidualStreamComponent


class TokenScoringType(Enum):
    """How vocabulary tokens are scored against a node."""

    UPVOTED_OUTPUT_TOKENS = "upvoted_output_tokens"
    INPUT_TOKENS_THAT_UPVOTE_MLP = "input_tokens_that_upvote_mlp"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_Q = "input_tokens_that_upvote_attn_q"
    INPUT_TOKENS_THAT_UPVOTE_ATTN_K = "input_tokens_that_upvote_attn_k"


@dataclass(frozen=True, slots=True)
class ResidualDirection:
    """A vector [d] at the residual stream of a layer; the embedding has no layer."""

    hook_point: HookPoint
    layer_index: int | None
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LossConfig:
    """A loss on one token's logits, or along a direction. Token ids.

    Attributes:
        token_index: the token at which it is taken; None for the last.
        target_weights: what each target counts; None for its share of their mean.
        direction: of the loss of this name, what the residual stream is projected onto.
    """

    name: LossName
    target_tokens: tuple[int, ...] = ()
    distractor_tokens: tuple[int, ...] = ()
    token_index: int | None = None
    target_weights: tuple[float, ...] | None = None
    direction: ResidualDirection | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """A node taken as the objective.

    Attributes:
        node: a neuron, a latent or a head.
        attention_trace_type: for heads, which input lets the gradient through.
        post_act: objective is the node's activation rather than what stands before its nonlinearity.
        downstream: for V, the node whose own trace gives the direction; None means the loss.
    """

    node: NodeIndex
    attention_trace_type: AttentionTraceType | None = None
    post_act: bool = False
    downstream: Trace | None = None


@dataclass(frozen=True, slots=True)
class ActivationIndex:
    """A cell or a slab of a hook point; None among the indices stands for all of that axis."""

    hook_point: HookPoint
    layer_index: int | None
    tensor_indices: tuple[int | None, ...]
    pass_type: PassType = PassType.FORWARD


class ValueType(Enum):
    """What an activation is set to."""

    NUMBER = "number"  # the value
    BASELINE = "baseline"  # what it is in the baseline prompts, their mean
    SCALE = "scale"  # what it would be, times the value
    ADD = "add"  # what it would be, plus the value


@dataclass(frozen=True, slots=True)
class AblationSpec:
    """Sets the cells of `index` (their value, or their gradient for the backward pass).

    Attributes:
        index: which.
        value: to what, or by how much.
        value_type: what the value is.
        direction: along the last axis, what is added per unit of value; None for 1 everywhere.
        attended_to_token: of a row of `attn.v_out`, that only what comes from this token is set.
    """

    index: ActivationIndex
    value: float
    value_type: ValueType = ValueType.NUMBER
    direction: tuple[float, ...] | None = None
    attended_to_token: int | None = None


@dataclass(frozen=True, slots=True)
class NodeAblation:
    """Sets a node's activation to `value`; of a head the whole row, or what is paid to one token alone."""

    node: NodeIndex
    value: float = 0.0
    attended_to_token_only: bool = False
    value_type: ValueType = ValueType.NUMBER


@dataclass(frozen=True, slots=True)
class CircuitNode:
    """A component at one token, or at every token."""

    node_type: NodeType
    layer_index: int
    token_index: int | None
    component_index: int


@dataclass(frozen=True, slots=True)
class Circuit:
    """Nodes that stay as they are, where all others of the same types are set to the baseline's, or to 0."""

    node_types: frozenset[NodeType]
    nodes: tuple[CircuitNode, ...]


@dataclass(frozen=True, slots=True)
class InferenceSpec:
    """How to run one prompt: forward, objective, and what is altered on the way.

    Attributes:
        bos_added: whether the first token is the beginning-of-text token, put in front of the text.
        baselines: the tokens of prompts to compare with.
        circuit: what alone is kept.
        backward_rule: how the backward pass goes through what is not linear.
        pattern_gradients: whether RELP lets attention patterns pass gradients on.
    """

    token_ids: tuple[int, ...]
    loss: LossConfig | None = None
    trace: Trace | None = None
    ablations: tuple[AblationSpec, ...] = ()
    within_layer_gradient: ActivationIndex | None = None
    bos_added: bool = False
    baselines: tuple[tuple[int, ...], ...] = ()
    circuit: Circuit | None = None
    backward_rule: BackwardRule = BackwardRule.GRADIENT
    pattern_gradients: bool = False

    @property
    def loss_token(self) -> int:
        """The token whose logits the loss is of; without a loss the last."""
        told = None if self.loss is None else self.loss.token_index
        return len(self.token_ids) - 1 if told is None else told


@dataclass(frozen=True, slots=True)
class MultipleTopKSpec:
    """The k largest (and smallest) nodes of several groups of derived scalars, and the groups' sums.

    Attributes:
        groups: derived scalars by group, in order.
        top_and_bottom_k: k.
        token_index: None for nodes at every token, else only those at this (absolute) one.
        pass_type: backward adds the gradients beside the activations.
        dimensions_to_keep: axes that the sums keep; None for the tokens (and attended-to tokens where
            present).
        first_layer_index: nodes of layers before it are left out, in all sub-requests of the call; None
            for no bound.
        omits_sums: only nodes are wanted.
    """

    groups: tuple[tuple[GroupId, tuple[DerivedScalar, ...]], ...]
    top_and_bottom_k: int
    token_index: int | None = None
    pass_type: PassType = PassType.FORWARD
    dimensions_to_keep: tuple[Dimension, ...] | None = None
    first_layer_index: int | None = None
    omits_sums: bool = False

    @property
    def derived_scalars(self) -> tuple[DerivedScalar, ...]:
        """All that are ranked, group by group."""
        return tuple(scalar for _, scalars in self.groups for scalar in scalars)

    @property
    def chosen(self) -> Iterator[tuple[DerivedScalar, int]]:
        """Each derived scalar, with the most nodes that it chooses."""
        for group, scalars in self.groups:
            yield from ((one, self.top_and_bottom_k * (2 if group.has_bottom else 1)) for one in scalars)


@dataclass(frozen=True, slots=True)
class DerivedScalarsSpec:
    """One component's derived scalar at every token; top tokens of its write or of the read direction.

    Activations are also given relative to `normalizing_value`, or to the largest of the prompt, where asked.
    """

    derived_scalar: DerivedScalar
    layer_index: int | None
    activation_index: int
    pass_type: PassType = PassType.FORWARD
    normalizing_value: float | None = None
    n_top_tokens: int | None = None
    normalizes_by_prompt_maximum: bool = False


@dataclass(frozen=True, slots=True)
class DerivedAttentionScalarsSpec:
    """One head's (or latent's) derived scalar at every token pair, with totals and maxima.

    Each normalised number is divided by its maximum, which is the prompt's own where it is not given.
    """

    derived_scalar: DerivedScalar
    layer_index: int
    activation_index: int
    max_scalar: float | None = None
    max_total_in: float | None = None
    max_total_out: float | None = None


N_SCORED_TOKENS = 10
"""At each end of a ranking, where a request does not say how many."""


@dataclass(frozen=True, slots=True)
class ScoredTokensSpec:
    """Vocabulary tokens scored against every node of the multiple-top-k called `depends_on`."""

    depends_on: str
    scoring: TokenScoringType
    n_tokens: int = N_SCORED_TOKENS


@dataclass(frozen=True, slots=True)
class TokenPairAttributionSpec:
    """For attention latents among the nodes of `depends_on`: the attended-to tokens that fed them most."""

    depends_on: str
    n_tokens_attended_to: int = 3


@dataclass(frozen=True, slots=True)
class ComponentTotalsSpec:
    """Derived scalars summed over all but layers and heads, and tokens where they are wanted apart."""

    derived_scalars: tuple[DerivedScalar, ...]
    by_token: bool = False


@dataclass(frozen=True, slots=True)
class LensSpec:
    """What the residual stream behind each layer would predict.

    Attributes:
        hook_point: the stream after attention or that after the MLP.
        layers: those looked at, behind the embedding.
        token_indices: absolute.
        vocabulary_tokens: whose logits are wanted.
        n_top_tokens: how many of the likeliest are named; 0 for none.
    """

    hook_point: HookPoint
    layers: tuple[int, ...]
    token_indices: tuple[int, ...]
    vocabulary_tokens: tuple[int, ...] = ()
    n_top_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ActivationsSpec:
    """The values of a place, or gradients there; `layers` are None alone where it has none."""

    hook_point: HookPoint
    layers: tuple[int | None, ...]
    token_indices: tuple[int, ...]
    pass_type: PassType = PassType.FORWARD


ProcessingSpec = (
    MultipleTopKSpec
    | DerivedScalarsSpec
    | DerivedAttentionScalarsSpec
    | ScoredTokensSpec
    | TokenPairAttributionSpec
    | EdgesSpec
    | ComponentTotalsSpec
    | LensSpec
    | ActivationsSpec
)


@dataclass(frozen=True, slots=True)
class InferenceSubRequest:
    """One run and the named results wanted from it, in order."""

    inference: InferenceSpec
    processing: dict[str, ProcessingSpec] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows that it takes in a batch: one, or as many as edges have steps."""
        return max([1, *(one.n_steps for one in self.processing.values() if isinstance(one, EdgesSpec))])


@dataclass(frozen=True, slots=True)
class DebugSubRequest:
    """One TDB sub-request; what it shares with an `InferenceSpec` is said there.

    Components of the residual stream come beside the others, each once, in the enum's order. `loss` stands in
    place of the difference of logits of the target and distractor tokens, where it is given.
    """

    token_ids: tuple[int, ...]
    target_tokens: tuple[int, ...]
    distractor_tokens: tuple[int, ...]
    mlp_component: MlpComponent
    attention_component: AttentionComponent
    top_and_bottom_k: int
    hide_early_layers_when_ablating: bool = False
    node_ablations: tuple[NodeAblation, ...] = ()
    upstream_trace: Trace | None = None
    bos_added: bool = False
    baselines: tuple[tuple[int, ...], ...] = ()
    circuit: Circuit | None = None
    residual_stream_components: tuple[ResidualStreamComponent, ...] = ()
    backward_rule: BackwardRule = BackwardRule.GRADIENT
    pattern_gradients: bool = False
    loss: LossConfig | None = None
    omits_token_lists: bool = False
    omits_top_k_sums: bool = False
    wants_component_totals: bool = False
