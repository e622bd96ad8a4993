"""How calls share the workers: the part of the settings that is about batches, callers and the cache."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.domain.limits import MIB
from tdb_server.flags import at_least, byte_size_or_none, flag, milliseconds, positive_seconds


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Batches, fairness, and what is kept for later. A call that no batch has room for runs alone."""

    max_batch_tokens: int = flag(1024, at_least(1), "N", "tokens of a batch; 1 runs every call alone")
    max_batch_seconds: float = flag(2.0, positive_seconds, "S", "estimated time of a batch of several calls")
    max_wait_seconds: float = flag(
        0.005,
        milliseconds,
        "MS",
        "wait of a busy worker for a fuller batch",
        name="--max-wait-milliseconds",
        shown="5.0",
    )
    max_calls_per_caller: int = flag(64, at_least(1), "N", "calls of one caller at the same time")
    cache_bytes: int = flag(256 * MIB, byte_size_or_none, "N", "results kept for equal calls; 0 for none")
