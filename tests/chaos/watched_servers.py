"""Servers that compute every call, on one thread per worker, and tell what they do."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.loop_pauses import LoopPauses
from tests.running_server import TINY_MODEL, RunningServer, start

FLAGS = ("--cache-bytes", "0", "--threads", "1", "--metrics-port", "0", "--log-level", "warning")
AUTOENCODERS = tuple(
    f"--autoencoder={TINY_MODEL / 'autoencoders' / site}" for site in ("mlp_post_act", "resid_delta_attn")
)
QUEUE_LENGTH = 8
ALONE = ("--max-batch-tokens", "1", "--max-queue-length", str(QUEUE_LENGTH))
"""Every call in a batch of its own, and few that may wait."""


def start_watched_server(
    folder: Path, pauses: LoopPauses, *flags: str, model: Path = TINY_MODEL
) -> RunningServer:
    """One whose event loop is measured from when it is ready: before that it has no calls to hold up."""
    server = start(folder, *FLAGS, *flags, model=model, environment=pauses.environment())
    pauses.forget(server.process.pid)
    return server
