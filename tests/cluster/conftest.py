"""Two fronts, what they compute with, and what stands in front of them. Run by `make cluster-test`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fronts import running_fronts
from tests.cluster.pools import Pool, running_pool
from tests.cluster.ways import WAYS, Cluster, Way, running_cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", params=["local"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """What the fronts compute with; tests that are run with each kind of it say so."""
    with running_pool(request.param, tmp_path_factory.mktemp("pool")) as running:
        yield running


@pytest.fixture(scope="session")
def shared_cluster(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two fronts and all ways to them, for as long as tests ask for this pool."""
    folder = tmp_path_factory.mktemp("cluster")
    with running_fronts(folder, [pool.flags()] * 2) as fronts, running_cluster(folder, fronts) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The same, whole again whatever the last test has done to it."""
    shared_cluster.make_whole()
    return shared_cluster


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, cluster: Cluster) -> Way:
    """Each way to the fronts."""
    return cluster.ways[request.param]
