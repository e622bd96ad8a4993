"""Starts a server with the default model, asks it why it says " Mary", and stops it. Run by `make demo`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdb_client.cli import main

PROMPT = "When Mary and John went to the store, John gave a drink to"
REQUEST = ["debug", "--prompt", PROMPT, "--target", " Mary", "--distractor", " John"]
SERVE = f"{Path(sys.executable).with_name('tdb-server')} serve --http-port 8000"
READY_SECONDS = 600.0  # the first time, the weights are unpacked
STOP_SECONDS = 20.0


@contextmanager
def running_server(*flags: str) -> Iterator[dict[str, int]]:
    """The ports of a server that is ready, with the default model: `grpc_port`, and `http_port` if wanted."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder, "ready.json")
        command = ["serve", "--port", "0", "--log-level", "warning", "--ready-file", str(ready), *flags]
        print(f"$ tdb-server {shlex.join(command)}", file=sys.stderr)
        process = subprocess.Popen([sys.executable, "-m", "tdb_server", *command], stdout=sys.stderr)
        try:
            yield wait_until_ready(process, ready)
        finally:
            stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], ready: Path) -> dict[str, int]:
    """The server's ports, once the model is loaded."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if process.poll() is not None:
            sys.exit(f"the server ended with code {process.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"the server was not ready after {READY_SECONDS:.0f} s")
        time.sleep(0.05)
    ports: dict[str, int] = json.loads(ready.read_text())
    return ports


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end; makes it when it takes too long."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with running_server() as ports:
        request = [*REQUEST, "--server", f"127.0.0.1:{ports['grpc_port']}"]
        print(f"\n$ tdb {shlex.join(request)}\n", flush=True)
        code = main(request)
    if code == 0:
        print(
            f"\nTo ask more by clicking, run\n\n    {SERVE}\n\nand open http://127.0.0.1:8000/ in a browser."
        )
    sys.exit(code)
