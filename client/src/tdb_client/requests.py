"""The debug request: why this token rather than that one? And what both kinds of request share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode, CircuitWords, circuit_nodes
from tdb_client.edges import EdgesSubRequest
from tdb_client.errors import NodeError
from tdb_client.inference import (
    AblationSpec,
    ActivationsSpec,
    BackwardRule,
    InferenceSubRequest,
    LensSpec,
    Loss,
    MultipleTopKSpec,
    Token,
    as_texts,
    read_comparison,
)
from tdb_client.interventions import (
    Ablation,
    AblationWords,
    Trace,
    TraceWords,
    ablations,
    as_trace,
    read_words,
)
from tdb_client.nodes import Node, NodeType
from tdb_client.results import PromptTokens
from tdb_client.token_words import as_tokens, read_tokens

MlpComponent = Literal["neuron", "autoencoder_latent", "transcoder_latent", "whole_mlp"]
"""What MLPs are taken apart into."""

AttentionComponent = Literal["attention_head", "autoencoder_latent", "whole_head"]
"""What attention is taken apart into."""

ResidualStreamComponent = Literal["post_attn_latent", "post_mlp_latent"]
"""What the residual stream is taken apart into, after attention or after the MLP."""

TokenWords = Token | np.integer[Any]
"""A token: its text, or its vocabulary index, also as numpy has it."""


@dataclass(frozen=True, slots=True)
class DebugSubRequest:
    """One prompt to explain. `DebugSubRequest.of` takes the looser words that `Client.debug` takes.

    Attributes:
        prompt: the prompt.
        target: tokens whose logits at the last position count for the objective. A text is exactly one token,
            as it is cut where other text stands before it; a number is a vocabulary index. May be empty where
            a traced node takes the loss's place.
        distractor: tokens whose logits count against it.
        k: how many nodes to take from each end of each ranking.
        ablate: nodes to set.
        trace: the node to explain in place of the loss.
        downstream: for a V trace, the node that gives it its direction; None means the loss.
        mlp: what MLPs are taken apart into.
        attention: what attention is taken apart into.
        residual_stream: what the residual stream is taken apart into, beside MLPs and attention. What its
            latents write counts as if it were written there: their direct effects repeat each other from
            layer to layer, and those of the other nodes, and must not be added up.
        hide_early_layers: with ablations, leave out nodes of layers before the first ablated layer, here and
            in the other requests of the same call.
        add_bos: whether the beginning-of-text token stands in front of the prompt, as token 0; never twice.
            None means as the model's own tokenizer does (ModelInfo.adds_bos).
        backward_rule: how gradients go back through what is not linear: `gradient` is the derivative;
            `frozen_norms` holds every norm's scale constant; `relp` and `gim` are those of the papers.
        attention_pattern_gradients: with `relp`, whether attention patterns pass gradients on.
        loss: another objective in place of the difference of logits of `target` and `distractor`, which must
            be empty then.
        token_lists: whether every node gets its lists of tokens. Most of a large answer is made of them.
        top_k_sums: whether the named result `topKComponents` has sums: a number per pair of tokens and group,
            half of the answer about a long prompt. Those of neurons and heads come in any case (`sums`).
        baseline: prompts to compare with, each of as many tokens. Act times grad and direct effects are then
            of the difference between the prompt's activations and the mean of theirs.
        only_these: nodes that alone are kept: all others of `node_types` are set to the baseline's, or to 0
            without a baseline, and the answer says how much of the objective is left (`circuit`). None sets
            nothing, an empty list all of them.
        node_types: the types whose other nodes are set.
    """

    prompt: str
    target: tuple[Token, ...] = ()
    distractor: tuple[Token, ...] = ()
    k: int = 10
    ablate: tuple[Ablation, ...] = ()
    trace: Trace | None = None
    downstream: Trace | None = None
    mlp: MlpComponent = "neuron"
    attention: AttentionComponent = "attention_head"
    residual_stream: tuple[ResidualStreamComponent, ...] = ()
    hide_early_layers: bool = False
    add_bos: bool | None = None
    backward_rule: BackwardRule = "gradient"
    attention_pattern_gradients: bool = False
    loss: Loss | None = None
    token_lists: bool = True
    top_k_sums: bool = True
    baseline: tuple[str, ...] = ()
    only_these: tuple[CircuitNode, ...] | None = None
    node_types: tuple[NodeType, ...] = WHOLE_NODE_TYPES

    def __post_init__(self) -> None:
        read_words(self)
        read_tokens(self)
        read_comparison(self)
        object.__setattr__(self, "residual_stream", as_texts(self.residual_stream, "residual_stream"))

    @property
    def objective(self) -> Loss:
        """The loss that is explained where no node is traced."""
        return self.loss or Loss("logit_diff", self.target, self.distractor)

    @classmethod
    def of(
        cls,
        prompt: str,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        k: int = 10,
        ablate: AblationWords | Sequence[AblationWords] = (),
        trace: TraceWords | None = None,
        downstream: TraceWords | None = None,
        mlp: MlpComponent = "neuron",
        attention: AttentionComponent = "attention_head",
        residual_stream: ResidualStreamComponent | Sequence[ResidualStreamComponent] = (),
        hide_early_layers: bool = False,
        add_bos: bool | None = None,
        backward_rule: BackwardRule = "gradient",
        attention_pattern_gradients: bool = False,
        loss: Loss | None = None,
        token_lists: bool = True,
        top_k_sums: bool = True,
        baseline: str | Sequence[Any] = (),
        only_these: CircuitWords | Sequence[CircuitWords] | None = None,
        node_types: Sequence[NodeType] = WHOLE_NODE_TYPES,
    ) -> DebugSubRequest:
        """Makes a sub-request: one token, ablation or latent may stand for a list, nodes may be spelled.

        Example:
            DebugSubRequest.of("When Mary and John ...", " Mary", " John", ablate="L9 head 6 @ -1")

        Raises:
            NodeError: a spelling cannot be read.
            InvalidValueError: a token is neither text nor a number.
        """
        return cls(
            prompt=prompt,
            target=as_tokens(target, "target"),
            distractor=as_tokens(distractor, "distractor"),
            k=k,
            ablate=ablations(ablate),
            trace=as_trace(trace),
            downstream=as_trace(downstream),
            mlp=mlp,
            attention=attention,
            residual_stream=as_texts(residual_stream, "residual_stream"),
            hide_early_layers=hide_early_layers,
            add_bos=add_bos,
            backward_rule=backward_rule,
            attention_pattern_gradients=attention_pattern_gradients,
            loss=loss,
            token_lists=token_lists,
            top_k_sums=top_k_sums,
            baseline=as_texts(baseline, "baseline"),
            only_these=circuit_nodes(only_these),
            node_types=tuple(node_types),
        )


SubRequest = DebugSubRequest | InferenceSubRequest
SubRequestT = TypeVar("SubRequestT", bound=SubRequest)
NodeT = TypeVar("NodeT", Node, CircuitNode)
AnySubRequest = SubRequest | EdgesSubRequest
"""Those that name nodes, and those that do not."""


PromptKey = tuple[str, bool | None]
"""What a prompt's number of tokens depends on: its text, and `add_bos`."""


