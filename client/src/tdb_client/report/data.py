"""What the page's script draws: one or two results as plain data, with every text ready to be shown.

Numbers are rounded to five digits, logits to seven, and are None where they are not finite or not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tdb_client.compatibility import client_version
from tdb_client.debug_answer import DebugAnswer
from tdb_client.node_table import NodeScalar, NodeTable
from tdb_client.nodes import Node
from tdb_client.number_text import number
from tdb_client.report import request_text
from tdb_client.report.rounding import rounded, rounded_rows
from tdb_client.report.token_sums import causal_rows, pair_sums, shown_pair_tokens, token_sums
from tdb_client.results import AttendedToTokens, TopTokens
from tdb_client.token_text import printable, quoted

Json = dict[str, object]
Pairs = list[list[object]]

DIGITS = 5
LOGIT_DIGITS = 7
"""Logits can be large, and differ little between two runs."""
N_LOGITS = 10
SCALARS: tuple[NodeScalar, ...] = ("direct_effect", "act_times_grad", "write_norm", "activation")


def report_data(results: Sequence[DebugAnswer]) -> Json:
    """One result, or two to compare: before and after.

    Raises:
        ValueError: the two have different prompts, baselines or objectives, so that differences mean nothing.
    """
    first, last = results[0], results[-1]
    if any(one.prompt.token_ids != first.prompt.token_ids for one in results):
        raise ValueError("only results for the same prompt can be compared")
    if _objective(first) != _objective(last):
        raise ValueError(
            f"only results for one objective can be compared: {first.objective}; {last.objective}"
        )
    if first.baselines != last.baselines:
        raise ValueError("only results with the same baselines can be compared")
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
        "ablations": _ablations(last),
        "ablations_before": _ablations(first),
        "facts": _facts(last),
        "baselines": ["".join(map(printable, one.tokens)) for one in last.baselines],
        "circuit": None if last.circuit is None else circuit_words(last),
        "tokens": [{"text": printable(one), "quoted": quoted(one)} for one in first.prompt.tokens],
        "nodes": [_node(node, *notes[node]) for node in nodes],
        "logits": _logit_tokens(results, token_ids),
        "pair_tokens": pair_tokens,
        "runs": [_run(one, nodes, token_ids, pair_tokens) for one in results],
        "request": {
            "command": request_text.commands(asked),
            "program": request_text.program(asked),
            "message": request_text.message(asked, len(first.prompt)),
            "method": f"{request_text.SERVICE}/Debug",
        },
    }


def _ablations(result: DebugAnswer) -> list[str]:
    return [f"{one} (whole row)" if one.is_row else str(one) for one in result.request.ablate]


def _objective(result: DebugAnswer) -> object:
    """What tells objectives apart, however they were spelled."""
    request, n_tokens = result.request, len(result.prompt)
    traces = [one and one.words(result.prompt.tokens) for one in (request.trace, request.downstream)]
    loss, found = request.objective, result.loss_tokens
    at = range(n_tokens)[-1 if loss.token is None else loss.token]
    if found is None:  # the texts must do
        return traces, replace(loss, token=at)
    return traces, (
        loss.name,
        at,
        loss.target_weights,
        loss.direction,
        found.target_ids,
        found.distractor_ids,
    )


def circuit_words(result: DebugAnswer) -> str:
    """What was kept of the model, and how much of the objective that keeps."""
    circuit, kept = result.circuit, result.request.only_these or ()
    if circuit is None:
        return ""
    nodes = ", ".join(map(str, kept)) or "none"
    faithfulness = "not defined" if circuit.faithfulness is None else f"{circuit.faithfulness:.3f}"
    types = " and ".join(one.replace("_", " ") for one in result.request.node_types)
    return (
        f"of {types} nodes only these are kept: {nodes}; faithfulness"
        f" {faithfulness} (prompt {number(circuit.of_prompt)}, baseline {number(circuit.of_baseline)})"
    )


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
    table = result.nodes
    row_of = {node: row for row, node in enumerate(table.nodes)}
    rows = [row_of.get(node) for node in nodes]
    logits = rounded(result.logits.logits, LOGIT_DIGITS)
    logit_of = dict(zip(result.logits.token_ids.tolist(), logits, strict=True))
    value = result.objective_value
    return {
        "value": None if value is None else rounded(np.array([value]), LOGIT_DIGITS)[0],
        "attribution": rounded(result.token_attribution, DIGITS),
        "scalars": {name: _at(rows, rounded(table.scalar(name), DIGITS)) for name in SCALARS},
        "tokens": _at(rows, _node_tokens(table)),
        "logits": [logit_of.get(token_id) for token_id in token_ids],
        "sums": {
            name: {part: rounded(values, DIGITS) for part, values in token_sums(result, name).items()}
            for name in SCALARS
        },
        "pairs": {name: rounded_rows(pair_sums(result, name, pair_tokens), DIGITS) for name in SCALARS},
        "attention": {
            head: rounded_rows(causal_rows(pattern, pair_tokens), DIGITS)
            for head, pattern in result.attention.items()
        },
    }


def _at(rows: Sequence[int | None], values: Sequence[object]) -> list[object]:
    """The values of some nodes; None for a node that has no row."""
    return [None if row is None else values[row] for row in rows]


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


def _node_tokens(table: NodeTable) -> list[Json]:
    columns = {
        "writes": ends(table.upvoted_tokens),
        "input": ends(table.input_tokens),
        "query": ends(table.query_tokens),
        "key": ends(table.key_tokens),
        "attended_to": _attended_to(table.attended_to),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def ends(column: Sequence[TopTokens | None]) -> list[tuple[Pairs, Pairs] | None]:
    """Of each node both ends of its ranking, tokens in quotes with their scores; None where it has none."""
    lists = column[:]
    ranked = [end for one in lists if one is not None for end in (one.top, one.bottom)]
    scores = iter(rounded_rows([one.scores for one in ranked], DIGITS))
    pairs = (_pairs(map(quoted, one.tokens), next(scores)) for one in ranked)
    return [None if one is None else (next(pairs), next(pairs)) for one in lists]


def _attended_to(column: Sequence[AttendedToTokens | None]) -> list[Pairs | None]:
    attributions = iter(rounded_rows([one.attributions for one in column if one is not None], DIGITS))
    return [None if one is None else _pairs(one.token_indices.tolist(), next(attributions)) for one in column]


def _pairs(first: Iterable[object], second: Iterable[object]) -> Pairs:
    return list(map(list, zip(first, second, strict=True)))
