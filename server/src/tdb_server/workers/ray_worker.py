"""A worker as the scheduler sees it, made of Ray Serve's replicas: one batch at a time, on any of them."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from typing import Any

from ray.exceptions import TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from tdb_server.workers.messages import BatchEnded, CancelCall, RunBatch
from tdb_server.workers.pool import PoolObserver

_log = logging.getLogger(__name__)
TELL_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 2.0
"""How long the reading of a batch waits for the disk."""


class RayWorker:
    """Hands each batch to Ray Serve, which picks a replica, and passes on what that says.

    When the replica dies, this worker is gone with it; the pool makes another. All methods are called on the
    event loop.

    Args:
        handle: of the application.
        front: the name under which replicas know this server's batches.
        model_digest: of the model that calls are made for.
        device: where replicas compute, as torch names it.
        observer: the scheduler.
        on_loss: called, once, when a replica has died with a batch.
    """

    def __init__(
        self,
        handle: Any,
        front: str,
        model_digest: str,
        device: str,
        observer: PoolObserver,
        on_loss: Callable[[RayWorker], None],
    ) -> None:
        self.device = device
        self._handle = handle
        self._stream = handle.options(method_name="run", stream=True)
        self._front = front
        self._model_digest = model_digest
        self._observer = observer
        self._on_loss = on_loss
        self._batch: RunBatch | None = None
        self._wanted: set[str] = set()
        self._response: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._is_retired = False

    @property
    def is_free(self) -> bool:
        """Between batches."""
        return self._batch is None

    def send(self, message: RunBatch | CancelCall) -> None:
        """Hands over a batch, or takes back a call of it. See `Worker`."""
        match message:
            case RunBatch():
                self._batch, self._response = message, None
                self._wanted = {call.call_id for call in message.calls}
                try:
                    self._response = self._stream.remote(self._front, self._model_digest, message)
                except Exception as error:  # reported soon, and not in the middle of handing out batches
                    asyncio.get_running_loop().call_soon(self._lost, error)
                else:
                    self._reading = asyncio.create_task(self._read(message, self._response))
            case CancelCall(call_id):
                self._cancel(call_id)

    def kill(self) -> None:
        """Gives up on the batch. Whether the replica behind it is sound, Ray Serve's health checks tell."""
        if self.retire():
            self._on_loss(self)

    def retire(self) -> bool:
        """Says nothing from now on, and stops the batch if there is one. False when it was done before."""
        if self._is_retired:
            return False
        self._is_retired = True
        if self._batch is not None and self._response is not None:
            self._response.cancel()
        return True

    def _cancel(self, call_id: str) -> None:
        if self._batch is None or call_id not in self._wanted:
            return
        self._wanted.discard(call_id)
        if self._wanted:
            telling = asyncio.create_task(self._tell_replicas(self._batch.batch_id, call_id))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        elif self._response is not None:
            self._response.cancel()

    async def _tell_replicas(self, batch_id: int, call_id: str) -> None:
        """Takes one call out of a batch that goes on, wherever that is."""
        try:
            answers = self._handle.broadcast("cancel_call", self._front, batch_id, call_id)
            await answers.results_async(timeout_s=TELL_SECONDS, return_exceptions=True)
        except TimeoutError:
            _log.warning("replicas do not answer; a cancelled call may run to its end")
        except Exception:
            _log.exception("replicas cannot be told; a cancelled call may run to its end")

    async def _read(self, batch: RunBatch, response: Any) -> None:
        ended, n_bytes = BatchEnded(batch.batch_id, None), 0
        try:
            async for pieces in response:
                for piece in pieces:
                    message = pickle.loads(piece)
                    if isinstance(message, BatchEnded):
                        ended, n_bytes = message, len(piece)
                    elif not self._is_retired:
                        stored = self._observer.worker_said(self, message, len(piece))
                        if stored is not None:
                            await asyncio.wait((stored,), timeout=LONGEST_PAUSE_SECONDS)
        except (TaskCancelledError, RequestCancelledError):
            pass  # by `_cancel` or `retire`
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Otherwise it is the batch that was cancelled, before it had reached a replica.
        except Exception as error:
            self._lost(error)
            return
        if not self._is_retired:
            # Only now does Ray Serve count the replica as free.
            self._batch = None
            try:
                self._observer.worker_said(self, ended, n_bytes)
            except Exception as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        if not self._is_retired:
            self._is_retired = True
            _log.warning("a replica was lost with a batch: %s", str(error).partition("\n")[0])
            self._on_loss(self)