def prompts_to_tokenize(sub_requests: Sequence[SubRequest]) -> list[PromptKey]:
    """The prompts whose number of tokens must be known, because a node counts from their end."""
    from_end = [one for one in sub_requests if any(token < 0 for token in _tokens(one))]
    return list({(one.prompt, one.add_bos): None for one in from_end})


def prompt_length(tokens: PromptTokens, add_bos: bool | None) -> int:
    """How many tokens a prompt has, by its text's tokens as they were asked for with `add_bos`."""
    return len(tokens) + (add_bos is None and tokens.prompt_adds_bos)


def resolve(sub_request: SubRequestT, n_tokens: Mapping[PromptKey, int]) -> SubRequestT:
    """The sub-request with every node's tokens counted from the start; `n_tokens` by prompt.

    Raises:
        NodeError: a token lies before the start of the prompt.
    """
    count = n_tokens.get((sub_request.prompt, sub_request.add_bos))
    if count is None:
        return sub_request
    ablate: list[Any] = [
        replace(one, node=_resolve(one.node, count, f"ablate[{i}]")) if isinstance(one, Ablation) else one
        for i, one in enumerate(sub_request.ablate)
    ]
    return replace(
        sub_request,
        trace=_resolve_trace(sub_request.trace, count, "trace"),
        downstream=_resolve_trace(sub_request.downstream, count, "downstream"),
        ablate=tuple(ablate),
        only_these=None
        if sub_request.only_these is None
        else tuple(_resolve(one, count, f"only_these[{i}]") for i, one in enumerate(sub_request.only_these)),
    )


def _resolve_trace(trace: Trace | None, n_tokens: int, path: str) -> Trace | None:
    return None if trace is None else replace(trace, node=_resolve(trace.node, n_tokens, path))


def _resolve(node: NodeT, n_tokens: int, path: str) -> NodeT:
    try:
        return node.resolve(n_tokens)
    except NodeError as error:
        raise NodeError(str(error), path) from None


def _nodes(sub_request: SubRequest) -> list[Node]:
    ablated = [one.node for one in sub_request.ablate if isinstance(one, Ablation)]
    return ablated + [one.node for one in (sub_request.trace, sub_request.downstream) if one is not None]


def _tokens(sub_request: SubRequest) -> Iterator[int]:
    """The tokens of a sub-request's nodes, negative where they are counted from the prompt's end."""
    for node in _nodes(sub_request):
        yield node.token
        if node.attended_to is not None:
            yield node.attended_to
    for one in sub_request.only_these or ():
        if one.token is not None:
            yield one.token


def tokens_from_start(sub_request: AnySubRequest) -> Iterator[int]:
    """The tokens that a sub-request names by their number from the start of the prompt."""
    named: list[int | None] = []
    if not isinstance(sub_request, EdgesSubRequest):
        named += _tokens(sub_request)
    if isinstance(sub_request, InferenceSubRequest):
        named += [
            one.index.indices[0]
            for one in sub_request.ablate
            if isinstance(one, AblationSpec) and one.index.indices
        ]
        named += [one.token for one in sub_request.results.values() if isinstance(one, MultipleTopKSpec)]
        for one in sub_request.results.values():
            named += one.at if isinstance(one, LensSpec | ActivationsSpec) else ()
    named += [] if sub_request.loss is None else [sub_request.loss.token]
    return (one for one in named if one is not None and one >= 0)
