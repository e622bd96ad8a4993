"""Workers or replicas, and fronts, are lost under load, and no call fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.chaos.metrics_page import reading
from tests.chaos.vitals import wait_until
from tests.cluster.callers import Calls, calling
from tests.cluster.fronts import Front
from tests.cluster.pools import KINDS, Pool
from tests.cluster.ways import Cluster

pytestmark = pytest.mark.parametrize("pool", KINDS, indirect=True)
N_CALLS, ENOUGH_SECONDS = 100, 60.0
UNDISTURBED_SECONDS, REPLACED_SECONDS = 2.0, 30.0
SETTLE_SECONDS = 6.0
"""Between two fronts of a rolling restart: time for clients to find the one that is back."""


def test_a_worker_and_then_a_front_are_killed(cluster: Cluster, pool: Pool) -> None:
    first, second = cluster.fronts
    with calling_all_ways(cluster) as calls:
        time.sleep(UNDISTURBED_SECONDS)
        _kill_a_worker(pool, first)
        time.sleep(UNDISTURBED_SECONDS)
        second.kill()
        time.sleep(2 * UNDISTURBED_SECONDS)
        second.start()
        wait_until(lambda: second.n_calls("Debug") > 0, REPLACED_SECONDS)  # it counts from its start
    _assert_none_failed(calls, pool, "a worker and a front killed")


def test_rolling_restart(cluster: Cluster, pool: Pool) -> None:
    with calling_all_ways(cluster) as calls:
        time.sleep(UNDISTURBED_SECONDS)
        for front in cluster.fronts:
            for way in cluster.ways.values():
                way.before_stop(front)
            front.stop()
            front.start()
            for way in cluster.ways.values():
                way.after_start()
            time.sleep(SETTLE_SECONDS)
            wait_until(lambda front=front: front.n_calls("Debug") > 0, REPLACED_SECONDS)
    _assert_none_failed(calls, pool, "both fronts restarted in turn")


@contextmanager
def calling_all_ways(cluster: Cluster) -> Iterator[dict[str, Calls]]:
    """Eight callers each way, at the same time; afterwards they go on until each way has had enough calls."""
    with ExitStack() as callers:
        calls = {way.name: callers.enter_context(calling(way.target)) for way in cluster.ways.values()}
        yield calls
        wait_until(lambda: min(one.n_answered for one in calls.values()) > N_CALLS, ENOUGH_SECONDS)


def _kill_a_worker(pool: Pool, front: Front) -> None:
    """Kills one of the two, and waits until another has its place."""
    before = pool.worker_pids(front)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(set(pool.worker_pids(front)) - {before[0]}) == 2, REPLACED_SECONDS)
    wait_until(lambda: reading(front.server, "tdb_worker_ready") == 2, REPLACED_SECONDS)


def _assert_none_failed(calls: dict[str, Calls], pool: Pool, what: str) -> None:
    print()
    for name, one in calls.items():
        print(
            f"{name}, {pool.kind}: {what}: {one.n_answered} calls answered, {len(one.faults)} failed; "
            f"the longest took {one.longest_seconds:.2f} s"
        )
    assert [f"{name}: {fault}" for name, one in calls.items() for fault in one.faults] == []
