"""The reference's answers against replicas, over gRPC: what crosses Ray arrives as it was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.golden.compare import differences
from tests.golden.rounding_noise import without_rounding_noise
from tests.golden.test_goldens_over_the_wire import BY_WHAT_IS_HELD, FIXTURES, name, over_grpc, read
from tests.ray.applications import Applications
from tests.ray.conftest import FLAGS
from tests.ray.shared_ray import SharedRay
from tests.running_server import RunningServer, start, stop

Holding = Callable[[str, tuple[str, ...]], RunningServer]


@pytest.fixture(scope="module")
def holding(
    shared_ray: SharedRay, applications: Applications, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Holding]:
    """The server that holds a fixture with autoencoders of some sites; one at a time."""
    running: dict[str, RunningServer] = {}

    def end() -> None:
        for application in list(running):
            stop(running.pop(application))
            applications.delete(application)

    def one(fixture: str, sites: tuple[str, ...]) -> RunningServer:
        application = "-".join((fixture, *sites))
        if application not in running:
            end()
            folder = FIXTURES / fixture
            flags = ("--ray-address", shared_ray.address, "--ray-application", application)
            flags += tuple(f"--autoencoder={folder / 'autoencoders' / site}" for site in sites)
            server_folder = tmp_path_factory.mktemp("server")
            running[application] = start(
                server_folder, *FLAGS, "--max-response-bytes", "64MiB", *flags, model=folder
            )
        return running[application]

    yield one
    end()


@pytest.mark.parametrize("path", BY_WHAT_IS_HELD, ids=name)
def test_answers_agree_with_golden(path: Path, holding: Holding) -> None:
    golden = read(path)
    server = holding(golden["fixture"], tuple(golden["sites"]))
    body = over_grpc(server, golden["endpoint"], golden["request"])
    assert differences(without_rounding_noise(golden, body), body) == []
