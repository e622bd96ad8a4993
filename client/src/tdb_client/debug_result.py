"""The answer to a debug sub-request: the node table, per-token sums, the top logits, and a page of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from tdb_client.errors import IncompleteResponseError
from tdb_client.inference import AblationSpec, Token, held_norm_scales
from tdb_client.node_table import LogitTable, NodeTable
from tdb_client.requests import DebugSubRequest
from tdb_client.results import (
    CallInfo,
    FloatArray,
    InferenceResult,
    LossTokens,
    MultipleTopKResult,
    ProcessingResult,
    PromptTokens,
    ScoredTokensResult,
    Timings,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_client.token_text import objective_words, quoted

if TYPE_CHECKING:
    import pandas as pd

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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DebugResult:
    """The answer to one debug sub-request. As the last line of a notebook's cell it shows itself as a page.

    Attributes:
        request: what was asked.
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
        loss_tokens: the loss's targets and distractors; None without a loss, or from an older server.
        ablations: what was set in the run: nodes as the cells they stand for, and gradients.
        attention: by head (`L9 head 6`), what each token pays to each [T, T], attended-from token first.
            Empty unless Client.with_attention has asked for it.
    """

    request: DebugSubRequest
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
    loss_tokens: LossTokens | None = None
    ablations: tuple[AblationSpec, ...] = ()
    attention: Mapping[str, FloatArray] = field(default_factory=dict)

    def __repr__(self) -> str:
        value = "none" if self.objective_value is None else f"{self.objective_value:.3f}"
        return f"<DebugResult: {self.objective} = {value}, {len(self.nodes)} nodes>"

    def _repr_html_(self) -> str:
        """What notebooks show: the page in a frame of its own."""
        from tdb_client.report.notebook import frame

        return frame(self.to_html())

    @property
    def token_attribution(self) -> FloatArray:
        """What each token of the prompt adds to the objective: act times grad of its embedding [T]."""
        return self.sums["act_times_grad"]["token_attribution"]

    @property
    def objective(self) -> str:
        """What is explained, in words: `logit ' Mary' - ' John'`, or the traced node."""
        trace, downstream = self.request.trace, self.request.downstream
        if trace is None:
            return objective_words(self.target_words, self.distractor_words)
        read_by = "" if downstream is None else f", read by {downstream.words(self.prompt.tokens)}"
        return trace.words(self.prompt.tokens) + read_by

    @property
    def target_words(self) -> list[str]:
        """Each target in quotes; those asked for by number with that: `' Mary' (token 5335)`."""
        loss = self.loss_tokens or _NO_LOSS_TOKENS
        return _words(self.request.target, loss.target_ids, loss.targets)

    @property
    def distractor_words(self) -> list[str]:
        """The same of the distractors."""
        loss = self.loss_tokens or _NO_LOSS_TOKENS
        return _words(self.request.distractor, loss.distractor_ids, loss.distractors)

    def role(self, token_id: int, text: str) -> Literal["target", "distractor"] | None:
        """Whether a token of the vocabulary is a target or a distractor."""
        request, loss = self.request, self.loss_tokens
        if loss is None:  # the texts must do
            targets, distractors = request.target, request.distractor
        else:
            targets, distractors = loss.target_ids, loss.distractor_ids
        if token_id in targets or text in targets:
            return "target"
        return "distractor" if token_id in distractors or text in distractors else None

    @property
    def objective_value(self) -> float | None:
        """The loss, or the traced objective's value where a node was traced."""
        return self.loss if self.request.trace is None else self.traced_value

    @property
    def held_norm_scales(self) -> tuple[str, ...]:
        """The norms whose scales were held constant on the way back: the final one alone.

        That of the norm through which a traced node reads always is, and is not listed.
        """
        return held_norm_scales(self.ablations)

    @property
    def objective_unit(self) -> str:
        """What the objective is measured in, and with it act × grad and direct effects."""
        trace, downstream = self.request.trace, self.request.downstream
        explained = downstream if trace is not None and trace.through == "V" else trace
        if explained is None:
            return "logits"
        return "attention score" if explained.node.type == "attention_head" else "activation"

    def to_frame(self) -> pd.DataFrame:
        """The node table as a pandas frame; see NodeTable.to_frame."""
        return self.nodes.to_frame()

    def to_html(self, *, before: DebugResult | None = None) -> str:
        """The result as one self-contained HTML page, which asks nothing of the network.

        Args:
            before: a result for the same prompt to compare with, such as that without the ablations.

        Raises:
            ValueError: `before` is about another prompt.
        """
        from tdb_client.report.page import page

        return page([self] if before is None else [before, self])

    def show(self, *, before: DebugResult | None = None) -> None:
        """Shows the page of `to_html`: in a notebook below the cell, elsewhere in the web browser.

        Example:
            result.show()
            ablated.show(before=plain)  # best from one client.debug_many, which gives both the same nodes

        Args:
            before: a result for the same prompt to compare with.

        Raises:
            ValueError: `before` is about another prompt.
        """
        from tdb_client.report.notebook import show

        show(self.to_html(before=before))


_NO_LOSS_TOKENS = LossTokens((), ())


def _words(tokens: Sequence[Token], answered_ids: Sequence[int], answered: Sequence[str]) -> list[str]:
    texts = dict(zip(answered_ids, answered, strict=True))
    return [
        quoted(one)
        if isinstance(one, str)
        else f"{quoted(texts[one])} (token {one})"
        if one in texts
        else f"token {one}"
        for one in tokens
    ]


def debug_result(request: DebugSubRequest, result: InferenceResult) -> DebugResult:
    """Reads the named results of a debug sub-request.

    Raises:
        IncompleteResponseError: one of them is missing.
    """
    sums = _named(result, "componentSumsForTokenDisplay", MultipleTopKResult)
    return DebugResult(
        request=request,
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
        loss_tokens=result.loss_tokens,
        ablations=result.ablations,
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

    def scored(name: str) -> Sequence[TopTokens | None]:
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
