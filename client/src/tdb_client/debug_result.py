"""A debug answer that shows itself as a page, and how it is read from named results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdb_client.debug_answer import DebugAnswer
from tdb_client.errors import IncompleteResponseError
from tdb_client.model_info import ModelInfo
from tdb_client.node_table import LogitTable, NodeTable
from tdb_client.requests import DebugSubRequest
from tdb_client.results import (
    ComponentTotalsResult,
    FloatArray,
    InferenceResult,
    MultipleTopKResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
    named_result,
)

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
"""The names of the results of every debug sub-request; it may leave out those about tokens."""


class DebugResult(DebugAnswer):
    """The answer to one debug sub-request. As the last line of a notebook's cell it shows itself as a page.

    What it says is in its attributes, such as `nodes`, `logits` and `loss`: see help(DebugAnswer).
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        """What notebooks show: the page in a frame of its own."""
        from tdb_client.report.notebook import frame

        return frame(self.to_html())

    def to_html(self, *, before: DebugResult | None = None) -> str:
        """The result as one self-contained HTML page, which asks nothing of the network.

        Args:
            before: a result for the same prompt to compare with, such as that without the ablations.

        Raises:
            ValueError: `before` has another prompt, objective or baseline.
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
            ValueError: `before` has another prompt, objective or baseline.
        """
        from tdb_client.report.notebook import show

        show(self.to_html(before=before))


def debug_result(request: DebugSubRequest, result: InferenceResult) -> DebugResult:
    """Reads the named results of a debug sub-request.

    Raises:
        IncompleteResponseError: one of them is missing.
    """
    sums = named_result(result, "componentSumsForTokenDisplay", MultipleTopKResult)
    return DebugResult(
        request=request,
        call=result.call,
        prompt=result.prompt,
        loss=result.loss,
        traced_value=result.traced_value,
        nodes=_node_table(result, request.token_lists),
        logits=_logit_table(named_result(result, "topOutputTokenLogits", MultipleTopKResult)),
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
        backward_rule=result.backward_rule,
        totals=_totals(result),
        baselines=result.baselines,
        circuit=result.circuit,
    )


def with_notes(result: DebugResult, model: ModelInfo) -> DebugResult:
    """The result with its model's description, and the labels and links that this has of its latents."""
    nodes = result.nodes.nodes
    labels, links = tuple(map(model.label, nodes)), tuple(map(model.link, nodes))
    return replace(result, nodes=replace(result.nodes, labels=labels, links=links), model=model)


def _node_table(result: InferenceResult, has_token_lists: bool) -> NodeTable:
    ranking = named_result(result, "topKComponents", MultipleTopKResult)
    missing = {"write_norm", "act_times_grad", "direction_write", "activation"} - ranking.groups.keys()
    if missing:
        raise IncompleteResponseError(f"the node table has no {', '.join(sorted(missing))}")

    none = (None,) * len(ranking.nodes)

    def scored(name: str) -> Sequence[TopTokens | None]:
        if not has_token_lists:
            return none
        return named_result(result, name, ScoredTokensResult).top_tokens

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
        attended_to=named_result(result, "tokenPairAttribution", TokenPairAttributionResult).attended_to
        if has_token_lists
        else none,
        labels=none,
        links=none,
    )


def _totals(result: InferenceResult) -> dict[str, FloatArray]:
    """Totals by derived scalar; empty from servers that are older than the request for them."""
    found = result.results.get("componentTotals")
    if not isinstance(found, ComponentTotalsResult):
        return {}
    return {name: one.array for name, one in found.totals.items()}


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
