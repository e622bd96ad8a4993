"""From a model's name to a decoder: found, converted where that is needed, and loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from tdb_server.errors import ModelError
from tdb_server.model.decoder import Decoder
from tdb_server.model.load_failures import load_failures
from tdb_server.model.progress import Progress
from tdb_server.model.sources import ModelFolder, resolve_model
from tdb_server.model.weights import load_decoder, read_decoder_config

_log = logging.getLogger(__name__)


def load_model(
    name: str | None,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
    shared_file: int | None = None,
    check: Callable[[Path], object] = read_decoder_config,
) -> tuple[ModelFolder, Decoder]:
    """Loads a model. What was converted, and is found damaged, is converted again.

    Args:
        name: as for `resolve_model`.
        device, dtype, progress, shared_file: as for `load_decoder`.
        check: as for `resolve_model`: what it refuses is refused before gigabytes are read.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def load(folder: ModelFolder) -> Decoder:
        with load_failures(folder.path):
            return load_decoder(folder.path, device, dtype, progress, shared_file, folder.weights_digest)

    folder = resolve_model(name, progress, check=check)
    try:
        return folder, load(folder)
    except ModelError as error:
        if folder.weights_digest is None:
            raise
        # It was sound when it was made, so whatever is wrong now has happened to it since.
        _log.warning("%s", error.message)
    folder = resolve_model(name, progress, is_in_doubt=True)
    return folder, load(folder)
