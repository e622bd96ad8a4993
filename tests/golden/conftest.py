from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def device() -> str:
    """Where engines of this process compute; the tests of a GPU say otherwise."""
    return "cpu"
