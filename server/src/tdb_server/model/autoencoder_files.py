"""What files of every kind of autoencoder have in common: tensors are read, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tdb_server.errors import AutoencoderBroken
from tdb_server.model.regular_file import refuse_unreadable

NORMALIZE = "normalize_activations"
NORM_SCALING_FACTOR = "norm_scaling_factor"
"""Settings of `config.json` and `cfg.json`, under the names that SAELens has for them."""


def read_safetensors(path: Path) -> dict[str, Any]:
    """All tensors of a file.

    Raises:
        AutoencoderBroken: it is missing or damaged.
    """
    refuse_unreadable(path, kind=AutoencoderBroken)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise AutoencoderBroken(f"{path}: not a safetensors file: {error}") from error


def pick_tensors(
    path: Path, state: Mapping[str, Any], names: Collection[str], unused: Collection[str] = ()
) -> list[Tensor]:
    """The tensors of these names, when there are no others.

    Args:
        path: the file, for people.
        state: all that is in it.
        names: what is wanted.
        unused: what may stand beside it and changes nothing.

    Raises:
        AutoencoderBroken: one is missing, is not of floating point numbers, or there are more.
    """
    missing = [name for name in names if not isinstance(state.get(name), Tensor)]
    if missing:
        raise AutoencoderBroken(f"{path}: no tensor called {', '.join(missing)}")
    left_over = sorted(str(name) for name in state.keys() - set(names) - set(unused))
    if left_over:
        raise AutoencoderBroken(
            f"{path}: {', '.join(left_over)} would not be read, and may change the latents; autoencoders of "
            f"{', '.join(names)} are supported"
        )
    found: list[Tensor] = [state[name] for name in names]
    for name, tensor in zip(names, found, strict=True):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise AutoencoderBroken(f"{path}: {name} is stored as {tensor.dtype}, not as floating point")
    return found


def input_scaling(path: Path, config: Mapping[str, object]) -> tuple[bool, float]:
    """How inputs are made ready for the encoder: whether each is layer normed, and a factor for all.

    Args:
        path: the file with the settings, for people.
        config: the settings.

    Raises:
        AutoencoderBroken: a setting is of a kind that is not supported, or is missing.
    """
    kind, factor = config.get(NORMALIZE), config.get(NORM_SCALING_FACTOR)
    if isinstance(kind, bool):  # as early versions of SAELens wrote it
        kind = "expected_average_only_in" if kind else "none"
    if kind == "expected_average_only_in":
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
            raise AutoencoderBroken(
                f"{path}: {NORMALIZE} {kind!r}: inputs are multiplied with a factor that is not told. "
                f'Give it there as "{NORM_SCALING_FACTOR}": NUMBER, or 1 where the weights have it in them'
            )
        return False, float(factor)
    if factor is not None:
        raise AutoencoderBroken(
            f"{path}: {NORM_SCALING_FACTOR} {factor!r} beside {NORMALIZE} {kind!r}; it belongs to "
            "'expected_average_only_in'"
        )
    if kind not in (None, "none", "layer_norm"):
        raise AutoencoderBroken(
            f"{path}: {NORMALIZE} {kind!r} is none of none, layer_norm and expected_average_only_in"
        )
    return kind == "layer_norm", 1.0


def refuse_other_sizes(
    path: Path, settings: Mapping[str, object], weights_path: Path, sizes: Mapping[str, int]
) -> None:
    """Refuses settings that say other sizes than the tensors have; absent ones say nothing.

    Args:
        path: the file with the settings, for people.
        settings: the settings.
        weights_path: the file with the tensors, for people.
        sizes: of the tensors, by the names of the settings.

    Raises:
        AutoencoderBroken: naming the setting.
    """
    for name, size in sizes.items():
        if settings.get(name) not in (None, size):
            raise AutoencoderBroken(f"{path}: {name} {settings[name]!r}, but {weights_path} has {size}")


def as_vector(tensor: Tensor) -> Tensor:
    """[n], also where it is stored as [1, n]."""
    return tensor[0] if tensor.dim() == 2 and len(tensor) == 1 else tensor
