"""The worker's side of its liveness: a thread of its own sends what the main thread is at, again and again.

A heartbeat alone shows only that the process runs. So the main thread counts its steps, such as a layer or a
result, and each heartbeat says how many there were.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from tdb_server.workers.messages import Activity, Heartbeat

BEAT_SECONDS = 1.0


class HeartbeatSender:
    """Sends how many steps the main thread has done, once a second and from a thread of its own."""

    def __init__(self, send: Callable[[Heartbeat], None]) -> None:
        self._send = send
        self._activity = Activity.LOADING
        self._n_steps = 0

    def start(self) -> None:
        """Beats from here on, until the front is gone."""
        threading.Thread(target=self._beat, name="heartbeats", daemon=True).start()

    def step(self) -> None:
        """The main thread has done a step of what it is at."""
        self._n_steps += 1

    def turn_to(self, activity: Activity) -> None:
        """The main thread is at something else now."""
        self._activity = activity
        self._n_steps += 1

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the front is gone, which the inbox notices too
            while True:
                time.sleep(BEAT_SECONDS)
                self._send(Heartbeat(self._activity, self._n_steps))
