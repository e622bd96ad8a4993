"""Servers to be mistreated. `TDB_CHAOS=long` runs the long form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.extent import EXTENTS, Extent
from tests.running_server import TINY_MODEL, RunningServer, StartServer, start, stop

PLAIN_FLAGS = ("--cache-bytes", "0", "--threads", "1", "--metrics-port", "0", "--log-level", "warning")
"""Every call is computed, and no two workers fight over a core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.chaos)


@pytest.fixture(scope="session")
def extent() -> Extent:
    return EXTENTS[os.environ.get("TDB_CHAOS", "short")]


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers that are stopped after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        started.append(start(tmp_path_factory.mktemp("server"), *PLAIN_FLAGS, *flags, model=model))
        return started[-1]

    yield start_one
    for one in started:
        stop(one)
