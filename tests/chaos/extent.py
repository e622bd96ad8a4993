"""How long and how much: the short form with all other tests, the long one for `make chaos`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """What a run of these tests goes through.

    Attributes:
        kill_seconds: how long workers are killed.
        kill_every_seconds: from one kill to the next.
        n_cancelled: calls that are cancelled.
        n_hostile_calls: gRPC calls that mean no good.
        n_hostile_bodies: requests of the same kind to the JSON API.
        is_long: whether what takes minutes is run at all.
    """

    kill_seconds: float
    kill_every_seconds: float
    n_cancelled: int
    n_hostile_calls: int
    n_hostile_bodies: int
    is_long: bool


SHORT = Extent(10, 2, 100, 1_500, 300, is_long=False)
LONG = Extent(60, 5, 500, 10_000, 2_000, is_long=True)
