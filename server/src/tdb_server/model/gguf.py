"""GGUF files, llama.cpp's format: checked whole, dequantized to float32, written as a Hugging Face folder.

Nothing is written before all of the file is known to be understood. Each tensor is dequantized and written
before the next, so memory is needed for the largest of them alone.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import IO

from tdb_server.errors import ModelError
from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import decoder_config_from_hugging_face
from tdb_server.model.gguf_config import config_from_gguf
from tdb_server.model.gguf_file import GgufFile, read_gguf
from tdb_server.model.gguf_tokenizer import write_tokenizer
from tdb_server.model.gguf_weights import Target, checkpoint_targets, checkpoint_values
from tdb_server.model.model_files import CONFIG_FILE, SINGLE_FILE
from tdb_server.model.progress import Progress, no_progress


def convert_gguf(path: Path, folder: Path, progress: Progress = no_progress) -> None:
    """Writes `config.json`, `model.safetensors` (float32) and the tokenizer's files into an existing folder.

    Args:
        path: the GGUF file; the first part of a split one.
        folder: where to write.
        progress: told how far it is.

    Raises:
        ModelBroken: the file is damaged, or something in it is missing or contradicts the rest.
        ModelNotFound: a part of a split file is missing.
        UnsupportedModel: an architecture, tensor, option or tokenizer that is not known here.
        ModelError: the package `gguf` is not installed.
        OSError: the folder cannot be written, or there is not enough room for the weights.
    """
    progress("reading GGUF", 0.0)
    file = read_gguf(path)
    config = config_from_gguf(file)
    targets = checkpoint_targets(file, _decoder_config(path, config))
    write_tokenizer(path, file.metadata, folder)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")
    _refuse_full_disk(folder, 4 * sum(math.prod(target.shape) for target in targets))
    with (folder / SINGLE_FILE).open("wb") as output:
        _write_safetensors(output, file, targets, progress)


def _decoder_config(path: Path, config: dict[str, object]) -> DecoderConfig:
    """What loading will make of the configuration; what it would refuse then is refused now."""
    try:
        return decoder_config_from_hugging_face(config)
    except ModelError as error:
        raise type(error)(f"{path}: {error.message}") from error


def _refuse_full_disk(folder: Path, n_bytes: int) -> None:
    """Says at once what would be found out after gigabytes."""
    n_free = shutil.disk_usage(folder).free
    if n_free < n_bytes:
        needed = f"{os.strerror(errno.ENOSPC)}: the weights take {n_bytes} bytes, {n_free} are free"
        raise OSError(errno.ENOSPC, needed)


def _write_safetensors(output: IO[bytes], file: GgufFile, targets: list[Target], progress: Progress) -> None:
    """Writes the header, for which the shapes suffice, and then one tensor after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for target in targets:
        start, end = end, end + 4 * math.prod(target.shape)
        header[target.name] = {"dtype": "F32", "shape": target.stored_shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for aligned data
    output.write(len(encoded).to_bytes(8, "little") + encoded)
    written = 0
    for target in targets:
        values = checkpoint_values(file, target)
        output.write(values.data)
        written += values.nbytes
        progress("dequantizing", written / end)
