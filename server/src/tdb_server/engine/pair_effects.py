"""Direct effects of token pairs: what heads write at one token with what they read from another.

    effect(q, k, h) = attention(q, k, h) · (v(k, h) W_O[h]) · direction of interest(q) / scale(q)

With baselines it is that less the mean over them of the same with their attention, values and scale. Both
factors differ, so that it is a difference of products; and it is made row by row, as every row has baselines,
tokens and directions of its own. What is set to the baselines' contribution writes the mean of their
products, over the row's own scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.engine.products import Layers
from tdb_server.engine.references import nonzero
from tdb_server.engine.rows import Rows, axes_of, of_each
from tdb_server.engine.streams import attention_depth
from tdb_server.model.decoder import Block


def pair_effects(rows: Rows) -> list[Layers]:
    """Direct effects of token pairs, as factors: of each layer [B, H, n, T]."""
    pattern = HookPoint.ATTN_QK_PROBS
    probs = rows.at_direction_tokens(pattern, rows.values(pattern), axes_of(pattern))
    projected = _projected_values(rows)
    if not rows.has_baselines:
        return [probs, projected]

    def contrast() -> Layers:
        found = []
        for own_probs, own_projected, (layer, block) in zip(
            probs.tensors, projected.tensors, rows.blocks, strict=True
        ):
            seen, others = rows.seen_directions(attention_depth(layer)), []
            for row in range(rows.n_rows):
                onto_of_each = _over_baseline_scales(rows, row, layer, seen[row])
                others.append(_baseline_effects(rows, row, layer, block, onto_of_each))
            own = own_probs * own_projected
            for row, pairs in _pairs_set_to_baselines(rows, layer, own).items():
                # They write what the baselines' do, here over the row's own scale.
                onto = rows.seen_by_writes(pattern, layer, attention_depth(layer))[row]
                onto_of_each = [onto] * len(rows.planned[row].baselines)
                written = _baseline_effects(rows, row, layer, block, onto_of_each)
                own[row] = torch.where(pairs, written, own[row])
            found.append(own - torch.stack(others))
        return Layers(found)

    return [rows.once("contrasted effects of pairs", contrast)]


def _projected_values(rows: Rows) -> Layers:
    """What full attention to a token writes · directions of interest: of each layer [B, H, n, T]."""

    def project() -> Layers:
        onto = [
            block.attention.write_transposed(
                rows.seen_by_writes(HookPoint.ATTN_QK_PROBS, at, attention_depth(at))
            )
            for at, block in rows.blocks
        ]
        return of_each(project_values, rows.values(HookPoint.ATTN_V), Layers(onto))

    return rows.once("projected values", project)


def _over_baseline_scales(rows: Rows, row: int, layer_index: int, directions: Tensor) -> list[Tensor]:
    """Directions of interest [n, d], for each baseline over the scale of what attention writes in it."""
    references, tokens = rows.references, rows.direction_tokens[row]
    scale_point = rows.model.decoder.write_scales.get(HookPoint.ATTN_QK_PROBS)
    baselines = rows.planned[row].baselines
    assert references is not None
    if scale_point is None:
        return [directions] * len(baselines)
    scales = [references.values((one,), scale_point, layer_index) for one in baselines]
    return [directions / nonzero(one)[tokens] for one in scales]


def _baseline_effects(
    rows: Rows, row: int, layer_index: int, block: Block, onto_of_each: Sequence[Tensor]
) -> Tensor:
    """The mean of what baselines write between two tokens · vectors for each of them [n, d]: [H, n, T]."""
    references, tokens = rows.references, rows.direction_tokens[row]
    assert references is not None
    found = []
    for one, onto in zip(rows.planned[row].baselines, onto_of_each, strict=True):
        values = references.values((one,), HookPoint.ATTN_V, layer_index)
        probs = references.values((one,), HookPoint.ATTN_QK_PROBS, layer_index)[:, tokens]
        found.append(probs * project_values(values, block.attention.write_transposed(onto)))
    return torch.stack(found).mean(dim=0)


def _pairs_set_to_baselines(rows: Rows, layer_index: int, effects: Tensor) -> dict[int, Tensor]:
    """By row, the pairs [H, n, T] whose contributions are set to the baselines'. Effects are [B, H, n, T]."""
    found: dict[int, Tensor] = {}
    for one in rows.in_these_rows(rows.plan.interventions.get((HookPoint.ATTN_V_OUT, layer_index), ())):
        query, head, channel = one.ablation.index.tensor_indices
        if not one.needs_baseline or channel is not None:
            continue
        pairs = found.setdefault(one.row, torch.zeros_like(effects[one.row], dtype=torch.bool))
        tokens = rows.direction_tokens[one.row]
        for is_set, (token, of_head) in ((True, (query, head)), *((False, cell) for cell in one.kept)):
            heads = slice(None) if of_head is None else slice(of_head, of_head + 1)
            queries = torch.ones_like(tokens, dtype=torch.bool) if token is None else tokens == token
            key = one.ablation.attended_to_token
            keys = slice(None) if key is None else slice(key, key + 1)
            pairs[heads, :, keys] = torch.where(
                queries[:, None], torch.full_like(pairs[heads, :, keys], is_set), pairs[heads, :, keys]
            )
    return found


def project_values(values: Tensor, onto: Tensor) -> Tensor:
    """`v(k, h) · onto(h)` for n vectors of all heads' channels.

    Values [..., G, T, e] and vectors [..., n, H * e] to [..., H, n, T].
    """
    *rows, n_groups, n_tokens, d_head = values.shape
    n = onto.shape[-2]
    by_head = onto.view(*onto.shape[:-1], -1, d_head).transpose(-2, -3)  # [..., H, n, e]
    by_group = by_head.reshape(*rows, n_groups, -1, d_head)  # [..., G, H / G * n, e]
    found: Tensor = by_group @ values.transpose(-1, -2)
    return found.view(*rows, -1, n, n_tokens)
