"""The debug request: why this token rather than that one? And what both kinds of request share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from tdb_client.errors import NodeError
from tdb_client.inference import InferenceSubRequest
from tdb_client.interventions import (
    Ablation,
    AblationWords,
    Trace,
    TraceWords,
    ablations,
    as_trace,
    read_words,
)
from tdb_client.nodes import Node

MlpComponent = Literal["neuron", "autoencoder_latent"]
"""What MLPs are taken apart into."""

AttentionComponent = Literal["attention_head", "autoencoder_latent"]
"""What attention is taken apart into."""


@dataclass(frozen=True, slots=True)
class DebugSubRequest:
    """One prompt to explain. `DebugSubRequest.of` takes the looser words that `Client.debug` takes.

    Attributes:
        prompt: the prompt.
        target: tokens whose logits at the last position count for the objective; each exactly one token.
            May be empty where a traced node takes the loss's place.
        distractor: tokens whose logits count against it.
        k: how many nodes to take from each end of each ranking.
        ablate: nodes to set.
        trace: the node to explain in place of the loss.
        downstream: for a V trace, the node that gives it its direction; None means the loss.
        mlp: what MLPs are taken apart into.
        attention: what attention is taken apart into.
        hide_early_layers: with ablations, leave out nodes of layers before the first ablated layer, here and
            in the other requests of the same call.
    """

    prompt: str
    target: tuple[str, ...] = ()
    distractor: tuple[str, ...] = ()
    k: int = 10
    ablate: tuple[Ablation, ...] = ()
    trace: Trace | None = None
    downstream: Trace | None = None
    mlp: MlpComponent = "neuron"
    attention: AttentionComponent = "attention_head"
    hide_early_layers: bool = False

    def __post_init__(self) -> None:
        read_words(self)

    @classmethod
    def of(
        cls,
        prompt: str,
        target: str | Sequence[str] = (),
        distractor: str | Sequence[str] = (),
        *,
        k: int = 10,
        ablate: AblationWords | Sequence[AblationWords] = (),
        trace: TraceWords | None = None,
        downstream: TraceWords | None = None,
        mlp: MlpComponent = "neuron",
        attention: AttentionComponent = "attention_head",
        hide_early_layers: bool = False,
    ) -> DebugSubRequest:
        """Makes a sub-request: one token or ablation may stand for a list of them, nodes may be spelled.

        Example:
            DebugSubRequest.of("When Mary and John ...", " Mary", " John", ablate="L9 head 6 @ -1")

        Raises:
            NodeError: a spelling cannot be read.
        """
        return cls(
            prompt=prompt,
            target=(target,) if isinstance(target, str) else tuple(target),
            distractor=(distractor,) if isinstance(distractor, str) else tuple(distractor),
            k=k,
            ablate=ablations(ablate),
            trace=as_trace(trace),
            downstream=as_trace(downstream),
            mlp=mlp,
            attention=attention,
            hide_early_layers=hide_early_layers,
        )


SubRequest = DebugSubRequest | InferenceSubRequest
SubRequestT = TypeVar("SubRequestT", bound=SubRequest)


def prompts_to_tokenize(sub_requests: Sequence[SubRequest]) -> list[str]:
    """The prompts whose number of tokens must be known, because a node counts from their end."""
    return list(
        {one.prompt: None for one in sub_requests if any(node.counts_from_end for node in _nodes(one))}
    )


def resolve(sub_request: SubRequestT, n_tokens: Mapping[str, int]) -> SubRequestT:
    """The sub-request with every node's tokens counted from the start; `n_tokens` by prompt.

    Raises:
        NodeError: a token lies before the start of the prompt.
    """
    count = n_tokens.get(sub_request.prompt)
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
    )


def _resolve_trace(trace: Trace | None, n_tokens: int, path: str) -> Trace | None:
    return None if trace is None else replace(trace, node=_resolve(trace.node, n_tokens, path))


def _resolve(node: Node, n_tokens: int, path: str) -> Node:
    try:
        return node.resolve(n_tokens)
    except NodeError as error:
        raise NodeError(str(error), path) from None


def _nodes(sub_request: SubRequest) -> list[Node]:
    ablated = [one.node for one in sub_request.ablate if isinstance(one, Ablation)]
    return ablated + [one.node for one in (sub_request.trace, sub_request.downstream) if one is not None]
