"""Health follows the workers, also when it cannot be set at first."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grpc_health.v1 import health, health_pb2
from tdb_server.service import app as app_module
from tdb_server.service.app import App
from tdb_server.settings import parse_settings

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-a"
FALSE_STARTS = 2


class Health(health.aio.HealthServicer):
    """Fails a few times."""

    def __init__(self) -> None:
        super().__init__()
        self.n_asked = 0
        self.told: dict[str, int] = {}

    async def set(self, service: str, status: int) -> None:
        self.n_asked += 1
        if self.n_asked <= FALSE_STARTS:
            raise ValueError("whatever")
        self.told[service] = status


async def test_health_that_cannot_be_set_is_set_again(monkeypatch, caplog):
    monkeypatch.setattr(app_module, "HEALTH_RETRY_SECONDS", 0.001)
    app, servicer = App(parse_settings(["serve", "--model", str(TINY_MODEL)], version="0"), "0"), Health()
    monkeypatch.setattr(app, "_health", servicer)
    monkeypatch.setattr(app_module.ModelSlot, "is_filled", True)
    app._on_readiness(0)
    async with asyncio.timeout(30):
        while len(servicer.told) < 3:  # noqa: ASYNC110 - the server and its two services
            await asyncio.sleep(0.001)
    assert set(servicer.told.values()) == {health_pb2.HealthCheckResponse.NOT_SERVING}
    assert caplog.text.count("health cannot be set") == FALSE_STARTS
    await app.stop()
