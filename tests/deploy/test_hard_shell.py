"""A real server behind the walls of the unit for systemd: it serves, and can do nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.deploy.hard_shell import behind_walls
from tests.deploy.test_systemd import read_unit, variables_of
from tests.running_server import RunningServer, start, stop

SMALL = "size=128k,mode=1777"
LARGE = debug_request(LONG_PROMPT, n_sub_requests=2, k=200)
"""An answer in one message, which waits until it is whole, with small chunks mostly on disk."""


@pytest.fixture(params=["the unit's spool", "a small spool"])
def server(request, tmp_path, monkeypatch) -> Iterator[RunningServer]:
    service = read_unit()["Service"]
    assert service["ProtectSystem"] == "strict"
    assert (service["CapabilityBoundingSet"], service["NoNewPrivileges"]) == ("", "yes")
    assert service["SystemCallErrorNumber"] == "EPERM"
    spool, state = tmp_path / "spool", tmp_path / "state"
    for name, value in {
        **variables_of(service), "TMPDIR": str(spool), "HOME": str(state), "TDB_SERVER_LOG_FORMAT": "text",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for folder in (spool, state):
        folder.mkdir()
    options = service["TemporaryFileSystem"].partition(":")[2] if "unit" in request.param else SMALL
    around = partial(
        behind_walls, spool=spool, state=state, options=options, filter_set=service["SystemCallFilter"]
    )
    started = start(state, "--chunk-bytes", str(16 * 1024), around=around)
    yield started
    stop(started)


def test_it_serves_and_nothing_waits_where_there_is_no_room(server) -> None:
    for pid in (server.process.pid, *server.worker_pids()):
        status = dict(re.findall(r"^(\w+):\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
        for kind in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        mounts = [one.split() for one in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        writable = {one[1] for one in mounts if "rw" in one[3].split(",")}
        ours = {place for place in writable if not re.match(r"/(proc|dev|sys)(/|$)", place)}
        state = server.log.parent
        assert ours == {str(state), str(state.with_name("spool"))}
        (spool,) = [one for one in mounts if one[1].endswith("/spool")]
    assert server.debugger.Debug(debug_request(), timeout=60).sub_responses
    if "size=128k" in spool[3]:
        with pytest.raises(grpc.RpcError) as failed:
            server.debugger.Debug(LARGE, timeout=60)
        assert refused(failed.value).reason == "NO_ROOM_FOR_ANSWER"
        assert server.debugger.Debug(debug_request(k=4), timeout=60).sub_responses
    else:
        assert len(server.debugger.Debug(LARGE, timeout=60).sub_responses) == 2
    assert server.terminate() == 0
