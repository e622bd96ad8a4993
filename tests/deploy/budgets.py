"""What the limits around a server must leave room for, by what it was told."""

from __future__ import annotations

import re

from tdb_server.settings import Settings

GIB = 2**30
FRONT_BYTES = 256 * 2**20
"""Of the front process, beside what it is told that it may keep."""
MARGIN = 1.1
"""Files of the spool take whole pages, and the wall is for what the server's own budget does not hold."""
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def front_bytes(settings: Settings) -> int:
    """Memory of the front, as docs/operations.md says."""
    return FRONT_BYTES + settings.limits.max_buffered_bytes + settings.scheduling.cache_bytes


def host_bytes(settings: Settings, spool_bytes: int, *, computes_here: bool) -> int:
    """Memory of all processes, a spool in memory included, but for the weights.

    Args:
        settings: what the server was told.
        spool_bytes: size of the folder for what waits.
        computes_here: whether activations are in this memory, rather than in that of GPUs.
    """
    activations = 0
    if computes_here:
        assert settings.limits.max_activation_bytes is not None, "what a wall is built around has to be told"
        activations = settings.limits.max_activation_bytes * len(settings.worker_devices)
    return front_bytes(settings) + spool_bytes + activations


def size(text: str) -> int:
    """Bytes of a size as systemd, Kubernetes and Docker write it: `16G`, `2304Mi`, `2304m`."""
    found = re.fullmatch(r"(\d+)([kmgt]?)i?", text, re.IGNORECASE)
    assert found, f"{text} is no size"
    return int(found[1]) * _UNITS[found[2].lower()]


def tmpfs_size(options: str) -> int:
    """Bytes of a tmpfs by its mount's options."""
    (told,) = [one for one in options.split(",") if one.startswith("size=")]
    return size(told.removeprefix("size="))
