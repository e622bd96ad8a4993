"""Servers that compute every call, on one thread per worker, and tell what they do."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.loop_pauses import LoopPauses
from tests.running_server import TINY_MODEL, RunningServer, start

FLAGS = ("--cache-bytes", "0", "--threads", "1", "--metrics-port", "0", "--log-level", "warning")
AUTOENCODERS = tuple(
    f"--autoencoder={TINY_MODEL / 'autoencoders' / site}" for site in ("mlp_post_act", "resid_delta_attn")
)
QUEUE_LENGTH = 8
ALONE = (
    *("--max-batch-tokens", "1", "--max-queue-length", str(QUEUE_LENGTH)),
    *("--worker-silence-seconds", "120"),
)
"""Every call in a batch of its own, few that may wait, and a worker that may be held for a while."""


def start_watched_server(
    folder: Path, pauses: LoopPauses, *flags: str, model: Path = TINY_MODEL
) -> RunningServer:
    """One whose event loop is measured from when it is ready: before that it has no calls to hold up."""
    server = start(folder, *FLAGS, *flags, model=model, environment=pauses.environment())
    pauses.forget(server.process.pid)
    return server


@contextlib.contextmanager
def held_worker(server: RunningServer) -> Iterator[None]:
    """The server's one worker does not move meanwhile: calls queue up however fast it computes."""
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)
