"""What the scale model makes of measurements, and of the file of figures that is kept."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from random import Random

import numpy as np
import pytest

from benchmarks.scale_clock import Clock
from benchmarks.scale_cluster import Figures
from benchmarks.scale_cores import watched_cores
from benchmarks.scale_figures import Loop, figures
from benchmarks.scale_model import TINY, read
from benchmarks.scale_prediction import Model
from benchmarks.scale_process import EVER_THE_SAME, TURN, Process, Slowness
from benchmarks.scale_runs import Spent

TRUE = Figures(
    shared_fixed=0.006,
    shared_per_call=0.0005,
    own=0.02,
    front_before=0.0012,
    front_reading=0.004,
    front_after=0.01,
    caller=0.001,
    elsewhere=0.002,
)
SAMPLE = 0.0005


def loop(n_callers: int, slow: float) -> Loop:
    """100 batches of all callers, on cores that are so slow; without any, calls that are only checked."""
    size, n_calls = n_callers, 100 * max(n_callers, 1)
    front = TRUE.front if size else TRUE.front_before
    spent = Spent(
        n_batches=100.0 if size else 0.0,
        n_batched=float(100 * size),
        worker=100 * slow * TRUE.batch_seconds(size) if size else 0.0,
        front=n_calls * slow * front,
        main_thread=n_calls * slow * (front - (TRUE.front_reading if size else 0.0)),
        caller=n_calls * slow * TRUE.caller,
        seconds=n_calls * slow * TRUE.lone_call,
    )
    return Loop(n_callers, n_calls, spent, np.full(50, slow * SAMPLE), slow * TRUE.shared_per_call * size)


def test_figures_are_found_again_however_slow_the_cores_were_meanwhile() -> None:
    loops = [loop(0, 1.3), loop(1, 0.8), loop(3, 1.1), loop(8, 1.0), loop(1, 1.4), loop(7, 0.9)]
    assert asdict(figures(loops, reference=SAMPLE)) == pytest.approx(asdict(TRUE))


def test_two_that_compute_share_a_core_and_the_third_has_its_own() -> None:
    clock, ended = Clock(n_cores=2), dict[str, float]()
    for name, seconds in (("first", 1.0), ("second", 1.5), ("third", 1.0)):
        clock.compute(seconds, lambda name=name: ended.update({name: clock.now}))  # type: ignore[misc]
    while clock.step():
        pass
    assert ended == pytest.approx({"second": 1.5, "first": 2.0, "third": 2.0})


def test_what_is_short_waits_one_turn_for_what_is_long() -> None:
    clock = Clock(math.inf)
    process, ended = Process(clock, EVER_THE_SAME, Random(0)), dict[str, float]()
    process.take_turns(1.0, lambda: ended.update(long=clock.now))
    process.take_turns(0.001, lambda: ended.update(short=clock.now))
    while clock.step():
        pass
    assert ended == pytest.approx({"short": TURN + 0.001, "long": 1.001})


def test_where_cores_are_few_they_are_the_most_that_can_be_answered() -> None:
    model = Model(TRUE, 8, EVER_THE_SAME)
    there = model.cluster(2)
    assert model.capacity(there) == pytest.approx(1 / TRUE.front)
    here = replace(there, n_cores=2)
    assert model.capacity(here) == pytest.approx(2 / TRUE.all_seconds(there.max_batch_calls))


def test_slowness_is_that_of_the_moment_again_and_again() -> None:
    met = Slowness((1.0, 3.0), 2.0)
    assert [met.at(moment, 0) for moment in (0.0, 1.9, 2.1, 3.9, 4.1)] == pytest.approx(
        [1.0, 1.0, 3.0, 3.0, 1.0]
    )
    of_two_cores = Slowness((1.0, 3.0, 2.0, 4.0), 2.0, n_cores=2)
    assert [of_two_cores.at(moment, core) for moment in (1.0, 3.0, 5.0) for core in (0, 1)] == [
        1,
        3,
        1,
        3,
        2,
        4,
    ]


def test_cores_are_watched() -> None:
    with watched_cores() as watch:
        while not len(found := watch.last(60.0)):
            time.sleep(0.05)
    assert (found > 0).all()


def test_the_kept_figures_can_be_played_again() -> None:
    model, checks = read(TINY.parents[2] / "benchmarks" / "scale_figures_tiny.json")
    assert [one.n_workers for one in checks] == [1, 1, 1, 2, 2, 2]
    outcome = model.outcome(model.cluster(1), 0.01)
    assert outcome.percentile(50) == pytest.approx(model.figures.lone_call, rel=0.25)
