"""Interventions: which cells of a batch's tensor they set, and what they do to gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, ValueType
from tdb_server.engine.interventions import Intervention, set_gradients, set_values
from torch import Tensor

N_ROWS, N_TOKENS, N_HEADS, WIDTH = 3, 5, 4, 6
ROW, ROW_TOKENS = 1, 3
"""The row that is altered is shorter than the batch, whose last two tokens are its padding."""
NOTHING_HIDDEN = torch.zeros(N_TOKENS, N_TOKENS, dtype=torch.bool)


def hidden_cells(window: int | None = None) -> Tensor:
    ones = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool)
    return ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)


def intervention(
    hook_point: HookPoint,
    indices: tuple[int | None, ...],
    value: float = 7.0,
    row: int = ROW,
    n_tokens: int = ROW_TOKENS,
) -> Intervention:
    return Intervention(row, n_tokens, AblationSpec(ActivationIndex(hook_point, 0, indices), value))


def cells_set(
    hook_point: HookPoint, indices: tuple[int | None, ...], shape: tuple[int, ...], window: int | None = None
) -> set[tuple[int, ...]]:
    """Where a zero tensor of a batch is no longer zero."""
    x = set_values(torch.zeros(shape), [intervention(hook_point, indices)], hidden_cells(window))
    assert set(x[x != 0].tolist()) <= {7.0}
    return {tuple(one) for one in x.nonzero().tolist()}


@pytest.mark.parametrize("token", [None, 0, 2])
@pytest.mark.parametrize("channel", [None, 4])
def test_hook_points_by_token(token: int | None, channel: int | None) -> None:
    tokens = range(ROW_TOKENS) if token is None else [token]
    channels = range(WIDTH) if channel is None else [channel]
    found = cells_set(HookPoint.MLP_POST_ACT, (token, channel), (N_ROWS, N_TOKENS, WIDTH))
    assert found == {(ROW, t, c) for t in tokens for c in channels}


@pytest.mark.parametrize("token", [None, 2])
@pytest.mark.parametrize("head", [None, 3])
@pytest.mark.parametrize("channel", [None, 5])
def test_hook_points_by_head(token: int | None, head: int | None, channel: int | None) -> None:
    """Clients index token first; inside, heads come first."""
    tokens = range(ROW_TOKENS) if token is None else [token]
    heads = range(N_HEADS) if head is None else [head]
    channels = range(WIDTH) if channel is None else [channel]
    found = cells_set(HookPoint.ATTN_V, (token, head, channel), (N_ROWS, N_HEADS, N_TOKENS, WIDTH))
    assert found == {(ROW, h, t, c) for h in heads for t in tokens for c in channels}


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("query", [None, 0, 2])
@pytest.mark.parametrize("key", [None, 0, 1])
@pytest.mark.parametrize("head", [None, 3])
def test_hook_points_by_token_pair(
    query: int | None, key: int | None, head: int | None, window: int | None
) -> None:
    """Only what attention sees is set: nothing to the right of the query, nothing outside the window."""
    queries = range(ROW_TOKENS) if query is None else [query]
    keys = range(ROW_TOKENS) if key is None else [key]
    heads = range(N_HEADS) if head is None else [head]
    seen = [(q, k) for q in queries for k in keys if k <= q and (window is None or q - k < window)]
    shape = (N_ROWS, N_HEADS, N_TOKENS, N_TOKENS)
    found = cells_set(HookPoint.ATTN_QK_PROBS, (query, key, head), shape, window)
    assert found == {(ROW, h, q, k) for h in heads for q, k in seen}


def test_setting_changes_a_copy_and_stops_the_gradient_at_the_cells() -> None:
    x = torch.arange(6.0).view(2, 1, 3).requires_grad_()
    own = [
        intervention(HookPoint.MLP_POST_ACT, (0, 1), 9.0, row=0, n_tokens=1),
        intervention(HookPoint.MLP_POST_ACT, (None, None), -1.0, row=1, n_tokens=1),
    ]
    altered = set_values(x, own, NOTHING_HIDDEN)
    assert altered.tolist() == [[[0.0, 9.0, 2.0]], [[-1.0, -1.0, -1.0]]]
    assert x.tolist() == [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]
    altered.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[1.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]


def test_the_last_of_several_holds() -> None:
    own = [
        intervention(HookPoint.MLP_POST_ACT, (0, None), 1.0),
        intervention(HookPoint.MLP_POST_ACT, (0, 2), 5.0),
    ]
    found = set_values(torch.zeros(N_ROWS, N_TOKENS, 3), own, NOTHING_HIDDEN)
    assert found[ROW, 0].tolist() == [1.0, 1.0, 5.0]


def test_without_interventions_nothing_is_copied() -> None:
    x = torch.ones(2, requires_grad=True)
    assert set_values(x, [], NOTHING_HIDDEN) is x
    assert set_gradients(x, [], NOTHING_HIDDEN) is x


def test_gradients_are_set_and_values_kept() -> None:
    x = torch.arange(6.0).view(2, 1, 3).requires_grad_()
    own = [
        intervention(HookPoint.MLP_POST_ACT, (None, None), 0.0, row=0, n_tokens=1),
        intervention(HookPoint.MLP_POST_ACT, (0, 2), 5.0, row=1, n_tokens=1),
    ]
    same = set_gradients(x, own, NOTHING_HIDDEN)
    assert torch.equal(same, x)
    (same * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0, 0.0, 0.0]], [[2.0, 2.0, 5.0]]]


@pytest.mark.parametrize("pass_type", PassType)
def test_which_pass_is_altered(pass_type: PassType) -> None:
    index = ActivationIndex(HookPoint.MLP_POST_ACT, 0, (0, 0), pass_type)
    assert Intervention(0, 1, AblationSpec(index, 1.0)).is_forward == (pass_type is PassType.FORWARD)


@pytest.mark.parametrize(
    ("altered", "is_replaced"),
    [
        ({}, True),
        ({"value_type": ValueType.BASELINE}, True),
        ({"value_type": ValueType.SCALE}, False),
        ({"value_type": ValueType.ADD}, False),
        ({"index": ActivationIndex(HookPoint.RESID_DELTA_MLP, 0, (1, None))}, False),
        ({"index": ActivationIndex(HookPoint.RESID_DELTA_MLP, 0, (None, None), PassType.BACKWARD)}, False),
    ],
)
def test_whether_a_whole_tensor_is_replaced(altered: dict[str, Any], is_replaced: bool) -> None:
    whole = intervention(HookPoint.RESID_DELTA_MLP, (None, None))
    found = replace(whole, ablation=replace(whole.ablation, **altered))
    assert found.replaces_whole_tensor is is_replaced
    assert not replace(found, kept=frozenset({(0, None)})).replaces_whole_tensor
