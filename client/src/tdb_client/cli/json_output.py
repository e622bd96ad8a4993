"""What `--json` prints. Numbers that are not finite become null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from tdb_client.ablation_effects import AblationEffects
from tdb_client.component_table import ComponentTable
from tdb_client.debug_result import DebugResult
from tdb_client.diagnosis import Check
from tdb_client.edges import Edges
from tdb_client.model_info import ModelInfo
from tdb_client.node_table import NodeTable
from tdb_client.requests import DebugSubRequest
from tdb_client.results import (
    AttendedToTokens,
    InferenceResult,
    LensResult,
    PromptTokens,
    RankedTokens,
    TopTokens,
)

Json = dict[str, object]


def model(info: ModelInfo) -> Json:
    """The model as in ModelInfo."""
    return asdict(info)


def tokens(prompt: PromptTokens) -> Json:
    """Tokens as parallel lists, and whether the first one was put in front of the text."""
    return {
        "token_ids": list(prompt.token_ids),
        "tokens": list(prompt.tokens),
        "bos_added": prompt.bos_added,
    }


def diagnosis(checks: Sequence[Check]) -> Json:
    """What was checked, and whether there was no problem."""
    return {"ok": all(one.outcome != "problem" for one in checks), "checks": [asdict(one) for one in checks]}


def debug(results: Sequence[DebugResult]) -> Json:
    """The call, and for every sub-request what was asked and answered."""
    first = results[0]
    return {
        "call": asdict(first.call),
        "timings": asdict(first.timings),
        "peak_memory_bytes": first.peak_memory_bytes,
        "cached": first.cached,
        "sub_requests": [
            {"request": _request(result.request), "result": _result(result)} for result in results
        ],
    }


def edges(found: Edges) -> Json:
    """The call, what was asked, and the listed edges; with the matrix where it was asked for."""
    result = found.result
    return {
        "call": asdict(found.call),
        "request": asdict(found.request),
        "prompt": tokens(found.prompt),
        "loss": found.loss,
        "cached": found.cached,
        "writers": [asdict(one) for one in result.writers],
        "readers": [asdict(one) for one in result.readers],
        "writers_before": list(result.writers_before),
        "edges": [
            {"writer": asdict(one.writer), "reader": asdict(one.reader), "score": one.score} for one in found
        ],
        "scores": None if result.scores is None else [_numbers(row) for row in result.scores],
    }


def lens(answer: InferenceResult, found: LensResult) -> Json:
    """The call, and by row (the embedding, then the layers) and token of the prompt all logits."""
    return {
        "call": asdict(answer.call),
        "prompt": tokens(answer.prompt),
        "cached": answer.cached,
        "layers": list(found.layers),
        "at": list(found.at),
        "tokens": list(found.tokens),
        "token_ids": list(found.token_ids),
        "logits": None if found.logits is None else _numbers(found.logits),
        "top_tokens": [
            [
                [
                    {"token": token, "token_id": int(token_id), "logit": _number(logit)}
                    for token, token_id, logit in zip(one.tokens, one.ids, one.logits, strict=True)
                ]
                for one in row
            ]
            for row in found.top_tokens
        ],
    }


def ablations(effects: AblationEffects) -> Json:
    """The objective, and every node with what its ablation does."""
    return {
        "call": asdict(effects.call),
        **tokens(effects.prompt),
        "objective_name": effects.objective_name,
        "objective": _number(effects.objective),
        "nodes": [
            {
                "node": str(one.node),
                "words": effects.words[row],
                "value": _number(one.value),
                "value_type": one.value_type,
                "objective": _number(effects.ablated[row]),
                "change": _number(effects.change[row]),
            }
            for row, one in enumerate(effects.ablations)
        ],
    }


def _request(request: DebugSubRequest) -> Json:
    return {
        "prompt": request.prompt,
        "target": list(request.target),
        "distractor": list(request.distractor),
        "k": request.k,
        "ablate": [str(one) for one in request.ablate],
        "trace": None if request.trace is None else str(request.trace),
        "downstream": None if request.downstream is None else str(request.downstream),
        "mlp": request.mlp,
        "attention": request.attention,
        "residual_stream": list(request.residual_stream),
        "hide_early_layers": request.hide_early_layers,
        "add_bos": request.add_bos,
        "backward_rule": request.backward_rule,
        "attention_pattern_gradients": request.attention_pattern_gradients,
        "loss": None if request.loss is None else asdict(request.loss),
        "token_lists": request.token_lists,
        "baseline": list(request.baseline),
        "only_these": None if request.only_these is None else list(map(str, request.only_these)),
        "node_types": list(request.node_types),
    }


def _result(result: DebugResult) -> Json:
    logits = result.logits
    return {
        **tokens(result.prompt),
        "loss": _number(result.loss),
        "traced_value": _number(result.traced_value),
        "held_norm_scales": list(result.held_norm_scales),
        "backward_rule": result.backward_rule,
        "components": _components(result.components),
        "baselines": list(map(tokens, result.baselines)),
        "circuit": None if result.circuit is None else asdict(result.circuit),
        "nodes": [_node(result.nodes, row) for row in range(len(result.nodes))],
        "logits": [
            {"token": token, "token_id": int(token_id), "logit": _number(logit)}
            for token, token_id, logit in zip(logits.tokens, logits.token_ids, logits.logits, strict=True)
        ],
        "sums": {
            group: {name: _numbers(array) for name, array in scalars.items()}
            for group, scalars in result.sums.items()
        },
    }


def _node(nodes: NodeTable, row: int) -> Json:
    node = nodes.nodes[row]
    return {
        "node": str(node),
        "words": nodes.words[row],
        "type": node.kind,
        "layer": node.layer,
        "index": node.index,
        "token": node.token,
        "attended_to": node.attended_to,
        "write_norm": _number(nodes.write_norm[row]),
        "act_times_grad": _number(nodes.act_times_grad[row]),
        "direct_effect": _number(nodes.direct_effect[row]),
        "activation": _number(nodes.activation[row]),
        "upvoted_tokens": _top_tokens(nodes.upvoted_tokens[row]),
        "input_tokens": _top_tokens(nodes.input_tokens[row]),
        "query_tokens": _top_tokens(nodes.query_tokens[row]),
        "key_tokens": _top_tokens(nodes.key_tokens[row]),
        "attended_to_tokens": _attended_to(nodes.attended_to[row]),
        "label": nodes.labels[row],
        "link": nodes.links[row],
    }


def _top_tokens(scored: TopTokens | None) -> Json | None:
    return None if scored is None else {"top": _ranked(scored.top), "bottom": _ranked(scored.bottom)}


def _ranked(ranked: RankedTokens) -> list[Json]:
    return [
        {"token": token, "token_id": int(token_id), "score": _number(score)}
        for token, token_id, score in zip(ranked.tokens, ranked.ids, ranked.scores, strict=True)
    ]


def _attended_to(attended_to: AttendedToTokens | None) -> list[Json] | None:
    if attended_to is None:
        return None
    pairs = zip(attended_to.token_indices, attended_to.attributions, strict=True)
    return [{"token": int(token), "attribution": _number(attribution)} for token, attribution in pairs]


def _components(table: ComponentTable) -> list[Json]:
    return [
        {
            "component": name,
            "layer": None if table.layers[row] < 0 else int(table.layers[row]),
            "write_norm": _number(table.write_norm[row]),
            "act_times_grad": _number(table.act_times_grad[row]),
            "direct_effect": _number(table.direct_effect[row]),
        }
        for row, name in enumerate(table.components)
    ]


def _number(value: float | np.floating | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _numbers(array: npt.NDArray[np.floating]) -> list[object]:
    return [_numbers(row) if row.ndim else _number(row) for row in array]
