"""Servers whose workers are replicas of Ray Serve. Nothing here imports Ray; the servers do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.vitals import is_running, wait_until
from tests.ray.processes import descendants
from tests.running_server import TINY_MODEL, RunningServer, StartServer, start, stop

FLAGS = ("--pool", "ray", "--cache-bytes", "0", "--threads", "1", "--metrics-port", "0")
GONE_SECONDS = 15.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture
def start_on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers, each with a Ray of its own unless told otherwise, and stops them after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        started.append(start(tmp_path_factory.mktemp("server"), *FLAGS, *flags, model=model))
        return started[-1]

    yield start_one
    below = [pid for one in started for pid in descendants(one.process.pid)]
    for one in started:
        stop(one)
    wait_until(lambda: not any(is_running(pid) for pid in below), GONE_SECONDS)
