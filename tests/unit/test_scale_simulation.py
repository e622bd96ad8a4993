"""The simulation behind the scale model, where theory knows the answer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from benchmarks.scale_cluster import Cluster, Figures, Outcome, moments
from benchmarks.scale_process import Slowness
from benchmarks.scale_simulation import Simulation

ALONE = Cluster(n_fronts=1, n_workers=1, max_batch_calls=1, max_wait=0.0, max_queue=10**9)
ONE_SECOND = Figures(
    shared_fixed=0.0,
    shared_per_call=0.0,
    own=1.0,
    front_before=0.0,
    front_reading=0.0,
    front_after=0.0,
    caller=0.0,
    elsewhere=0.0,
)
BATCHES = Figures(
    shared_fixed=0.02,
    shared_per_call=0.007,
    own=0.003,
    front_before=0.0003,
    front_reading=0.0001,
    front_after=0.0002,
    caller=0.001,
    elsewhere=0.003,
)


def played(figures: Figures, cluster: Cluster, rate: float, n_calls: int, warm_up: float = 0.1) -> Outcome:
    """So many calls at random moments."""
    return Simulation(figures, cluster, list(itertools.islice(moments(rate, 0), n_calls))).run(warm_up)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_one_worker_is_the_queue_of_theory(load: float) -> None:
    """Calls at random, each of the same length, one at a time: Pollaczek and Khinchine's mean."""
    outcome = played(ONE_SECOND, ALONE, load, 60_000)
    assert outcome.latencies.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)
    assert outcome.utilization == pytest.approx(load, rel=0.02)
    assert outcome.mean_batch == 1


def test_a_front_is_a_queue_too_whose_calls_take_turns() -> None:
    """With turns that are short beside its tasks all get the same share: a mean of 1 / (1 - load)."""
    figures = replace(ONE_SECOND, own=1e-9, front_before=0.1)
    outcome = played(figures, replace(ALONE, n_workers=50), 5.0, 10_000)
    assert outcome.latencies.mean() == pytest.approx(0.1 / (1 - 0.5), rel=0.1)


def test_a_call_without_company_takes_what_was_measured() -> None:
    """And while the worker makes its answer, the front reads what there is of it."""
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=16)
    figures = replace(BATCHES, front_reading=0.001)
    assert figures.lone_call == pytest.approx(0.02 + 0.007 + 0.003 + 0.0003 + 0.0002 + 0.001 + 0.003)
    assert played(figures, cluster, 0.01, 2000).percentile(50) == pytest.approx(figures.lone_call)


def test_on_slow_cores_everything_takes_longer() -> None:
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=16, slowness=Slowness((2.0,), 1.0))
    assert played(BATCHES, cluster, 0.01, 100).percentile(50) == pytest.approx(
        2 * BATCHES.lone_call - 0.003, rel=0.02
    )


def test_slow_phases_lengthen_the_tail_more_than_slow_moments() -> None:
    """The same cores, as slow as a mean: but what waits piles up only if they stay slow for a while."""
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=16)
    rate = 0.5 * BATCHES.capacity(16)
    shares = (0.6,) * 10 + (1.4,) * 10
    phases, seconds = (replace(cluster, slowness=Slowness(shares, each)) for each in (0.5, 0.01))
    of_phases, of_moments = (played(BATCHES, one, rate, 10_000).percentile(95) for one in (phases, seconds))
    assert of_phases > 1.2 * of_moments


def test_few_cores_make_everything_slower() -> None:
    cluster = Cluster(n_fronts=1, n_workers=8, max_batch_calls=1)
    outcomes = [played(BATCHES, replace(cluster, n_cores=n), 40.0, 5000) for n in (2, 8)]
    assert outcomes[0].percentile(50) > 1.2 * outcomes[1].percentile(50)


def test_batches_grow_with_the_load() -> None:
    cluster = Cluster(n_fronts=1, n_workers=2, max_batch_calls=16)
    capacity = 2 * BATCHES.capacity(16)
    sizes = [played(BATCHES, cluster, load * capacity, 10_000).mean_batch for load in (0.1, 0.5, 0.9)]
    assert sizes[0] < sizes[1] < sizes[2] < 16


def test_more_than_there_is_room_for_is_refused() -> None:
    cluster = Cluster(n_fronts=1, n_workers=1, max_batch_calls=4, max_wait=0.0, max_queue=8)
    outcome = played(BATCHES, cluster, 3 * BATCHES.capacity(4), 5000)
    assert outcome.n_refused == pytest.approx(5000 * 2 / 3, rel=0.05)
    assert outcome.utilization == pytest.approx(1.0, abs=0.02)


def test_no_call_is_lost_when_workers_and_fronts_die() -> None:
    cluster = Cluster(4, 2, 8, worker_life=20.0, front_life=60.0, restart=5.0, max_queue=10**9)
    rate = 0.4 * 8 * BATCHES.capacity(8)
    outcome = played(BATCHES, cluster, rate, 20_000, warm_up=0.0)
    assert len(outcome.latencies) + outcome.n_refused == 20_000
    assert outcome.n_refused == 0
    undisturbed = played(BATCHES, Cluster(4, 2, 8), rate, 20_000)
    assert outcome.percentile(99.9) > undisturbed.percentile(99.9)
