"""The front's handle of one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

from tdb_server.queued_stderr import QueuedStream
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.liveness import Look
from tdb_server.workers.messages import (
    BatchEnded,
    CancelCall,
    Configuration,
    FromWorker,
    Heartbeat,
    RunBatch,
)
from tdb_server.workers.process_activity import process_activity

MEMORY_TUNABLES = ":".join(
    (
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.mmap_threshold=33554432",
        "glibc.malloc.trim_threshold=268435456",
    )
)
"""Asks Linux for pages of 2 MiB: a long prompt takes and gives back a million of 4 KiB. And has the C library
keep up to 256 MiB that a call gave back, for the next: else the kernel clears them for each call anew."""


class WorkerProcess:
    """A worker, from its start to its end.

    One thread reads what the worker says and hands it to the event loop; another writes, so that a worker
    that hangs never holds up the loop. All methods are called on the loop.

    Args:
        configuration: what the worker loads.
        weights_file: descriptor of the file in memory where workers share weights, where there is one.
        on_message: called on the loop with each message and its size in bytes.
        on_exit: called on the loop, once, with the exit code, after the last message.
    """

    def __init__(
        self,
        configuration: Configuration,
        weights_file: int | None,
        on_message: Callable[[WorkerProcess, FromWorker, int], None],
        on_exit: Callable[[WorkerProcess, int], None],
    ) -> None:
        self.configuration = configuration
        self.device = configuration.device
        self._on_message = on_message
        self._on_exit = on_exit
        self._n_heard = 0
        self._beat: Heartbeat | None = None
        self._open_batch_id: int | None = None
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[Configuration | RunBatch | CancelCall | None] = queue.SimpleQueue()
        self._socket, theirs = socket.socketpair()
        with theirs:
            inherited = {"--connection-fd": theirs.fileno()}
            if weights_file is not None:
                inherited["--weights-fd"] = weights_file
            options = [f"{name}={descriptor}" for name, descriptor in inherited.items()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tdb_server.workers.worker", *options],
                pass_fds=tuple(inherited.values()),
                stdin=subprocess.DEVNULL,
                stderr=sys.stderr.fileno() if isinstance(sys.stderr, QueuedStream) else None,
                process_group=0,  # signals to the front's group, such as Ctrl-C, are the front's to handle
                env=_environment(configuration.n_threads),
            )
        self._connection = Connection(os.dup(self._socket.fileno()))
        self._outbox.put(configuration)
        self._writer = threading.Thread(target=self._write, name=f"to-worker-{self.pid}", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name=f"from-worker-{self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: RunBatch | CancelCall) -> None:
        """Hands a message to the worker. To one that is gone nothing happens: its exit is reported anyway."""
        if isinstance(message, RunBatch):
            self._open_batch_id = message.batch_id
        self._outbox.put(message)

    def look(self) -> Look:
        """What is known of the worker at this moment."""
        return Look(self._n_heard, self._beat, self._open_batch_id is not None, process_activity(self.pid))

    def end(self) -> None:
        """Asks the worker to end, which it does whatever it is at."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Ends it without asking."""
        self._process.kill()

    def _read(self) -> None:
        try:
            while True:
                message, n_bytes = receive_message(self._connection)
                self._n_heard += 1
                if isinstance(message, Heartbeat):
                    self._beat = message
                    continue
                if isinstance(message, BatchEnded) and message.batch_id == self._open_batch_id:
                    self._open_batch_id = None
                self._on_loop(partial(self._on_message, self, message, n_bytes))
        except (EOFError, OSError):
            pass  # the worker is gone, or will be as soon as it notices that we have hung up
        exit_code = self._process.wait()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        self._socket.close()
        self._on_loop(partial(self._on_exit, self, exit_code))

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            with contextlib.suppress(OSError):
                send_message(self._connection, message)

    def _on_loop(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the worker
            self._loop.call_soon_threadsafe(action)


def _environment(n_threads: int) -> dict[str, str]:
    """The worker's environment.

    The C library moves its own variable to another place in memory, and process titles are written over the
    place of the first one: it comes last.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    environment["GLIBC_TUNABLES"] = environment.pop("GLIBC_TUNABLES", MEMORY_TUNABLES)
    return environment
