"""A real server behind the walls of the unit for systemd: it serves, and can do nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tdb_client import Client
from tdb_client.errors import CallError

from tests.deploy.hard_shell import behind_walls
from tests.deploy.test_systemd import read_unit, variables_of
from tests.running_server import RunningServer, start, stop

SMALL = "size=128k,mode=1777"
LONG_PROMPT = " the" * 60


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
    with Client(f"127.0.0.1:{server.port}") as client:
        assert client.debug("the cat sat", " on", k=3).loss is not None
        if "size=128k" in spool[3]:
            with pytest.raises(CallError) as failed:
                client.debug(LONG_PROMPT, " the", k=400, timeout=60)
            assert failed.value.reason == "NO_ROOM_FOR_ANSWER"
            assert client.debug("the cat sat", " on", k=4).loss is not None
        else:
            assert client.debug(LONG_PROMPT, " the", k=400, timeout=60).loss is not None
    assert server.terminate() == 0
