"""Servers whose workers are replicas of Ray Serve. Nothing here imports Ray; the servers do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.vitals import is_running, wait_until
from tests.ray.applications import Applications, running_applications
from tests.ray.processes import descendants, replica_pids
from tests.ray.shared_ray import ENVIRONMENT, SharedRay, running_ray
from tests.running_server import TINY_MODEL, RunningServer, StartServer, start, stop

FLAGS = ("--pool", "ray", "--cache-bytes", "0", "--threads", "1", "--metrics-port", "0")
GONE_SECONDS = 15.0
MOST_REPLICAS = 32
"""On the Ray that tests share: more than ever run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    """One Ray for all tests that need none of their own."""
    with running_ray(tmp_path_factory.mktemp("ray"), MOST_REPLICAS) as running:
        yield running


@pytest.fixture(scope="session")
def applications(shared_ray: SharedRay) -> Iterator[Applications]:
    """What is deployed on it."""
    with running_applications(shared_ray) as running:
        yield running


@pytest.fixture
def application(applications: Applications) -> Iterator[str]:
    """The name of the test's own, which is taken away after it."""
    name = f"of-{uuid4().hex[:8]}"
    yield name
    applications.delete(name)


@pytest.fixture
def start_on_ray(
    shared_ray: SharedRay, application: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Starts servers with the test's application, and stops them after the test."""
    started: list[RunningServer] = []
    where = ("--ray-address", shared_ray.address, "--ray-application", application)

    def start_one(*flags: str) -> RunningServer:
        started.append(start(tmp_path_factory.mktemp("server"), *FLAGS, *where, *flags))
        return started[-1]

    yield start_one
    for one in started:
        stop(one)


@pytest.fixture
def replicas(shared_ray: SharedRay, application: str) -> Callable[[], list[int]]:
    """Processes of the test's replicas."""
    return lambda: replica_pids(shared_ray.pid, application)


@pytest.fixture
def no_ray_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that start know nothing of the Ray that tests share."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start_with_own_ray(
    no_ray_around: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Starts servers that start a Ray of their own, and stops them after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        started.append(start(tmp_path_factory.mktemp("server"), *FLAGS, *flags, model=model))
        return started[-1]

    yield start_one
    below = [pid for one in started for pid in descendants(one.process.pid)]
    for one in started:
        stop(one)
    wait_until(lambda: not any(is_running(pid) for pid in below), GONE_SECONDS)
