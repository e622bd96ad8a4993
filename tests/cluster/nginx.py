"""nginx with the configuration that is shipped, on free ports and with a test's fronts."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.fronts import Front

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx"
START_SECONDS = 10.0
RELOAD_SECONDS = 1.0
SHIPPED_GRPC, SHIPPED_JSON = ("10.0.0.11:50051", "10.0.0.12:50051"), ("10.0.0.11:8000", "10.0.0.12:8000")


class Nginx:
    """A running nginx.

    Args:
        folder: for its files.
        fronts: two, to share calls out to.
        tls: folder of the certificate and key; None to listen in clear.
    """

    def __init__(self, folder: Path, fronts: Sequence[Front], tls: Path | None = None) -> None:
        self._folder, self._fronts = folder, fronts
        self.port, self.json_port = free_port(), free_port()
        folder.mkdir(exist_ok=True)
        self._write_fronts(())
        text = (CONFIGURATION / "nginx.conf").read_text()
        changes = {
            "pid /run/nginx.pid": f"pid {folder / 'nginx.pid'}",
            "error_log /var/log/nginx/error.log": f"error_log {folder / 'error.log'}",
            "listen 50051 ssl http2": f"listen 127.0.0.1:{self.port}{' ssl' if tls else ''} http2",
            "listen 8000 ssl": f"listen 127.0.0.1:{self.json_port}{' ssl' if tls else ''}",
            "/etc/nginx/tls/tls.crt": str(tls / "tls.crt") if tls else "",
            "/etc/nginx/tls/tls.key": str(tls / "tls.key") if tls else "",
        }
        if tls is None:
            changes |= {
                "    ssl_certificate /etc/nginx/tls/tls.crt;\n": "",
                "    ssl_certificate_key /etc/nginx/tls/tls.key;\n": "",
            }
            del changes["/etc/nginx/tls/tls.crt"], changes["/etc/nginx/tls/tls.key"]
        (folder / "nginx.conf").write_text(_changed(text, changes))
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "nginx is not installed: see `make cluster-test`"
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._wait()

    def mark_down(self, *down: Front) -> None:
        """Sends no new calls to these fronts, and to all others again."""
        self._write_fronts(down)
        self.process.send_signal(signal.SIGHUP)
        time.sleep(RELOAD_SECONDS)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def _write_fronts(self, down: Collection[Front]) -> None:
        text = (CONFIGURATION / "fronts.conf").read_text()
        changes: dict[str, str] = {}
        for index, front in enumerate(self._fronts):
            mark = " down" if front in down else ""
            changes[SHIPPED_GRPC[index]] = f"127.0.0.1:{front.port}{mark}"
            changes[SHIPPED_JSON[index]] = f"127.0.0.1:{front.http_port}{mark}"
        (self._folder / "fronts.conf").write_text(_changed(text, changes))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            log = self._folder / "error.log"
            said = log.read_text() if log.exists() else ""
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return


@contextmanager
def running_nginx(folder: Path, fronts: Sequence[Front], tls: Path | None = None) -> Iterator[Nginx]:
    """Starts nginx and waits until it listens."""
    nginx = Nginx(folder, fronts, tls)
    try:
        yield nginx
    finally:
        nginx.stop()


def _changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is not in the shipped file once"
        text = text.replace(old, new)
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
