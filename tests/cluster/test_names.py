"""Fronts behind a name: the client takes turns among its addresses, and notices when they change."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.vitals import wait_until
from tests.cluster.callers import calling
from tests.cluster.fronts import running_fronts
from tests.cluster.pools import Pool

NAME = "fronts.test"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


def free_port(address: str, kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind((address, 0))
        port: int = free.getsockname()[1]
        return port


class NameServer:
    """dnsmasq, which knows one name alone."""

    def __init__(self, folder: Path) -> None:
        self._hosts = folder / "hosts"
        self.port = free_port("127.0.0.1", socket.SOCK_DGRAM)
        program = shutil.which("dnsmasq", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert program is not None, "dnsmasq is not installed: see `make cluster-test`"
        self.name_is(())
        command = [program, "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]
        command += ["--listen-address=127.0.0.1", "--bind-interfaces", f"--port={self.port}", "--user=root"]
        command += [f"--addn-hosts={self._hosts}", "--pid-file="]
        self.process = subprocess.Popen(command)

    def name_is(self, addresses: Sequence[str]) -> None:
        """The addresses from now on."""
        self._hosts.write_text("".join(f"{one} {NAME}\n" for one in addresses))
        if hasattr(self, "process"):
            self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


@contextmanager
def name_server(folder: Path) -> Iterator[NameServer]:
    server = NameServer(folder)
    try:
        time.sleep(0.2)
        assert server.process.poll() is None
        yield server
    finally:
        server.stop()


def test_all_addresses_take_turns_and_new_ones_are_found(pool: Pool, tmp_path: Path) -> None:
    """Two of three fronts have the name. One is killed, and the third takes its place."""
    port = free_port("127.0.0.2", socket.SOCK_STREAM)
    flags = [(*pool.flags(1), "--port", str(port), "--host", address) for address in ADDRESSES]
    with running_fronts(tmp_path, flags) as fronts, name_server(tmp_path) as names:
        first, second, third = fronts
        names.name_is(ADDRESSES[:2])
        with calling(f"dns://127.0.0.1:{names.port}/{NAME}:{port}") as calls:
            wait_until(lambda: min(first.n_calls("Debug"), second.n_calls("Debug")) > 20, 30)
            assert third.n_calls("Debug") == 0
            names.name_is(ADDRESSES[1:])
            first.kill()
            wait_until(lambda: third.n_calls("Debug") > 20, 30)
    print(f"\n{calls.n_answered} calls answered by name, {len(calls.faults)} failed")
    assert calls.faults == []
