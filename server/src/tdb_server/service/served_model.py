"""The model as the front knows it: what a worker said it is, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.errors import Unavailable
from tdb_server.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests are checked against and answers are spelled with."""

    info: ModelInfo
    tokenizer: Tokenizer
    limits: Limits


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
