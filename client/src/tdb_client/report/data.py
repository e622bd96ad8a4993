"""What the page's script draws: one or two results as plain data, with every text ready to be shown.

Numbers are rounded to five digits and are None where they are not finite or not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdb_client.compatibility import client_version
from tdb_client.debug_answer import DebugAnswer
from tdb_client.node_table import NodeScalar
from tdb_client.nodes import Node
from tdb_client.report import request_text
from tdb_client.report.token_sums import causal_rows, pair_sums, shown_pair_tokens, token_sums
from tdb_client.results import AttendedToTokens, RankedTokens, TopTokens
from tdb_client.token_text import printable, quoted

Json = dict[str, object]
Number = float | None

N_LOGITS = 10
SCALARS: tuple[NodeScalar, ...] = ("direct_effect", "act_times_grad", "write_norm", "activation")


def report_data(results: Sequence[DebugAnswer]) -> Json:
    """One result, or two for the same prompt to compare: before and after.

    Raises:
        ValueError: the two are about different prompts.
    """
    first, last = results[0], results[-1]
    if any(one.prompt.token_ids != first.prompt.token_ids for one in results):
        raise ValueError("only results for the same prompt can be compared")
    notes = {  # of every node
        node: (label, link)
        for one in results
        for node, label, link in zip(one.nodes.nodes, one.nodes.labels, one.nodes.links, strict=True)
    }
    nodes = list(notes)
    token_ids = shown_logits(results)
    pair_tokens = shown_pair_tokens(results)
    asked = [replace(one.request, add_bos=one.prompt.bos_added or one.request.add_bos) for one in results]
    return {
        "objective": last.objective,
        "ablations": [f"{one} (whole row)" if one.is_row else str(one) for one in last.request.ablate],
        "facts": _facts(last),
        "tokens": [{"text": printable(one), "quoted": quoted(one)} for one in first.prompt.tokens],
        "nodes": [_node(node, *notes[node]) for node in nodes],
        "logits": _logit_tokens(results, token_ids),
        "pair_tokens": pair_tokens,
        "runs": [_run(one, nodes, token_ids, pair_tokens) for one in results],
        "request": {
            "command": request_text.command(asked[-1]),
            "program": request_text.program(asked[-1]),
            "message": request_text.message(asked, len(first.prompt)),
            "method": f"{request_text.SERVICE}/Debug",
        },
    }


def shown_logits(results: Sequence[DebugAnswer]) -> list[int]:
    """Vocabulary indices: the likeliest of each result, targets and distractors, by the first's logit."""
    chosen: dict[int, float] = {}
    for one in results:
        rows = zip(one.logits.tokens, one.logits.token_ids, one.logits.logits, strict=True)
        for rank, (token, token_id, logit) in enumerate(rows):
            if rank < N_LOGITS or any(other.role(int(token_id), token) for other in results):
                chosen.setdefault(int(token_id), float(logit))
    return sorted(chosen, key=lambda token_id: -chosen[token_id])


def _run(result: DebugAnswer, nodes: list[Node], token_ids: list[int], pair_tokens: list[int]) -> Json:
    row_of = {node: row for row, node in enumerate(result.nodes.nodes)}
    rows = [row_of.get(node) for node in nodes]
    logits = {
        int(token_id): _number(logit)
        for token_id, logit in zip(result.logits.token_ids, result.logits.logits, strict=True)
    }
    table = result.nodes
    return {
        "value": _number(result.objective_value),
        "attribution": [_number(one) for one in result.token_attribution],
        "scalars": {
            name: [None if row is None else _number(table.scalar(name)[row]) for row in rows]
            for name in SCALARS
        },
        "tokens": [
            None
            if row is None
            else {
                "writes": _ends(table.upvoted_tokens[row]),
                "input": _ends(table.input_tokens[row]),
                "query": _ends(table.query_tokens[row]),
                "key": _ends(table.key_tokens[row]),
                "attended_to": _attended_to(table.attended_to[row]),
            }
            for row in rows
        ],
        "logits": [logits.get(token_id) for token_id in token_ids],
        "sums": {
            name: {
                part: [_number(one) for one in values] for part, values in token_sums(result, name).items()
            }
            for name in SCALARS
        },
        "pairs": {
            name: [[_number(one) for one in row] for row in pair_sums(result, name, pair_tokens)]
            for name in SCALARS
        },
        "attention": {
            head: [[_number(one) for one in row] for row in causal_rows(pattern, pair_tokens)]
            for head, pattern in result.attention.items()
        },
    }


def _node(node: Node, label: str | None, link: str | None) -> Json:
    return {
        "spelling": str(node),
        "component": node.component,
        "type": node.type,
        "layer": node.layer,
        "index": node.index,
        "token": node.token,
        "attended_to": node.attended_to,
        "label": label,
        "link": link,
    }


def _facts(result: DebugAnswer) -> Json:
    seconds = result.timings
    compute = (
        seconds.forward_seconds + seconds.backward_seconds + seconds.derive_seconds + seconds.score_seconds
    )
    return {
        "model": result.call.model_name,
        "weights": result.call.model_digest,
        "request id": result.call.request_id,
        "backward rule": result.backward_rule,
        "norm scales held constant": _held_norm_scales(result),
        "compute": f"{compute:.2f} s{', from the cache' if result.cached else ''}",
        "client": f"transformer-debugger-client {client_version()}",
    }


def _held_norm_scales(result: DebugAnswer) -> str:
    if result.backward_rule != "gradient":
        return "all"
    if not result.held_norm_scales:
        return "not said"  # by an older server
    traced = [] if result.request.trace is None else ["the traced node's own"]
    return ", ".join([*result.held_norm_scales, *traced])


def _logit_tokens(results: Sequence[DebugAnswer], token_ids: list[int]) -> list[Json]:
    texts: dict[int, str] = {}
    for one in results:
        texts |= {int(id_): text for id_, text in zip(one.logits.token_ids, one.logits.tokens, strict=True)}
    return [{"token": quoted(texts[one]), "role": results[-1].role(one, texts[one])} for one in token_ids]


def _ends(scored: TopTokens | None) -> list[list[list[object]]] | None:
    return None if scored is None else [_ranked(scored.top), _ranked(scored.bottom)]


def _ranked(ranked: RankedTokens) -> list[list[object]]:
    pairs = zip(ranked.tokens, ranked.scores, strict=True)
    return [[quoted(token), _number(score)] for token, score in pairs]


def _attended_to(attended_to: AttendedToTokens | None) -> list[list[Number]] | None:
    if attended_to is None:
        return None
    pairs = zip(attended_to.token_indices, attended_to.attributions, strict=True)
    return [[int(token), _number(attribution)] for token, attribution in pairs]


def _number(value: float | np.floating | None) -> Number:
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
