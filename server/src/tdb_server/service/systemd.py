"""Notifies systemd: that the server is ready, that it stops, and at intervals that it is alive.

The protocol is that of `sd_notify(3)`: a datagram to the socket named in `NOTIFY_SOCKET`. Elsewhere, without
such a variable, nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
MICROSECONDS = 1e6
LONGEST_WAIT_SECONDS = 0.1
"""How long to wait for room in the queue of systemd's socket, which holds few messages."""


class Systemd:
    """Messages to the systemd that started this process; none are sent where none did.

    Args:
        environment: where systemd's variables are looked up.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        interval = environment.get("WATCHDOG_USEC", "") if is_for_us and name else ""
        microseconds = int(interval) if interval.isdecimal() else 0
        self._seconds_between_signs = microseconds / MICROSECONDS / 2 if microseconds else None
        self._signs: asyncio.Task[None] | None = None
        # Opened while there are descriptors: want of them later is no sign of death.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket is not None:
            self._socket.settimeout(LONGEST_WAIT_SECONDS)

    def start(self) -> None:
        """Sends signs of life from the event loop from here on, so that they end when the loop hangs."""
        if self._seconds_between_signs is not None:
            self._signs = asyncio.create_task(self._give_signs(self._seconds_between_signs))

    def tell(self, *states: str) -> None:
        """Sends states. That they cannot be sent is no reason to fail."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(states).encode(), self._address)

    def stop(self) -> None:
        """Says nothing more."""
        if self._signs is not None:
            self._signs.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _give_signs(self, seconds: float) -> None:
        while True:
            self.tell(ALIVE)
            await asyncio.sleep(seconds)
