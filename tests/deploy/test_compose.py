"""The file for Docker Compose: closed up, with limits that leave room for the server's budgets."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.deploy.budgets import GIB, MARGIN, host_bytes, size, tmpfs_size
from tests.deploy.image_rehearsal import DOCKERFILE, instructions
from tests.deploy.known_variables import settings_of

COMPOSE = DOCKERFILE.with_name("compose.yaml")


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (one,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    return dict(one)


def test_nothing_is_writable_and_nobody_gains_rights(service) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"], "no other seccomp profile either"
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "user"} & set(service)
    assert service["ulimits"]["core"] == 0
    model, cache = service["volumes"]
    assert model.endswith(":ro")
    assert cache == "cache:/home/tdb/.cache"
    users = [rest for name, rest in instructions(DOCKERFILE.read_text()) if name == "USER"]
    assert users == ["10001:10001"]
    assert all(one.startswith("127.0.0.1:") for one in service["ports"]), "it is in clear"


def test_limits_leave_room_for_the_budgets(service) -> None:
    settings = settings_of({**service["environment"], "TDB_SERVER_HOST": "0.0.0.0"})
    (tmpfs,) = service["tmpfs"]
    folder, _, options = tmpfs.partition(":")
    assert folder == "/tmp", "TMPDIR is not set"
    spool_bytes = tmpfs_size(options)
    assert spool_bytes >= MARGIN * settings.limits.max_spool_bytes
    assert size(service["mem_limit"]) >= host_bytes(settings, spool_bytes, computes_here=True) + GIB
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.grace_seconds
    inside = {int(one.rpartition(":")[2]) for one in service["ports"]}
    assert inside == {settings.port, settings.http_port, settings.telemetry.metrics_port}
