"""How calls share the workers: the part of the settings that is about batches, callers and the cache."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tdb_server.domain.limits import MIB
from tdb_server.flags import Flags, at_least, byte_size_or_none, milliseconds, positive_seconds


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Batches, fairness, and what is kept for later.

    Attributes:
        max_batch_tokens: tokens of a batch, padding included; a larger call runs alone.
        max_wait_seconds: how long a worker that has just been busy waits for more calls to run together.
        max_batch_seconds: estimated time of a batch of several calls; a longer call runs alone.
        max_calls_per_caller: calls of one caller that run and wait at the same time.
        cache_bytes: results kept for equal calls; 0 keeps none.
    """

    max_batch_tokens: int = 1024
    max_wait_seconds: float = 0.005
    max_batch_seconds: float = 2.0
    max_calls_per_caller: int = 64
    cache_bytes: int = 256 * MIB


def add_scheduling_flags(flags: Flags) -> None:
    """The flags of `serve` that are about sharing the workers."""
    flags.group("how calls share the workers")
    flags.add("--max-batch-tokens", at_least(1), 1024, "N", "tokens of a batch; 1 runs every call alone")
    flags.add("--max-batch-seconds", positive_seconds, 2.0, "S", "estimated time of a batch of several calls")
    flags.add("--max-wait-milliseconds", milliseconds, 5.0, "MS", "wait of a busy worker for a fuller batch")
    flags.add("--max-calls-per-caller", at_least(1), 64, "N", "calls of one caller at the same time")
    flags.add("--cache-bytes", byte_size_or_none, 256 * MIB, "N", "results kept for equal calls; 0 for none")


def read_scheduling(told: argparse.Namespace) -> Scheduling:
    """What was told about sharing the workers."""
    return Scheduling(
        max_batch_tokens=told.max_batch_tokens,
        max_wait_seconds=told.max_wait_milliseconds / 1000,
        max_batch_seconds=told.max_batch_seconds,
        max_calls_per_caller=told.max_calls_per_caller,
        cache_bytes=told.cache_bytes,
    )
