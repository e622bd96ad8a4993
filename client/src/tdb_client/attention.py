"""The whole attention of the heads that matter most: what a debug answer lists for a few token pairs only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tdb_client.debug_result import DebugResult
from tdb_client.errors import IncompleteResponseError
from tdb_client.inference import (
    AblationSpec,
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    InferenceSubRequest,
)
from tdb_client.interventions import Ablation
from tdb_client.nodes import NodeType
from tdb_client.results import DerivedAttentionScalarsResult, FloatArray, InferenceResult

N_HEADS = 16
"""Heads whose attention is asked for unless told otherwise."""

MAX_CELLS = 2_000_000
"""Token pairs, of all heads and runs together, that are asked for at most: some 16 MB of answer."""

_PLACES: Mapping[NodeType, str] = {
    "attention_head": "attn_qk_probs",
    "mlp_neuron": "mlp_post_act",
    "autoencoder_latent": "online_autoencoder_latent",
    "mlp_autoencoder_latent": "online_mlp_autoencoder_latent",
    "attention_autoencoder_latent": "online_attention_autoencoder_latent",
    "resid_post_attn_autoencoder_latent": "online_resid_post_attn_autoencoder_latent",
    "resid_post_mlp_autoencoder_latent": "online_resid_post_mlp_autoencoder_latent",
    "mlp_transcoder_latent": "online_mlp_transcoder_latent",
}
"""Where an ablated node's activation is."""


def of_one_call(results: Sequence[DebugResult]) -> list[list[int]]:
    """The numbers of the results that came of the same call, call by call."""
    calls: dict[object, list[int]] = {}
    for number, one in enumerate(results):
        calls.setdefault((one.call, len(one.prompt)), []).append(number)
    return list(calls.values())


def attention_requests(results: Sequence[DebugResult], n_heads: int) -> list[InferenceSubRequest]:
    """A sub-request per result: the same prompt, the same ablations. Empty when no head is listed.

    Args:
        results: of one call.
        n_heads: how many heads, fewer where the prompt is long.
    """
    if not results:
        return []
    n_pairs = len(results) * len(results[0].prompt) ** 2
    heads = _strongest_heads(results)[: min(n_heads, MAX_CELLS // n_pairs)]
    if not heads:
        return []
    wanted = {
        f"L{layer} head {index}": DerivedAttentionScalarsSpec("attn_qk_probs", layer, index)
        for layer, index in heads
    }
    return [
        InferenceSubRequest(
            one.request.prompt,
            ablate=tuple(_ablation_spec(ablation, len(one.prompt)) for ablation in one.request.ablate),
            results=wanted,
            add_bos=one.request.add_bos,
        )
        for one in results
    ]


def with_answers(results: Sequence[DebugResult], answers: Sequence[InferenceResult]) -> list[DebugResult]:
    """The results with the attention that was answered."""
    return [
        replace(one, attention={name: _pattern(answer, name) for name in answer.results})
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


def _ablation_spec(ablation: Ablation, n_tokens: int) -> AblationSpec:
    node = ablation.node.resolve(n_tokens)
    is_head = node.type == "attention_head"
    indices = (node.token, None, node.index) if is_head else (node.token, node.index)
    return AblationSpec(ActivationIndex(_PLACES[node.type], node.layer, indices), ablation.value)


def _pattern(answer: InferenceResult, name: str) -> FloatArray:
    found = answer.results[name]
    if not isinstance(found, DerivedAttentionScalarsResult):
        raise IncompleteResponseError(f"the answer has no attention of {name}")
    return found.scalars
