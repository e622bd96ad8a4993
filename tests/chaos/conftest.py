"""Servers to be ill-treated, and how long.

The short form runs with the other tests; `TDB_CHAOS_LONG=1` runs what the project promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.extent import IS_LONG, LONG, SHORT, Extent
from tests.chaos.loop_pauses import LONGEST_SECONDS, LoopPauses
from tests.chaos.watched_servers import ALONE, AUTOENCODERS, start_watched_server
from tests.running_server import TINY_MODEL, RunningServer, StartServer, stop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.chaos)


@pytest.fixture(scope="session")
def extent() -> Extent:
    return LONG if IS_LONG else SHORT


@pytest.fixture(scope="session")
def loop_pauses(tmp_path_factory: pytest.TempPathFactory) -> LoopPauses:
    """What holds up the event loops of the servers here."""
    return LoopPauses(tmp_path_factory.mktemp("pauses"))


@pytest.fixture(autouse=True)
def the_loop_is_never_held_up(loop_pauses: LoopPauses) -> Iterator[None]:
    """Whatever a test does: nothing that an event loop does keeps it from the others for long."""
    yield
    longest = loop_pauses.longest()
    loop_pauses.forget()
    assert longest.seconds <= LONGEST_SECONDS, longest


@pytest.fixture
def start_watched(tmp_path_factory: pytest.TempPathFactory, loop_pauses: LoopPauses) -> Iterator[StartServer]:
    """Starts servers with metrics, which are stopped after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        folder = tmp_path_factory.mktemp("server")
        started.append(start_watched_server(folder, loop_pauses, *flags, model=model))
        return started[-1]

    yield start_one
    for one in started:
        stop(one)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory, loop_pauses: LoopPauses) -> Iterator[RunningServer]:
    """A server with metrics, autoencoders and the JSON API, for the tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("server")
    shared = start_watched_server(folder, loop_pauses, "--http-port", "0", *AUTOENCODERS)
    yield shared
    stop(shared)


@pytest.fixture(scope="session")
def watched_alone(
    tmp_path_factory: pytest.TempPathFactory, loop_pauses: LoopPauses
) -> Iterator[RunningServer]:
    """The same with a short queue, and every call in a batch of its own."""
    shared = start_watched_server(tmp_path_factory.mktemp("server"), loop_pauses, *ALONE)
    yield shared
    stop(shared)
