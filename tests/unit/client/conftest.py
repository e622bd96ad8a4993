from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.fake_service import FakeService, running


@pytest.fixture
def fake() -> Iterator[tuple[str, FakeService]]:
    """Address of a server with handwritten answers, and the service behind it."""
    with running() as server:
        yield server
