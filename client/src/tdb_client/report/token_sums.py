"""Sums per token, and per pair of tokens, of what a page shows, by the kind of component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tdb_client.debug_answer import DebugAnswer
from tdb_client.node_table import NodeScalar
from tdb_client.results import FloatArray

MAX_PAIR_TOKENS = 48
"""Tokens on each side of the grid; of longer prompts, those that matter most."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Where a scalar's sums stand in a result: the group, and its derived scalar per kind of component."""

    group: str
    embedding: str
    neurons: str
    heads: str


SUMS: Mapping[NodeScalar, Sums] = {
    "direct_effect": Sums(
        "direction_write",
        "resid_post_embedding_proj_to_final_residual_grad",
        "mlp_write_to_final_residual_grad",
        "unflattened_attn_write_to_final_residual_grad",
    ),
    "act_times_grad": Sums(
        "act_times_grad", "token_attribution", "mlp_act_times_grad", "unflattened_attn_act_times_grad"
    ),
    "write_norm": Sums(
        "write_norm", "resid_post_embedding_norm", "mlp_write_norm", "unflattened_attn_write_norm"
    ),
    "activation": Sums("activation", "always_one", "mlp_post_act", "attn_qk_probs"),
}


def token_sums(result: DebugAnswer, name: NodeScalar) -> dict[str, FloatArray]:
    """Per token [T]: embedding, neurons, the heads that attend from it, and those that attend to it."""
    wanted = SUMS[name]
    found = result.sums.get(wanted.group, {})
    sums = {
        part: found[getattr(wanted, part)] for part in ("embedding", "neurons") if _has(found, wanted, part)
    }
    if _has(found, wanted, "heads"):
        heads = found[wanted.heads]
        sums |= {"heads_from": heads.sum(axis=1), "heads_to": heads.sum(axis=0)}
    return sums


def pair_sums(result: DebugAnswer, name: NodeScalar, tokens: Sequence[int]) -> list[FloatArray]:
    """All heads together, per pair of the given tokens: a row per attending token, up to that token."""
    heads = result.sums.get(SUMS[name].group, {}).get(SUMS[name].heads)
    return [] if heads is None else causal_rows(heads, tokens)


def causal_rows(pairs: FloatArray, tokens: Sequence[int]) -> list[FloatArray]:
    """Of numbers per token pair [T, T] those of the given tokens: a row per attending token, up to itself."""
    return [row[: place + 1] for place, row in enumerate(pairs[np.ix_(tokens, tokens)])]


def shown_pair_tokens(results: Sequence[DebugAnswer]) -> list[int]:
    """The tokens of the grid, in order: all of a short prompt, else those with the largest effects."""
    n_tokens = len(results[0].prompt)
    if n_tokens <= MAX_PAIR_TOKENS:
        return list(range(n_tokens))
    weight = np.zeros(n_tokens)
    for one in results:
        for name in ("direct_effect", "act_times_grad"):
            heads = one.sums.get(SUMS[name].group, {}).get(SUMS[name].heads)
            if heads is not None:
                weight += _sizes_by_token(heads)
    return sorted(int(token) for token in np.argsort(-weight, kind="stable")[:MAX_PAIR_TOKENS])


def _sizes_by_token(pairs: FloatArray) -> FloatArray:
    """Of numbers per token pair [T, T] the sizes of all in which a token takes part, added up [T]."""
    sizes = np.abs(pairs)
    found: FloatArray = sizes.sum(axis=0) + sizes.sum(axis=1)
    if not np.isfinite(found).all():  # rare, and to look at every number takes long
        sizes = np.nan_to_num(sizes)
        found = sizes.sum(axis=0) + sizes.sum(axis=1)
    return found


def _has(found: Mapping[str, FloatArray], wanted: Sums, part: str) -> bool:
    return getattr(wanted, part) in found
