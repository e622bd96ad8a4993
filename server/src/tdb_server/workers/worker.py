"""A worker: one process, one device. `python -m tdb_server.workers.worker --connection-fd N`.

The main thread loads the model and computes. Another sends heartbeats. A third reads what the front process
says, so that a cancellation arrives in the middle of a computation, and so that the worker ends at once when
the front is gone: no worker outlives the process that started it.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

from setproctitle import setproctitle

from tdb_server.errors import TdbError
from tdb_server.log_format import configure_logging
from tdb_server.queued_stderr import queue_stderr
from tdb_server.workers.batch_run import DeviceLost, run_batch
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.heartbeat import HeartbeatSender
from tdb_server.workers.idle_memory import IdleMemory
from tdb_server.workers.messages import (
    Activity,
    BatchEnded,
    CancelCall,
    LoadingFailed,
    LoadingProgress,
    RunBatch,
)

_log = logging.getLogger(__name__)


class Inbox:
    """What the front has said, read by a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batches: queue.SimpleQueue[RunBatch] = queue.SimpleQueue()
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """From here on the process ends when the front's end of the connection closes."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next_batch(
        self, prepare: Callable[[], bool], rest: Callable[[], object], rest_after_seconds: float | None
    ) -> RunBatch:
        """Waits for work, and prepares for it meanwhile while there is something to prepare.

        A failure to prepare is logged, and no reason to end: calls do without.

        Args:
            prepare: does a little; false when nothing is left to do.
            rest: called once when no work has come for long.
            rest_after_seconds: how long that is; None for never.
        """
        try:
            while self._batches.empty() and prepare():
                pass
        except Exception:
            _log.exception("preparing for later calls failed")
        try:
            return self._batches.get(timeout=rest_after_seconds)
        except queue.Empty:
            rest()
        return self._batches.get()

    def is_cancelled(self, call_id: str) -> bool:
        """Whether nobody wants the call's results any more."""
        return call_id in self._cancelled

    def forget(self, batch: RunBatch) -> None:
        """The batch is over, cancellations of its calls mean nothing any more."""
        self._cancelled.difference_update(call.call_id for call in batch.calls)

    def _read(self) -> None:
        try:
            while True:
                message, _ = receive_message(self._connection)
                match message:
                    case RunBatch():
                        self._batches.put(message)
                    case CancelCall(call_id):
                        self._cancelled.add(call_id)
        except (EOFError, OSError):
            os._exit(0)  # the main thread may be deep in a computation that nobody wants
        except BaseException:
            _log.exception("what the front says makes no sense; this worker ends")
            os._exit(1)  # it would never hear of anything again


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs until the front is gone, or the model cannot be loaded, or the device is lost."""
    parser = argparse.ArgumentParser("tdb-worker")
    parser.add_argument("--connection-fd", type=int, required=True)
    parser.add_argument("--weights-fd", type=int, help="file in memory for weights that workers share")
    inherited = parser.parse_args(arguments)
    connection = Connection(inherited.connection_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which lets running calls finish
    send = one_at_a_time(partial(send_message, connection))
    heartbeats = HeartbeatSender(send)
    heartbeats.start()
    configuration, _ = receive_message(connection)
    setproctitle(f"tdb-worker:{configuration.device}")
    queue_stderr()
    configure_logging(configuration.log_format, configuration.log_level)
    inbox = Inbox(connection)
    inbox.start()

    def progress(stage: str, fraction: float) -> None:
        heartbeats.step()
        send(LoadingProgress(stage, fraction))

    def prepare() -> bool:
        heartbeats.step()
        return engine.prepare()

    def is_cancelled(call_id: str) -> bool:
        heartbeats.step()  # asked after every layer and every result
        return inbox.is_cancelled(call_id)

    try:
        engine, ready = load_engine(configuration, progress, inherited.weights_fd)
    except TdbError as error:
        with suppress(OSError):  # the front may be gone, too
            send(LoadingFailed(error))
        sys.exit(1)
    setproctitle(f"tdb-worker:{ready.device}")
    send(ready)
    idle_memory = IdleMemory(ready.device)
    while True:
        heartbeats.turn_to(Activity.WAITING)
        batch = inbox.next_batch(prepare, idle_memory.give_back, configuration.idle_memory_seconds)
        heartbeats.turn_to(Activity.RUNNING)
        try:
            failure = run_batch(engine, batch, is_cancelled, send)
        except BrokenPipeError:
            sys.exit(0)
        except DeviceLost:
            _log.exception("the device is lost; this worker ends")
            sys.exit(1)
        inbox.forget(batch)
        send(BatchEnded(batch.batch_id, failure))


def one_at_a_time(send: Callable[[object], None]) -> Callable[[object], None]:
    """For several threads: a message is written whole before the next begins."""
    lock = threading.Lock()

    def send_alone(message: object) -> None:
        with lock:
            send(message)

    return send_alone


if __name__ == "__main__":
    main()
