"""A worker that has nothing to do gives back memory that it kept for calls like those before.

The C library and torch keep what a call gave back, as the next call will want it: on Linux every page would
have to be cleared anew for it, and a GPU's driver asked. After one large call that may be gigabytes, though.
So after a while without calls a worker gives back what it holds beyond what it held when it was loaded, if
that is much: ordinary calls leave less than that and never pay for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from pathlib import Path

_log = logging.getLogger(__name__)
WORTH_BYTES = 512 * 2**20
"""Less than this is not given back. The C library keeps half of it from one call to the next."""


class IdleMemory:
    """What this process holds more than when this was made, which is when the model is loaded.

    Args:
        device: as torch names it.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._needed_bytes = _private_bytes()

    def give_back(self) -> int:
        """Gives back what is not needed, if it is much.

        Returns:
            Bytes that were given back.
        """
        given_back = self._give_back_host() + self._give_back_gpu()
        if given_back:
            _log.info("idle: %d MiB of memory were given back", given_back >> 20)
        return given_back

    def _give_back_host(self) -> int:
        before = _private_bytes()
        if before - self._needed_bytes < WORTH_BYTES:
            return 0
        return_free_memory()
        after = _private_bytes()
        # What is left is remembered, or cannot be given back: no reason to try again before there is more.
        self._needed_bytes = max(self._needed_bytes, after)
        return max(0, before - after)

    def _give_back_gpu(self) -> int:
        if not self._device.startswith("cuda"):
            return 0
        import torch

        before = torch.cuda.memory_reserved(self._device)
        if before - torch.cuda.memory_allocated(self._device) < WORTH_BYTES:
            return 0
        torch.cuda.empty_cache()
        return before - torch.cuda.memory_reserved(self._device)


def return_free_memory() -> None:
    """Gives back what is free already; the C library would keep it, in pages of 2 MiB."""
    gc.collect()
    with contextlib.suppress(AttributeError, TypeError, OSError):  # other systems, other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _private_bytes() -> int:
    """Memory of this process that it shares with nobody; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0][1]) * 1024 if found else 0
