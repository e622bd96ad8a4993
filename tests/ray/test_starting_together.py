"""Servers that start at the same moment on a Ray where nothing is deployed: one of them deploys."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.requests import debug_request
from tests.chaos.vitals import wait_until
from tests.ray.conftest import FLAGS
from tests.ray.processes import replica_pids
from tests.ray.shared_ray import START_SECONDS, SharedRay, running_ray
from tests.running_server import RunningServer, start, stop

N_FRONTS, N_REPLICAS = 3, 2
WAIT_SECONDS = 4.0
"""Long enough to deploy, for a front that does not wait."""

DEPLOYS_FOR_EVER = """
import sys, time, ray
from tdb_server.workers.ray_deploy_lock import deploying
ray.init(sys.argv[1], log_to_driver=False)
with deploying():
    print("deploying", flush=True)
    time.sleep(600)
"""


def test_only_one_deploys(tmp_path: Path) -> None:
    with running_ray(tmp_path) as ray:
        with ThreadPoolExecutor(N_FRONTS) as pool:
            starting = [pool.submit(_start, ray, tmp_path / f"front-{index}") for index in range(N_FRONTS)]
        try:
            for front in starting:
                front.result().debugger.Debug(debug_request(), timeout=10)
            wait_until(lambda: len(replica_pids(ray.pid)) == N_REPLICAS, START_SECONDS)
            replicas = replica_pids(ray.pid)
            time.sleep(WAIT_SECONDS)
            assert replica_pids(ray.pid) == replicas, "replicas were started twice"
        finally:
            for front in starting:
                if front.exception() is None:
                    stop(front.result())
        assert len(ray.serve_log_lines("Deploying new version")) == 1


def test_a_front_that_dies_while_it_deploys_holds_up_nobody(shared_ray: SharedRay, start_on_ray, replicas):
    command = [sys.executable, "-c", DEPLOYS_FOR_EVER, shared_ray.address]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other,
        ThreadPoolExecutor(1) as starting,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "deploying\n"
        front = starting.submit(start_on_ray)
        time.sleep(WAIT_SECONDS)
        assert not front.done()
        assert replicas() == []
        other.kill()
        front.result().debugger.Debug(debug_request(), timeout=10)
    assert len(replicas()) == 1


def _start(ray: SharedRay, folder: Path) -> RunningServer:
    folder.mkdir()
    return start(folder, *FLAGS, "--ray-address", ray.address, "--workers", str(N_REPLICAS))
