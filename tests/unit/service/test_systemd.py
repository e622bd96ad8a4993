from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator

import pytest
from tdb_server.service.systemd import ALIVE, READY, STOPPING, Systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@tdb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(30)
        yield listener, name


def test_states_are_told(manager):
    listener, name = manager
    systemd = Systemd({"NOTIFY_SOCKET": name})
    systemd.tell(READY, STOPPING)
    systemd.stop()
    assert listener.recv(100) == b"READY=1\nSTOPPING=1"


async def test_signs_of_life_come_from_the_loop(manager):
    listener, name = manager
    told = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
    systemd = Systemd(told)
    systemd.start()
    for _ in range(3):
        assert await asyncio.to_thread(listener.recv, 100) == b"WATCHDOG=1"
    systemd.stop()


async def test_a_server_without_descriptors_lives(manager, monkeypatch):
    listener, name = manager
    systemd = Systemd({"NOTIFY_SOCKET": name})

    def failing(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as without_descriptors:
        without_descriptors.setattr(socket, "socket", failing)
        systemd.tell(ALIVE)
    assert listener.recv(100) == b"WATCHDOG=1"
    systemd.stop()
    systemd.tell(ALIVE)  # to nobody


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"NOTIFY_SOCKET": "/no/such/socket"},
        {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000"},
    ],
)
async def test_without_systemd_nothing_happens(told):
    systemd = Systemd(told)
    systemd.start()
    systemd.tell(READY)
    await asyncio.sleep(0.01)
    systemd.stop()
