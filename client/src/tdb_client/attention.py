"""The whole attention of the heads that matter most: what a debug answer lists for a few token pairs only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tdb_client.debug_result import DebugResult
from tdb_client.encoding import ablated_cells
from tdb_client.inference import (
    DerivedAttentionScalarsSpec,
    InferenceSubRequest,
)
from tdb_client.interventions import Ablation
from tdb_client.requests import resolve
from tdb_client.results import DerivedAttentionScalarsResult, InferenceResult, named_result

N_HEADS = 16
"""Heads whose attention is asked for by default."""

MAX_CELLS = 2_000_000
"""Token pairs, of all heads and runs together, that are asked for at most: some 16 MB of answer."""


def numbers_by_call(results: Sequence[DebugResult]) -> list[list[int]]:
    """The numbers of the results that came of the same call, for each call."""
    calls: dict[object, list[int]] = {}
    for number, one in enumerate(results):
        calls.setdefault((one.call, len(one.prompt)), []).append(number)
    return list(calls.values())


def attention_requests(results: Sequence[DebugResult], n_heads: int) -> list[InferenceSubRequest]:
    """A sub-request per result: the same prompt, the same ablations. Empty when no head is listed.

    Empty, too, where a head's node with its attended-to token is set to the baseline's, which a debug request
    alone can say.

    Args:
        results: of one call.
        n_heads: how many heads, fewer where the prompt is long.
    """
    if not results:
        return []
    n_pairs = len(results) * len(results[0].prompt) ** 2
    heads = _strongest_heads(results)[: min(n_heads, MAX_CELLS // n_pairs)]
    if not heads or any(map(_is_patched_pair, (each for one in results for each in one.request.ablate))):
        return []
    wanted = {
        f"L{layer} head {index}": DerivedAttentionScalarsSpec("attn_qk_probs", layer, index)
        for layer, index in heads
    }
    resolved = [
        resolve(one.request, {(one.request.prompt, one.request.add_bos): len(one.prompt)}) for one in results
    ]
    return [
        InferenceSubRequest(
            one.prompt,
            loss=None if one.only_these is None else one.objective,
            ablate=tuple(map(ablated_cells, one.ablate)),
            results=wanted,
            add_bos=one.add_bos,
            baseline=one.baseline,
            only_these=one.only_these,
            node_types=one.node_types,
        )
        for one in resolved
    ]


def with_answers(results: Sequence[DebugResult], answers: Sequence[InferenceResult]) -> list[DebugResult]:
    """The results with the attention that was answered."""
    return [
        replace(
            one,
            attention={
                name: named_result(answer, name, DerivedAttentionScalarsResult).scalars
                for name in answer.results
            },
        )
        for one, answer in zip(results, answers, strict=True)
    ]


def _strongest_heads(results: Sequence[DebugResult]) -> list[tuple[int, int]]:
    """Layer and index of every listed head, the one with the largest effect or change of it first."""
    sizes: dict[tuple[int, int], float] = {}
    for one in results:
        effects = np.maximum(np.abs(one.nodes.direct_effect), np.abs(one.nodes.act_times_grad))
        for node, size in zip(one.nodes.nodes, np.nan_to_num(effects), strict=True):
            if node.type == "attention_head" and node.layer is not None:
                head = (node.layer, node.index)
                sizes[head] = max(float(size), sizes.get(head, 0.0))
    return sorted(sizes, key=lambda head: -sizes[head])


def _is_patched_pair(ablation: Ablation) -> bool:
    is_head = ablation.node.type == "attention_head"
    return is_head and ablation.value_type == "baseline" and ablation.node.attended_to is not None
