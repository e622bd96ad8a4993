"""A worker: one process, one device. `python -m tdb_server.workers.worker --connection-fd N`.

The main thread loads the model and computes. A second thread reads what the front process says, so that a
cancellation arrives in the middle of a computation, and so that the worker ends at once when the front is
gone: no worker outlives the process that started it.
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
from tdb_server.workers.batch_run import DeviceLost, run_batch
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import (
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

    def next_batch(self, prepare: Callable[[], bool]) -> RunBatch:
        """Waits for work, and prepares for it meanwhile while there is something to prepare.

        A failure to prepare is logged, and no reason to end: calls do without.
        """
        try:
            while self._batches.empty() and prepare():
                pass
        except Exception:
            _log.exception("preparing for later calls failed")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs until the front is gone, or the model cannot be loaded, or the device is lost."""
    parser = argparse.ArgumentParser("tdb-worker")
    parser.add_argument("--connection-fd", type=int, required=True)
    parser.add_argument("--weights-fd", type=int, help="file in memory for weights that workers share")
    inherited = parser.parse_args(arguments)
    connection = Connection(inherited.connection_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which lets running calls finish
    configuration, _ = receive_message(connection)
    setproctitle(f"tdb-worker:{configuration.device}")
    configure_logging(configuration.log_format, configuration.log_level)
    inbox = Inbox(connection)
    inbox.start()

    def progress(stage: str, fraction: float) -> None:
        send_message(connection, LoadingProgress(stage, fraction))

    try:
        engine, ready = load_engine(configuration, progress, inherited.weights_fd)
    except TdbError as error:
        with suppress(OSError):  # the front may be gone, too
            send_message(connection, LoadingFailed(error))
        sys.exit(1)
    setproctitle(f"tdb-worker:{ready.device}")
    send_message(connection, ready)
    while True:
        batch = inbox.next_batch(engine.prepare)
        try:
            failure = run_batch(engine, batch, inbox.is_cancelled, partial(send_message, connection))
        except BrokenPipeError:
            sys.exit(0)
        except DeviceLost:
            _log.exception("the device is lost; this worker ends")
            sys.exit(1)
        inbox.forget(batch)
        send_message(connection, BatchEnded(batch.batch_id, failure))


if __name__ == "__main__":
    main()
