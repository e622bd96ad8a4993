"""What the tests of the example clients share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.running_server import RunningServer, start, stop


@pytest.fixture(scope="session")
def small_chunks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose chunks are so small that the tiny model's tensors need several; nothing is cached."""
    flags = ("--chunk-bytes", "1KiB", "--cache-bytes", "0", "--metrics-port", "0")
    running = start(tmp_path_factory.mktemp("server"), *flags)
    yield running
    stop(running)
