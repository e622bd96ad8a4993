"""A replica of Ray Serve: one engine on one device, in a process that Ray starts, watches and replaces.

It runs one batch after the other on a thread of its own, so that its event loop stays free for Ray's health
checks and for cancellations. Several fronts may share it.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from tdb_server.model.model_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from tdb_server.workers.batch_run import DeviceLost, run_batch
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import BatchEnded, CallProgress, Configuration, Ready, RunBatch
from tdb_server.workers.ray_outbox import Outbox

_log = logging.getLogger(__name__)
HANG_SECONDS = 30.0
"""How long a batch may go on that nobody wants any more."""


class ReplicaBroken(Exception):  # noqa: N818
    """This replica must be replaced; the message says why."""


@dataclass(eq=False, slots=True)
class _Current:
    """A batch that runs or waits.

    Attributes:
        cancelled: calls of it that nobody wants any more.
        unwanted_since: when its reader went away, in monotonic seconds.
        stepped_at: when it last made progress; None while it waits.
    """

    cancelled: set[str] = field(default_factory=set)
    unwanted_since: float | None = None
    stepped_at: float | None = None


class Replica:
    """What Ray Serve deploys.

    Args:
        configuration: what to load, and where.

    Raises:
        TdbError: the model cannot be loaded.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._thread = ThreadPoolExecutor(1, "engine")
        self._engine, self._ready = self._thread.submit(load_engine, configuration, _no_progress).result()
        self._batches: dict[tuple[str, int], _Current] = {}
        self._serves_another_model = False

    def describe(self) -> tuple[Configuration, Ready]:
        """What was to be loaded, and what was, with the tokenizer: the front may be on another machine."""
        files = (self._ready.tokenizer_folder / name for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE))
        contents = {path.name: path.read_bytes() for path in files if path.is_file()}
        return self._configuration, replace(self._ready, tokenizer_files=contents)

    def check_health(self) -> None:
        """Asked by Ray Serve now and then; a replica that fails several times in a row is replaced.

        Raises:
            ReplicaBroken: the engine does not stop when told to, makes no progress, or holds another model
                than is asked for.
        """
        if self._serves_another_model:
            raise ReplicaBroken("the model on disk is not the one that is being served")
        latest = time.monotonic() - HANG_SECONDS
        if any(
            one.unwanted_since is not None and one.unwanted_since < latest for one in self._batches.values()
        ):
            raise ReplicaBroken("a batch does not stop when told to")
        latest = time.monotonic() - self._configuration.step_seconds
        if any(one.stepped_at is not None and one.stepped_at < latest for one in self._batches.values()):
            raise ReplicaBroken("a batch makes no progress")

    async def run(self, front: str, model_digest: str, batch: RunBatch) -> AsyncIterator[list[bytes]]:
        """Runs a batch; what nobody reads any more stops at the next layer or result.

        Args:
            front: the name of the front that asks; each front numbers its batches and calls.
            model_digest: of the model that the calls were made for.
            batch: what to run.

        Yields:
            Pickled `CallProgress`es, those together that are ready together, and a `BatchEnded` at the end.

        Raises:
            ReplicaBroken: another model is loaded here.
        """
        if model_digest != self._ready.info.digest:
            self._serves_another_model = True
            raise ReplicaBroken(f"model {self._ready.info.digest} is loaded here, not {model_digest}")
        key, current = (front, batch.batch_id), _Current()
        self._batches[key] = current
        outbox = Outbox()
        running = self._thread.submit(self._compute, batch, current, outbox)
        running.add_done_callback(lambda _: self._batches.pop(key, None))
        try:
            async for pieces in outbox.batches():
                yield pieces
        finally:
            current.unwanted_since = time.monotonic()
            current.cancelled.update(call.call_id for call in batch.calls)
            running.cancel()

    def cancel_call(self, front: str, batch_id: int, call_id: str) -> None:
        """Nobody wants a call of a batch any more, if that is here; the others of it go on."""
        current = self._batches.get((front, batch_id))
        if current is not None:
            current.cancelled.add(call_id)

    def _compute(self, batch: RunBatch, current: _Current, outbox: Outbox) -> None:
        def progress(message: CallProgress) -> None:
            outbox.put(pickle.dumps(message, protocol=5))

        def is_cancelled(call_id: str) -> bool:
            current.stepped_at = time.monotonic()  # asked after every layer and every result
            return call_id in current.cancelled

        current.stepped_at = time.monotonic()
        try:
            failure = run_batch(self._engine, batch, is_cancelled, progress)
        except DeviceLost:
            _log.exception("the device is lost; this replica ends")
            os._exit(1)  # only a new process can use it again
        else:
            outbox.put(pickle.dumps(BatchEnded(batch.batch_id, failure), protocol=5))
        finally:
            current.stepped_at = None  # what has ended is taken off the list a little later
            outbox.end()  # without a `BatchEnded` what is not finished counts as left undone


def _no_progress(stage: str, fraction: float) -> None:
    """Ray Serve tells only whether a replica is ready."""
