"""The answer to a debug sub-request: the node table, per-token sums and the top logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from tdb_client.errors import IncompleteResponseError
from tdb_client.nodes import Node
from tdb_client.results import (
    AttendedToTokens,
    CallInfo,
    FloatArray,
    InferenceResult,
    IntArray,
    MultipleTopKResult,
    ProcessingResult,
    PromptTokens,
    ScoredTokensResult,
    Timings,
    TokenPairAttributionResult,
    TopTokens,
)

if TYPE_CHECKING:
    import pandas as pd

NodeScalar = Literal["write_norm", "act_times_grad", "direct_effect", "activation"]
"""The four scalars of a node."""

DEBUG_RESULTS = (
    "topKComponents",
    "componentSumsForTokenDisplay",
    "upvotedOutputTokens",
    "inputTokensThatUpvoteMlp",
    "inputTokensThatUpvoteAttnQ",
    "inputTokensThatUpvoteAttnK",
    "tokenPairAttribution",
    "topOutputTokenLogits",
)
"""The names of the results that every debug sub-request has."""

Result = TypeVar("Result", bound=ProcessingResult)


@dataclass(frozen=True, slots=True, eq=False)
class NodeTable:
    """The nodes that matter, in the order the server chose them. Every attribute has an entry per node [n].

    Attributes:
        nodes: the nodes.
        words: the nodes with their tokens as text, such as `L9 head 6, ' to' → ' Mary'`.
        write_norm: how much each writes to the residual stream; keeps the activation's sign.
        act_times_grad: estimated total effect on the objective, through everything downstream.
        direct_effect: effect of the write itself on the objective.
        activation: activation; of a head, its attention.
        upvoted_tokens: vocabulary tokens whose logits the write raises and lowers.
        input_tokens: for neurons and MLP latents, tokens whose embedding excites them.
        query_tokens: for heads, tokens that excite them through the query.
        key_tokens: for heads, tokens that excite them through the key.
        attended_to: for active attention latents, the attended-to tokens that excite them.
    """

    nodes: tuple[Node, ...]
    words: tuple[str, ...]
    write_norm: FloatArray
    act_times_grad: FloatArray
    direct_effect: FloatArray
    activation: FloatArray
    upvoted_tokens: tuple[TopTokens | None, ...]
    input_tokens: tuple[TopTokens | None, ...]
    query_tokens: tuple[TopTokens | None, ...]
    key_tokens: tuple[TopTokens | None, ...]
    attended_to: tuple[AttendedToTokens | None, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    def scalar(self, name: NodeScalar) -> FloatArray:
        """One of the four scalars by name [n]."""
        scalars = {
            "write_norm": self.write_norm,
            "act_times_grad": self.act_times_grad,
            "direct_effect": self.direct_effect,
            "activation": self.activation,
        }
        return scalars[name]

    def strongest(self, by: NodeScalar = "direct_effect") -> IntArray:
        """Row numbers, largest magnitude of a scalar first [n]."""
        return np.argsort(-np.abs(self.scalar(by)), kind="stable")

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas frame, a row per node; token lists are lists of strings, best first.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas: pip install 'transformer-debugger-client[pandas]'"
            ) from error
        return pd.DataFrame(
            {
                "node": [str(node) for node in self.nodes],
                "words": list(self.words),
                "type": [node.type for node in self.nodes],
                "layer": pd.array([node.layer for node in self.nodes], dtype="Int64"),
                "index": [node.index for node in self.nodes],
                "token": [node.token for node in self.nodes],
                "attended_to": pd.array([node.attended_to for node in self.nodes], dtype="Int64"),
                "write_norm": self.write_norm,
                "act_times_grad": self.act_times_grad,
                "direct_effect": self.direct_effect,
                "activation": self.activation,
                "upvoted_tokens": _top_of_each(self.upvoted_tokens),
                "input_tokens": _top_of_each(self.input_tokens),
                "query_tokens": _top_of_each(self.query_tokens),
                "key_tokens": _top_of_each(self.key_tokens),
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class LogitTable:
    """Logits of the likeliest tokens after the current token, largest first.

    With several sub-requests, the tokens that are among the likeliest of any of them.
    """

    tokens: tuple[str, ...]
    token_ids: IntArray
    logits: FloatArray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class DebugResult:
    """The answer to one debug sub-request.

    Attributes:
        call: which call, which model.
        prompt: the prompt's tokens.
        loss: the loss, such as the difference of logits; None when a node was explained and no loss computed.
        traced_value: value of the traced objective; None when no node was traced.
        nodes: the node table.
        logits: the top logits after the current token: the last one, or the traced node's.
        sums: by group (`act_times_grad`, ...) and derived scalar, sums over all layers and components:
            per token [T] for embeddings and neurons, per token pair [T, T] for heads.
        results: every named result as it came.
        timings: where the time of the whole call went.
        peak_memory_bytes: the most memory in use on the worker's device; 0 when not known.
        cached: whether the results come from the server's cache.
    """

    call: CallInfo
    prompt: PromptTokens
    loss: float | None
    traced_value: float | None
    nodes: NodeTable
    logits: LogitTable
    sums: Mapping[str, Mapping[str, FloatArray]]
    results: Mapping[str, ProcessingResult]
    timings: Timings
    peak_memory_bytes: int
    cached: bool

    @property
    def token_attribution(self) -> FloatArray:
        """What each token of the prompt adds to the objective: act times grad of its embedding [T]."""
        return self.sums["act_times_grad"]["token_attribution"]

    def to_frame(self) -> pd.DataFrame:
        """The node table as a pandas frame; see NodeTable.to_frame."""
        return self.nodes.to_frame()


def debug_result(result: InferenceResult) -> DebugResult:
    """Reads the named results of a debug sub-request.

    Raises:
        IncompleteResponseError: one of them is missing.
    """
    sums = _named(result, "componentSumsForTokenDisplay", MultipleTopKResult)
    return DebugResult(
        call=result.call,
        prompt=result.prompt,
        loss=result.loss,
        traced_value=result.traced_value,
        nodes=_node_table(result),
        logits=_logit_table(_named(result, "topOutputTokenLogits", MultipleTopKResult)),
        sums={
            group_id: {name: one.array for name, one in group.sums.items()}
            for group_id, group in sums.groups.items()
        },
        results=result.results,
        timings=result.timings,
        peak_memory_bytes=result.peak_memory_bytes,
        cached=result.cached,
    )


def _named(result: InferenceResult, name: str, kind: type[Result]) -> Result:
    found = result.results.get(name)
    if not isinstance(found, kind):
        raise IncompleteResponseError(f"the answer has no result {name!r}")
    return found


def _node_table(result: InferenceResult) -> NodeTable:
    ranking = _named(result, "topKComponents", MultipleTopKResult)
    missing = {"write_norm", "act_times_grad", "direction_write", "activation"} - ranking.groups.keys()
    if missing:
        raise IncompleteResponseError(f"the node table has no {', '.join(sorted(missing))}")

    def scored(name: str) -> tuple[TopTokens | None, ...]:
        return _named(result, name, ScoredTokensResult).top_tokens

    return NodeTable(
        nodes=ranking.nodes,
        words=tuple(node.words(result.prompt.tokens) for node in ranking.nodes),
        write_norm=ranking.groups["write_norm"].activations,
        act_times_grad=ranking.groups["act_times_grad"].activations,
        direct_effect=ranking.groups["direction_write"].activations,
        activation=ranking.groups["activation"].activations,
        upvoted_tokens=scored("upvotedOutputTokens"),
        input_tokens=scored("inputTokensThatUpvoteMlp"),
        query_tokens=scored("inputTokensThatUpvoteAttnQ"),
        key_tokens=scored("inputTokensThatUpvoteAttnK"),
        attended_to=_named(result, "tokenPairAttribution", TokenPairAttributionResult).attended_to,
    )


def _logit_table(ranking: MultipleTopKResult) -> LogitTable:
    if "logits" not in ranking.groups or len(ranking.vocab_tokens) != len(ranking.nodes):
        raise IncompleteResponseError("the top logits have no values or no tokens")
    logits = ranking.groups["logits"].activations
    order = np.argsort(-logits, kind="stable")
    return LogitTable(
        tokens=tuple(ranking.vocab_tokens[row] for row in order),
        token_ids=np.array([ranking.nodes[row].index for row in order], np.int64),
        logits=logits[order],
    )


def _top_of_each(scored: Sequence[TopTokens | None]) -> list[list[str]]:
    return [[] if one is None else list(one.top.tokens) for one in scored]
