"""How long, how much and how fast: the short form with all other tests, the long one for `make chaos`.

What is promised in seconds is held against the promise in the long form, on a machine with nothing else to
do. The short form shares its machine with whatever else runs, and waits longer: it looks for what is broken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Extent:
    """What a run of these tests goes through.

    Attributes:
        kill_seconds: how long workers are killed.
        kill_every_seconds: from one kill to the next.
        n_cancelled: calls that are cancelled.
        n_hostile_calls: gRPC calls that mean no good.
        n_hostile_bodies: requests of the same kind to the JSON API.
        n_sub_requests_unread: size of the answers that nobody reads.
        stop_seconds: in which a worker stops what nobody wants any more.
        refusal_seconds: in which a call is refused while workers are busy, at the median.
        max_slowdown: of other callers beside readers that stop reading.
        soak_seconds: how long everything happens at once; `TDB_SOAK_SECONDS` in the long form.
        soak_kill_every_seconds: from one dead worker to the next meanwhile.
        n_compared: answers of that time that are compared with those a caller gets who is alone.
    """

    kill_seconds: float
    kill_every_seconds: float
    n_cancelled: int
    n_hostile_calls: int
    n_hostile_bodies: int
    n_sub_requests_unread: int
    stop_seconds: float
    refusal_seconds: float
    max_slowdown: float
    soak_seconds: float
    soak_kill_every_seconds: float
    n_compared: int


IS_LONG = os.environ.get("TDB_CHAOS_LONG") == "1"
SOAK_SECONDS = float(os.environ.get("TDB_SOAK_SECONDS", "1200"))
SHORT = Extent(
    *(6, 2, 60, 1_000, 300, 1),
    stop_seconds=20,
    refusal_seconds=0.5,
    max_slowdown=10,
    soak_seconds=8,
    soak_kill_every_seconds=3,
    n_compared=30,
)
LONG = Extent(
    *(60, 5, 500, 10_000, 2_000, 4),
    stop_seconds=1,
    refusal_seconds=0.020,
    max_slowdown=2,
    soak_seconds=SOAK_SECONDS,
    soak_kill_every_seconds=10,
    n_compared=1_000,
)
only_long = pytest.mark.skipif(not IS_LONG, reason="in the long form")
