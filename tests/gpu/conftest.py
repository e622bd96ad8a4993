"""Engines and servers on a GPU. Without one the run ends at once, and has failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.chaos.watched_servers import FLAGS
from tests.gpu.memory import DEVICE
from tests.running_server import TINY_MODEL, RunningServer, StartServer, start, stop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """Where engines of this process compute."""
    if not torch.cuda.is_available():
        pytest.exit(f"torch {torch.__version__} finds no GPU here, and tests/gpu needs one", returncode=1)
    return DEVICE


@pytest.fixture(scope="session")
def server(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that tests share and leave as they found it."""
    shared = start(tmp_path_factory.mktemp("server"), *FLAGS, "--device", device)
    yield shared
    stop(shared)


@pytest.fixture
def start_on_gpu(device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers that are stopped after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        folder = tmp_path_factory.mktemp("server")
        started.append(start(folder, *FLAGS, "--device", device, *flags, model=model))
        return started[-1]

    yield start_one
    for one in started:
        stop(one)
