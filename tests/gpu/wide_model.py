"""A model whose attention patterns fill a small share of a GPU within a few prompts."""

from __future__ import annotations

from pathlib import Path

from tests.random_models import write_random_model

N_TOKENS = 600
CAP_BYTES = 5 * 2**28
"""1.25 GiB: one call of N_TOKENS keeps 0.4 GB of attention and its gradients, twelve calls never fit."""


def write_wide_model(folder: Path) -> Path:
    """Four layers of 32 narrow heads: 46 MB for each kind of number per token pair and layer."""
    return write_random_model(folder, "gpt2", n_layer=4, n_embd=256, n_head=32, n_positions=640)
