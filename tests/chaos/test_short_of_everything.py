"""No folder for files, no descriptors: calls fail by name, and none ends well without its whole answer."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
from tdb_client import Client
from tdb_client.errors import CallError

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import vitals, wait_until

LARGE = debug_request(LONG_PROMPT, n_sub_requests=2, k=200)
"""With small chunks, more than may wait in memory."""
N_RESULTS = 8
REPLACED_SECONDS = 90.0


def test_no_folder_for_what_waits(start_watched, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    server = start_watched("--chunk-bytes", str(64 * 1024))
    whole = server.debugger.Debug(LARGE)
    assert [len(one.results) for one in whole.sub_responses] == [N_RESULTS] * 2

    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            server.debugger.Debug(LARGE, timeout=60)
        assert refused(failed.value).reason in ("INTERNAL", "NO_ROOM_FOR_ANSWER")
    with Client(f"127.0.0.1:{server.port}") as client, pytest.raises(CallError) as failed:
        client.debug(LONG_PROMPT, " the", k=400, timeout=60)
    assert failed.value.reason in ("INTERNAL", "NO_ROOM_FOR_ANSWER")
    assert server.debugger.Debug(debug_request(), timeout=60).sub_responses, "small answers need no folder"

    folder.mkdir()
    again = server.debugger.Debug(LARGE, timeout=60)
    assert [len(one.results) for one in again.sub_responses] == [N_RESULTS] * 2


def test_no_descriptors_while_a_worker_dies(start_watched):
    server = start_watched("--grace-seconds", "1")
    front, (worker,) = server.process.pid, server.worker_pids()
    server.debugger.Debug(debug_request())
    before = resource.prlimit(front, resource.RLIMIT_NOFILE)
    reading(server, "tdb_worker_ready")
    resource.prlimit(front, resource.RLIMIT_NOFILE, (_highest_descriptor(front) - 3, before[1]))
    subprocess.run(["kill", "-KILL", str(worker)], check=True)
    wait_until(lambda: "a worker cannot be started" in server.log.read_text(), 30)
    resource.prlimit(front, resource.RLIMIT_NOFILE, before)
    wait_until(lambda: reading(server, "tdb_worker_ready") == 1, REPLACED_SECONDS)
    assert server.debugger.Debug(debug_request(), timeout=60).sub_responses
    assert vitals(front).n_open_files < before[0]


def _highest_descriptor(pid: int) -> int:
    return max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())
