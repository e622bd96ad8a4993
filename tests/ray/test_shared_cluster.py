"""Two fronts and one cluster that neither of them started."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import is_running, wait_until
from tests.chaos.wire_answers import answer_of_response, difference
from tests.ray.conftest import FLAGS, GONE_SECONDS
from tests.ray.processes import descendants, replica_pids
from tests.running_server import TINY_MODEL, start, stop

N_CALLERS = 4
N_CALLS = 10
START_SECONDS = 60.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Its address, and the process that everything of it is below."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback alone
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=4", "--object-store-memory=200000000", "--include-dashboard=false"]
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen([*command, "--disable-usage-stats"], stdout=log, stderr=log)
    wait_until(lambda: b"Ray runtime started" in (tmp_path / "ray.log").read_bytes(), START_SECONDS)
    yield f"127.0.0.1:{port}", process.pid
    below = descendants(process.pid)
    process.kill()
    process.wait()
    for pid in below:  # those that do not end with it at once
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in below), GONE_SECONDS)


def test_fronts_share_replicas_and_come_and_go(cluster, tmp_path_factory):
    address, cluster_pid = cluster
    flags = (*FLAGS, "--ray-address", address, "--workers", "2")
    first = start(tmp_path_factory.mktemp("first"), *flags)
    second = start(tmp_path_factory.mktemp("second"), *flags)
    try:
        wait_until(lambda: len(replica_pids(cluster_pid)) == 2, START_SECONDS)
        replicas = replica_pids(cluster_pid)
        request = debug_request(LONG_PROMPT, k=20)
        expected = answer_of_response(first.debugger.Debug(request))

        # Both number their calls from 1: what one cancels must not touch the other's.
        def cancel_some() -> None:
            for _ in range(N_CALLS):
                stream = first.debugger.StreamDebug(heavy_request())
                time.sleep(0.2)
                stream.cancel()

        def call_some() -> list[str | None]:
            answers = [second.debugger.Debug(request, timeout=60) for _ in range(N_CALLS)]
            return [difference(answer_of_response(one), expected) for one in answers]

        with ThreadPoolExecutor(N_CALLERS + 1) as callers:
            cancelling = callers.submit(cancel_some)
            calling = [callers.submit(call_some) for _ in range(N_CALLERS)]
            assert [one.result() for one in calling] == [[None] * N_CALLS] * N_CALLERS
            cancelling.result()

        assert first.terminate() == 0
        assert difference(answer_of_response(second.debugger.Debug(request)), expected) is None
        first = start(tmp_path_factory.mktemp("again"), *flags)
        assert difference(answer_of_response(first.debugger.Debug(request)), expected) is None
        assert replica_pids(cluster_pid) == replicas, "the model stays loaded while fronts come and go"
        _another_model_is_refused(address)
    finally:
        stop(first)
        stop(second)


def _another_model_is_refused(address: str) -> None:
    other = TINY_MODEL.parent / "tiny-llama-c"
    flags = ("--pool", "ray", "--ray-address", address, "--model", str(other), "--port", "0")
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", *flags], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "give another --ray-application" in ended.stderr.splitlines()[-1]
