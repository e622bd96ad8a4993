"""What crosses the border between the front process and a worker process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from tdb_server.domain.call import Call
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.results import CallEvent
from tdb_server.errors import TdbError
from tdb_server.workers import node_messages  # noqa: F401 - says how nodes are sent


@dataclass(frozen=True, slots=True)
class Configuration:
    """First message to a worker: what to load, and where.

    Attributes:
        model: a folder, a GGUF file or a hub name; None for the default model.
        autoencoders: folders, or names on the hub.
        device: "auto", "cpu", "cuda:0"...
        worker_index: which of the devices "auto" finds.
        dtype: type of the weights; "auto" for the one in which most of them are stored.
        n_threads: CPU threads to compute with.
        ranking: how vocabularies are ranked, "exact" or "int8"; None for the faster on the worker's machine.
        log_format: "text" or "json".
        log_level: of the least important lines to log, as `logging` numbers them.
        step_seconds: how long one step may take; a Ray replica that takes longer calls itself unhealthy.
        idle_memory_seconds: after so long without calls memory is given back; None for never.
        n_alike: workers on this machine that are configured with the same device, this one included.
    """

    model: str | None
    autoencoders: tuple[Path, ...]
    device: str
    worker_index: int
    dtype: str
    n_threads: int
    ranking: str | None = None
    log_format: str = "text"
    log_level: int = logging.INFO
    step_seconds: float = 120.0
    idle_memory_seconds: float | None = None
    n_alike: int = 1

    @property
    def model_name(self) -> str:
        """What to call the model before it is known."""
        return self.model or "the default model"


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Calls to run together, when the batches before it are done."""

    batch_id: int
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Nobody wants this call's results any more."""

    call_id: str


@dataclass(frozen=True, slots=True)
class LoadingProgress:
    """How far loading is: what is being done, and the fraction of it that is done."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded.

    Attributes:
        tokenizer_folder: where the model's tokenizer lies, on the worker's machine.
        info: the model.
        device: where it computes, as torch names it.
        room_bytes: what a batch may take beside the model, of what is free there.
        tokenizer_files: what lies there, by name; None where the front is on the same machine.
    """

    tokenizer_folder: Path
    info: ModelInfo
    device: str
    room_bytes: int
    tokenizer_files: dict[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class LoadingFailed:
    """The model cannot be loaded; the worker exits."""

    error: TdbError


@dataclass(frozen=True, slots=True)
class CallProgress:
    """Something is ready for a call."""

    call_id: str
    event: CallEvent


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The device has too little memory for the batch. The worker has freed what it held."""


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """The worker is free again.

    Attributes:
        batch_id: as in `RunBatch`.
        failure: why calls of the batch that are not finished never will be; None when all went well.
    """

    batch_id: int
    failure: TdbError | OutOfMemory | None


class Activity(Enum):
    """What a worker's main thread is at."""

    LOADING = auto()
    WAITING = auto()
    RUNNING = auto()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent once a second, whatever the main thread does.

    Attributes:
        activity: what the main thread is at.
        n_steps: steps that it has done so far; stays the same while it hangs.
    """

    activity: Activity
    n_steps: int


FromWorker = LoadingProgress | Ready | LoadingFailed | CallProgress | BatchEnded
