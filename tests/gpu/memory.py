"""How much memory of the GPU is taken, by this process and by all."""

from __future__ import annotations

import gc

import torch

DEVICE = "cuda:0"
SLACK_BYTES = 64 * 2**20
"""What drivers may keep, or give back late."""


def held_bytes() -> int:
    """By tensors of this process, once nothing is computed any more."""
    gc.collect()
    torch.cuda.synchronize(DEVICE)
    return torch.cuda.memory_allocated(DEVICE)


def taken_bytes() -> int:
    """By all processes together, libraries and what they hold in reserve included."""
    free, total = torch.cuda.mem_get_info(DEVICE)
    return total - free


def fraction_of_gpu(n_bytes: int) -> float:
    """As torch wants to be told how much a process may take."""
    return n_bytes / torch.cuda.mem_get_info(DEVICE)[1]
