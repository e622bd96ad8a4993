"""The front's handle of one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
from tdb_server.workers.callbacks import keep_trying
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.liveness import Look
from tdb_server.workers.messages import BatchEnded, CancelCall, Configuration, FromWorker, Heartbeat, RunBatch
from tdb_server.workers.process_activity import process_activity

_log = logging.getLogger(__name__)
MAX_ON_THE_WAY = 8
"""Messages of a worker that may wait for the loop, and for the disk, before no more are read."""
LONGEST_PAUSE_SECONDS = 2.0
"""After so long one more is read all the same, so that what a worker says about itself is heard."""
MEMORY_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456"
)
"""Asks Linux for pages of 2 MiB: a long prompt takes and gives back a million of 4 KiB. And has the C library
keep up to 256 MiB that a call gave back, for the next: else the kernel clears them for each call anew."""


class WorkerProcess:
    """A worker, from its start to its end.

    One thread reads what the worker says and hands it to the event loop; another writes, so that a worker
    that hangs never holds up the loop. Messages that wait for the disk hold up the reading for a while, and
    so the worker: what comes faster than it can be stored does not pile up in memory. All methods are called
    on the loop.

    Args:
        configuration: what the worker loads.
        weights_file: descriptor of the file in memory where workers share weights, where there is one.
        on_message: called on the loop with each message and its size in bytes. Returns what is done when the
            message takes no memory any more; None where there is nothing to wait for. Where it fails the
            worker is ended.
        on_exit: called on the loop with the exit code, after the last message; again where it fails.

    Raises:
        OSError, RuntimeError: a process, descriptors or threads cannot be had. Nothing is left behind.
    """

    def __init__(
        self,
        configuration: Configuration,
        weights_file: int | None,
        on_message: Callable[[WorkerProcess, FromWorker, int], asyncio.Future[None] | None],
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
        self._on_the_way = threading.Semaphore(MAX_ON_THE_WAY)
        with contextlib.ExitStack() as undoing:
            self._begin(weights_file, undoing)
            undoing.pop_all()
        self._outbox.put(configuration)

    def _begin(self, weights_file: int | None, undoing: contextlib.ExitStack) -> None:
        """Starts the process and its threads; `undoing` takes what is to be done if that fails midway."""
        self._socket, theirs = socket.socketpair()
        undoing.callback(self._socket.close)
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
                env=_environment(self.configuration.n_threads),
            )
        undoing.callback(self._process.wait)
        undoing.callback(self._process.kill)
        self._connection = Connection(os.dup(self._socket.fileno()))
        undoing.callback(self._connection.close)
        self._writer = threading.Thread(target=self._write, name=f"to-worker-{self.pid}", daemon=True)
        self._writer.start()
        undoing.callback(self._outbox.put, None)
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
                is_counted = self._on_the_way.acquire(timeout=LONGEST_PAUSE_SECONDS)
                self._on_loop(partial(self._take, message, n_bytes, is_counted=is_counted))
        except (EOFError, OSError):
            pass  # the worker is gone, or will be as soon as it notices that we have hung up
        except Exception:
            _log.exception("worker %d says what makes no sense; it is ended", self.pid)
            self._process.kill()
        exit_code = self._process.wait()
        self._outbox.put(None)
        self._writer.join()
        self._connection.close()
        self._socket.close()
        what = f"that worker {self.pid} is gone cannot be dealt with"
        self._on_loop(partial(keep_trying, partial(self._on_exit, self, exit_code), what))

    def _take(self, message: FromWorker, n_bytes: int, *, is_counted: bool) -> None:
        stored: asyncio.Future[None] | None = None
        try:
            stored = self._on_message(self, message, n_bytes)
        except Exception:
            _log.exception("what worker %d says cannot be dealt with; it is ended", self.pid)
            self.kill()
        if is_counted and stored is None:
            self._on_the_way.release()
        elif is_counted and stored is not None:
            stored.add_done_callback(lambda _: self._on_the_way.release())

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                send_message(self._connection, message)
            except OSError:
                pass  # it is gone
            except Exception:
                _log.exception("worker %d cannot be told something; it is ended", self.pid)
                self._process.kill()

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
