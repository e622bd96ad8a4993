"""How long and how much: the short form with all other tests, the long one for `make chaos`."""

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
    """

    kill_seconds: float
    kill_every_seconds: float
    n_cancelled: int
    n_hostile_calls: int
    n_hostile_bodies: int
    n_sub_requests_unread: int


IS_LONG = os.environ.get("TDB_CHAOS_LONG") == "1"
SHORT = Extent(10, 2, 100, 1_500, 300, 1)
LONG = Extent(60, 5, 500, 10_000, 2_000, 4)
only_long = pytest.mark.skipif(not IS_LONG, reason="in the long form")
