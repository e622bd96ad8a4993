"""Running a batch on an engine: what comes out of it, and what its failures mean."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tdb_server.domain.results import Finished
from tdb_server.errors import Internal, TdbError
from tdb_server.workers.messages import CallProgress, OutOfMemory, RunBatch

if TYPE_CHECKING:
    from tdb_server.engine.engine import Engine, IsCancelled

_log = logging.getLogger(__name__)
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
_GPU_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_GPU_IS_LOST = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")


class DeviceLost(Exception):  # noqa: N818
    """The device answers nothing sensible any more; only a new process can use it again."""


def run_batch(
    engine: Engine, batch: RunBatch, is_cancelled: IsCancelled, send: Callable[[CallProgress], None]
) -> TdbError | OutOfMemory | None:
    """Runs a batch and sends what comes out of it, piece by piece.

    Args:
        is_cancelled: asked again and again, with a call's id, from this thread.
        send: takes each piece; raises `BrokenPipeError` when nobody listens any more.

    Returns:
        What went wrong, or None.

    Raises:
        BrokenPipeError: the front is gone.
        DeviceLost: the device cannot be used any more.
    """
    calls = [call for call in batch.calls if not is_cancelled(call.call_id)]
    if not calls:
        return None
    n_sent: Counter[str] = Counter()
    try:
        for call_id, event in engine.run(calls, is_cancelled):
            counted = replace(event, n_events=n_sent[call_id]) if isinstance(event, Finished) else event
            send(CallProgress(call_id, counted))
            n_sent[call_id] += 1
    except TdbError as error:
        return error
    except BrokenPipeError:
        raise
    except Exception as error:
        if not _is_out_of_memory(error):
            return _fault(error)
    else:
        return None
    _free_memory()  # only here is the exception gone, and with it the frames that hold tensors
    return OutOfMemory()


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in (*_CPU_OUT_OF_MEMORY, *_GPU_OUT_OF_MEMORY)
    )


def _fault(error: Exception) -> TdbError:
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _GPU_IS_LOST):
        raise DeviceLost from error
    return Internal.logged(_log, "a batch has failed", error)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
