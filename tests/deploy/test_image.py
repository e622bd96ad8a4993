"""The Dockerfile: linted, built step by step in a folder, and run as a container would run it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tdb_client import Client

from tests.cluster.nginx import free_port
from tests.deploy.image_rehearsal import DOCKERFILE, Stage, build
from tests.deploy.known_variables import settings_of
from tests.running_server import TINY_MODEL

READY_SECONDS = 120.0


def test_lint() -> None:
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    linted = subprocess.run(
        [hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Built with whatever torch this machine's package index has."""
    folder = tmp_path_factory.mktemp("image")
    yield build(folder, {"TORCH_INDEX": "https://pypi.org/simple"})
    shutil.rmtree(folder)


def test_it_holds_the_server_and_not_much_else(image: Stage) -> None:
    sizes = {
        name: int(subprocess.check_output(["du", "-sm", str(image.root / path)]).split()[0])
        for name, path in (
            ("all", "."),
            ("what we install", "opt/tdb"),
            ("torch", "opt/tdb/lib/python3.11/site-packages/torch"),
        )
    }
    print(f"\nMiB: {sizes}")
    assert image.user == "10001:10001"
    assert not list(image.root.glob("source*")), "the source is not needed any more"
    assert not list((image.root / "opt/tdb/bin").glob("pip*"))
    settings_of({**image.environment, "TDB_SERVER_ALLOW_PLAINTEXT": "1"})


def test_it_refuses_to_listen_in_clear_unasked(image: Stage) -> None:
    refused = subprocess.run(
        image.arguments([*image.entrypoint, *image.command]),
        env=image.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "--allow-plaintext" in refused.stderr


def test_it_serves_says_that_it_is_healthy_and_stops(image: Stage) -> None:
    shutil.copytree(TINY_MODEL, image.root / "model", dirs_exist_ok=True)
    port = str(free_port())
    told = {"TDB_SERVER_PORT": port, "TDB_SERVER_HOST": "127.0.0.1"}
    server = subprocess.Popen(image.arguments([*image.entrypoint, *image.command]), env=image.variables(told))
    try:
        deadline = time.monotonic() + READY_SECONDS
        while _health(image, told) != 0:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        owner = Path(f"/proc/{server.pid}/status").read_text()
        assert "\nUid:\t10001\t" in owner
        with Client(f"127.0.0.1:{port}") as client:
            assert client.debug("the cat sat", " on", k=3).loss is not None
        server.terminate()
        assert server.wait(timeout=30) == 0
        assert _health(image, told) == 1
    finally:
        server.kill()
        server.wait()


def _health(image: Stage, told: dict[str, str]) -> int:
    """What the health check's exit code is."""
    return subprocess.run(image.arguments(image.health), env=image.variables(told), check=False).returncode
