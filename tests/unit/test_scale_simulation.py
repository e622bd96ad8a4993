"""The simulation behind the scale model, where theory knows the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale_cluster import Cluster, Figures
from benchmarks.scale_simulation import Simulation

ALONE = Cluster(n_fronts=1, n_workers=1, max_batch_calls=1, max_wait=0.0, max_queue=10**9)
ONE_SECOND = Figures(
    shared_fixed=0.0,
    shared_per_call=0.0,
    own=1.0,
    ratios=(1.0,),
    front_before=0.0,
    front_after=0.0,
    around=0.0,
    caller=0.0,
)
BATCHES = Figures(
    shared_fixed=0.02,
    shared_per_call=0.007,
    own=0.003,
    ratios=(0.9, 1.0, 1.1),
    front_before=0.0003,
    front_after=0.0002,
    around=0.003,
    caller=0.0,
)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_one_worker_is_the_queue_of_theory(load: float) -> None:
    """Calls at random, each of the same length, one at a time: Pollaczek and Khinchine's mean."""
    outcome = Simulation(ONE_SECOND, ALONE, load).run(60_000)
    assert outcome.latencies.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)
    assert outcome.utilization == pytest.approx(load, rel=0.02)
    assert outcome.mean_batch == 1


def test_the_fronts_thread_is_a_queue_too() -> None:
    """A call passes it twice: its answer waits behind the calls that came while it was taken in."""
    figures = replace(ONE_SECOND, own=1e-9, front_before=1.0, around=0.5)
    outcome = Simulation(figures, replace(ALONE, n_workers=50), 0.5).run(60_000)
    taken_in = 1 + 0.5 / (2 * (1 - 0.5))
    came_meanwhile = 0.5 * taken_in
    assert outcome.latencies.mean() == pytest.approx(0.5 + taken_in + came_meanwhile * 1.0, rel=0.05)


def test_a_call_without_company_takes_what_was_measured() -> None:
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=16)
    outcome = Simulation(BATCHES, cluster, 0.01).run(2000)
    assert outcome.percentile(50) == pytest.approx(0.02 + 0.01 + 0.0005 + 0.003, rel=0.02)


def test_batches_grow_with_the_load() -> None:
    cluster = Cluster(n_fronts=1, n_workers=2, max_batch_calls=16)
    capacity = 2 * BATCHES.capacity(16)
    sizes = [Simulation(BATCHES, cluster, load * capacity).run(10_000).mean_batch for load in (0.1, 0.5, 0.9)]
    assert sizes[0] < sizes[1] < sizes[2] < 16


def test_more_than_there_is_room_for_is_refused() -> None:
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=4, max_wait=0.0, max_queue=8)
    outcome = Simulation(BATCHES, cluster, 3 * BATCHES.capacity(4)).run(5000)
    assert outcome.n_refused == pytest.approx(5000 * 2 / 3, rel=0.05)
    assert outcome.utilization == pytest.approx(1.0, abs=0.02)


def test_no_call_is_lost_when_workers_and_fronts_die() -> None:
    cluster = Cluster(4, 2, 8, worker_life=20.0, front_life=60.0, restart=5.0, max_queue=10**9)
    outcome = Simulation(BATCHES, cluster, 0.4 * 8 * BATCHES.capacity(8)).run(20_000, warm_up=0.0)
    assert len(outcome.latencies) + outcome.n_refused == 20_000
    assert outcome.n_refused == 0
    undisturbed = Simulation(BATCHES, Cluster(4, 2, 8), 0.4 * 8 * BATCHES.capacity(8)).run(20_000)
    assert outcome.percentile(99.9) > undisturbed.percentile(99.9)
