"""The port of the metrics, which also answers probes where there is no JSON API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import fields

import httpx
import pytest
from tdb_server.service.telemetry.metrics import Metrics
from tdb_server.settings import Settings
from tdb_server.telemetry_settings import Telemetry
from tdb_server.workers.measures import Readings


@pytest.fixture
def ready() -> list[bool]:
    return [False]


@pytest.fixture
async def client(ready) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics("1", Readings(**{one.name: lambda: 0 for one in fields(Readings)}))
    page = metrics.page(Settings(telemetry=Telemetry(metrics_port=0)), lambda: ready[0])
    await page.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{page.port}") as client:
        yield client
    await page.stop()
    metrics.stop()


async def test_probes_and_metrics(client, ready):
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503
    ready[0] = True
    assert (await client.get("/readyz")).status_code == 200
    assert "tdb_worker_ready" in (await client.get("/metrics")).text


async def test_whoever_probes_may_call_it_by_any_name(client):
    """Kubernetes asks by the pod's address, which the server need not know."""
    names = {"host": "10.1.2.3:9464"}
    assert (await client.get("/livez", headers=names)).status_code == 200
    assert (await client.get("/metrics", headers=names)).status_code == 421
