"""The model as the front knows it: what a worker said it is, and its tokenizer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.errors import Unavailable
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.workers.messages import Ready


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests are checked against and answers are spelled with."""

    info: ModelInfo
    tokenizer: Tokenizer
    limits: Limits


def read_tokenizer(ready: Ready) -> Tokenizer:
    """The tokenizer of a worker that is ready.

    Raises:
        ModelBroken: its files are missing or broken.
    """
    if ready.tokenizer_files is None:
        return Tokenizer(ready.tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ready.tokenizer_files.items():
            (Path(folder) / name).write_bytes(content)
        return Tokenizer(Path(folder))


class ModelSlot:
    """Where the services find the model, once a worker has loaded it."""

    def __init__(self) -> None:
        self._model: ServedModel | None = None

    @property
    def is_filled(self) -> bool:
        """Whether calls can be answered."""
        return self._model is not None

    def fill(self, model: ServedModel) -> None:
        """From here on calls can be answered."""
        self._model = model

    def model(self) -> ServedModel:
        """The model.

        Raises:
            Unavailable: it is still loading.
        """
        if self._model is None:
            raise Unavailable("the model is still loading", "NO_WORKER_READY", retry_after_seconds=1.0)
        return self._model
