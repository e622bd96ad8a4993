"""A worker: one process, one device. `python -m tdb_server.workers.worker --connection-fd N`.

The main thread loads the model and computes. A second thread reads what the front process says, so that a
cancellation arrives in the middle of a computation, and so that the worker ends at once when the front is
gone: no worker outlives the process that started it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import queue
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.errors import Internal, ModelError, TdbError
from tdb_server.log_format import configure_logging
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.messages import (
    BatchEnded,
    CallProgress,
    CancelCall,
    Configuration,
    LoadingFailed,
    LoadingProgress,
    OutOfMemory,
    Ready,
    RunBatch,
)

if TYPE_CHECKING:
    from tdb_server.model.autoencoder import Autoencoder
    from tdb_server.model.decoder import Decoder
    from tdb_server.model.progress import Progress
    from tdb_server.scalars.engine import Engine

_log = logging.getLogger(__name__)
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
_GPU_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_GPU_IS_LOST = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")


class DeviceLost(Exception):  # noqa: N818
    """The device answers nothing sensible any more; only a new process can use it again."""


class Inbox:
    """What the front has said, read by a thread of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._batches: queue.SimpleQueue[RunBatch] = queue.SimpleQueue()
        self._cancelled: set[str] = set()

    def start(self) -> None:
        """From here on the process ends when the front's end of the connection closes."""
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next_batch(self) -> RunBatch:
        """Waits for work."""
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
    connection = Connection(parser.parse_args(arguments).connection_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which lets running calls finish
    configuration, _ = receive_message(connection)
    setproctitle(f"tdb-worker:{configuration.device}")
    configure_logging(configuration.log_format, configuration.log_level)
    inbox = Inbox(connection)
    inbox.start()
    try:
        engine = _load(configuration, connection)
    except TdbError as error:
        send_message(connection, LoadingFailed(error))
        sys.exit(1)
    while True:
        batch = inbox.next_batch()
        try:
            failure = _run(engine, batch, inbox, connection)
        except BrokenPipeError:
            sys.exit(0)
        except DeviceLost:
            _log.exception("the device is lost; this worker ends")
            sys.exit(1)
        inbox.forget(batch)
        send_message(connection, BatchEnded(batch.batch_id, failure))


def _load(configuration: Configuration, connection: Connection) -> Engine:
    # These take seconds. By now the process has its title and ends when the front does.
    import torch

    from tdb_server.model.sources import resolve_model
    from tdb_server.model.weights import load_decoder
    from tdb_server.scalars.engine import Engine

    def progress(stage: str, fraction: float) -> None:
        send_message(connection, LoadingProgress(stage, fraction))

    torch.set_num_threads(configuration.n_threads)
    device = _device(configuration)
    setproctitle(f"tdb-worker:{device}")
    model = resolve_model(configuration.model, progress)
    decoder = load_decoder(model.path, device, getattr(torch, configuration.dtype), progress)
    autoencoders: Sequence[Autoencoder] = ()
    if configuration.autoencoders:
        from tdb_server.model.autoencoder_loading import load_autoencoders

        autoencoders = load_autoencoders(configuration.autoencoders, decoder)
    digest = _digest(model.path, configuration.autoencoders)
    info = _model_info(model.name, digest, configuration.dtype, decoder, autoencoders)
    engine = Engine(decoder, autoencoders, info)
    _warm_up(engine, progress)
    send_message(connection, Ready(model.tokenizer_path, info, device))
    return engine


def _warm_up(engine: Engine, progress: Progress) -> None:
    """Runs the smallest call, so that the first caller does not wait for what libraries do on first use."""
    progress("warming up", 0.0)
    request = DebugSubRequest((0, 0), (0,), (), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 1)
    for _ in engine.run([Call("warm-up", (inference_sub_request(request),))], lambda _: False):
        pass
    progress("warming up", 1.0)


def _device(configuration: Configuration) -> str:
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if configuration.device == "auto":
        return f"cuda:{configuration.worker_index % n_gpus}" if n_gpus else "cpu"
    try:
        device = torch.device(configuration.device)
    except RuntimeError as error:
        raise ModelError(f"{configuration.device}: not a device; auto, cpu or cuda:N", "NO_DEVICE") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= n_gpus):
        raise ModelError(f"{device}: there is no such device here, which has {n_gpus} GPUs", "NO_DEVICE")
    return str(device)


def _digest(folder: Path, autoencoders: Sequence[Path]) -> str:
    """The digest of the weights; with autoencoders, of the weights and of their files."""
    from tdb_server.model.weights import weights_digest

    weights = weights_digest(folder)
    if not autoencoders:
        return weights
    digest = hashlib.sha256(weights.encode())
    for path in autoencoders:
        for file in sorted(one for one in (path, *path.rglob("*")) if one.is_file()):
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[: len(weights)]


def _model_info(
    name: str, digest: str, dtype: str, decoder: Decoder, autoencoders: Sequence[Autoencoder]
) -> ModelInfo:
    config = decoder.config
    return ModelInfo(
        name=name,
        digest=digest,
        family=config.family,
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_key_value_heads=config.n_key_value_heads,
        d_head=config.d_head,
        n_neurons=config.n_neurons,
        vocabulary_size=config.vocabulary_size,
        context_length=config.context_length,
        dtype=dtype,
        autoencoders=tuple(one.info for one in autoencoders),
    )


def _run(
    engine: Engine, batch: RunBatch, inbox: Inbox, connection: Connection
) -> TdbError | OutOfMemory | None:
    """Runs a batch and sends what comes out of it.

    Returns:
        What went wrong, or None.

    Raises:
        BrokenPipeError: the front is gone.
        DeviceLost: the device cannot be used any more.
    """
    calls = [call for call in batch.calls if not inbox.is_cancelled(call.call_id)]
    try:
        for call_id, event in engine.run(calls, inbox.is_cancelled):
            send_message(connection, CallProgress(call_id, event))
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
    error_id = uuid.uuid4().hex[:12]
    _log.error("internal error %s", error_id, exc_info=error)
    return Internal(error_id)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
