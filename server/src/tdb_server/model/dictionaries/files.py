"""What files of every format have in common: tensors are read, or refused by name; settings are checked."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tdb_server.errors import AutoencoderBroken
from tdb_server.model.dictionaries.digest import add_tensor
from tdb_server.model.regular_file import refuse_unreadable

if TYPE_CHECKING:
    from hashlib import _Hash

NORMALIZE = "normalize_activations"
NORM_SCALING_FACTOR = "norm_scaling_factor"
"""Settings of `config.json` and `cfg.json`, under the names that SAELens has for them."""


_MAX_BIAS_BY_SCALE = 2.0**12
"""At which a gate, kept as a threshold on magnitudes in float32, is off by some 2e-4."""

_CHUNK_BYTES = 2**20


def read_safetensors(path: Path) -> dict[str, Any]:
    """All tensors of a file, in memory of their own: what the library maps changes with the file.

    Raises:
        AutoencoderBroken: it is missing or damaged.
    """
    refuse_unreadable(path, kind=AutoencoderBroken)
    try:
        return {name: one.clone() for name, one in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise AutoencoderBroken(f"{path}: not a safetensors file: {error}") from error


def read_state_dict(path: Path) -> dict[str, Any]:
    """A pickled file, of which nothing but numbers, texts and containers is ever read.

    Raises:
        AutoencoderBroken: it is missing, damaged, packed or something else.
    """
    refuse_unreadable(path, kind=AutoencoderBroken)
    refuse_compression(path)
    _check_sums(path)
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # files of newer pickle protocols are none of our business
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise all sorts of errors
        raise AutoencoderBroken(f"{path}: not a state dict that can be read safely") from error
    if not isinstance(state, dict):
        raise AutoencoderBroken(f"{path}: not a state dict but a {type(state).__name__}")
    return state


def refuse_compression(path: Path) -> None:
    """Refuses an archive that holds more than it is long: neither torch nor Gemma Scope ever packs.

    What is packed may be a thousand times as large as the file.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise AutoencoderBroken(f"{path}: not an archive that can be read safely") from error
    if n_bytes > path.stat().st_size:
        raise AutoencoderBroken(
            f"{path}: holds {n_bytes} bytes, more than it is long; its kind is never packed"
        )


def _check_sums(path: Path) -> None:
    """Compares an archive's members with the checksums written beside them, which torch does not read.

    Torch writes 0 where it is told to write none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC:
                    with archive.open(member) as content:
                        while content.read(_CHUNK_BYTES):
                            pass
    except Exception as error:  # damaged files raise all sorts of errors
        raise AutoencoderBroken(f"{path}: damaged: {error}") from error


def pick_tensors(
    path: Path,
    state: Mapping[str, Any],
    names: Collection[str],
    digest: _Hash,
    unused: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of these names in float32, when there are no others.

    Args:
        path: the file, for people.
        state: all that is in it.
        names: what is wanted.
        digest: updated with them.
        unused: what may stand beside it and changes nothing.

    Raises:
        AutoencoderBroken: one is missing, is not of floating point numbers, is larger than what is stored of
            it, or there are more.
    """
    missing = [name for name in names if not isinstance(state.get(name), Tensor)]
    if missing:
        raise AutoencoderBroken(f"{path}: no tensor called {', '.join(missing)}")
    left_over = sorted(str(name) for name in state.keys() - set(names) - set(unused))
    if left_over:
        raise AutoencoderBroken(
            f"{path}: {', '.join(left_over)} would not be read, and may change the latents; dictionaries of "
            f"{', '.join(names)} are supported"
        )
    for name in names:
        if not state[name].is_floating_point() or state[name].element_size() < 2:
            raise AutoencoderBroken(f"{path}: {name} is stored as {state[name].dtype}, not as floating point")
        n_bytes, n_stored = state[name].nbytes, state[name].untyped_storage().nbytes()
        if n_bytes > n_stored:  # one number may stand for any shape, which nothing could hold
            raise AutoencoderBroken(
                f"{path}: {name} {list(state[name].shape)} has {n_bytes} bytes, but {n_stored} are stored"
            )
        add_tensor(digest, name, state[name])
    return {
        name: as_vector(state[name].float()) if _is_vector(name) else state[name].float() for name in names
    }


def _is_vector(name: str) -> bool:
    return not name.lower().startswith("w_") and "weight" not in name and "skip" not in name


def refuse_shapes(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses tensors that do not fit each other.

    Args:
        path: the file, for people.
        tensors: by name.
        shapes: that they must have, by name.

    Raises:
        AutoencoderBroken: telling all of them.
    """
    if any(tuple(tensors[name].shape) != shape for name, shape in shapes.items()):
        found = ", ".join(f"{name} {list(tensors[name].shape)}" for name in shapes)
        wanted = ", ".join(str(list(shape)) for shape in shapes.values())
        raise AutoencoderBroken(f"{path}: {found} do not belong together; they would have to be {wanted}")


def thresholds_of(path: Path, threshold: Tensor, n_latents: int) -> Tensor:
    """Saved thresholds [n] or one for all, as latents are compared with them [n]: a latent is never negative.

    Raises:
        AutoencoderBroken: there are neither one nor n.
    """
    if threshold.numel() not in (1, n_latents):
        raise AutoencoderBroken(f"{path}: {threshold.numel()} thresholds for {n_latents} latents")
    return threshold.float().flatten().clamp(min=0).expand(n_latents).clone()


def gate_and_magnitude(
    path: Path, encoder: Tensor, r_mag: Tensor, gate_bias: Tensor, mag_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """A gated autoencoder's encoder of magnitudes [n, s], and the thresholds [n] that its gates are.

    Args:
        path: the file, for people.
        encoder: of gates [n, s].
        r_mag: logarithms of what magnitudes are multiplied with [n].
        gate_bias, mag_bias: added to gates and magnitudes [n].

    Raises:
        AutoencoderBroken: a magnitude is so much smaller than its bias that rounding would decide on a gate.
    """
    scale = r_mag.exp()
    lost = mag_bias.abs() > _MAX_BIAS_BY_SCALE * scale
    if bool(lost.any()):
        latent = int(lost.nonzero()[0])
        raise AutoencoderBroken(
            f"{path}: latent {latent} has r_mag {float(r_mag[latent])}, too small beside its bias of "
            f"magnitudes {float(mag_bias[latent])} to tell when it is active"
        )
    return encoder * scale[:, None], thresholds_of(path, mag_bias - scale * gate_bias, len(scale))


def positive_count(path: Path, name: str, value: object) -> int:
    """A setting that must be a whole number above 0.

    Raises:
        AutoencoderBroken: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AutoencoderBroken(f"{path}: {name} must be a whole number above 0, not {value!r}")
    return value


def flag(path: Path, config: Mapping[str, object], name: str, default: bool) -> bool:
    """A setting that must be true or false.

    Raises:
        AutoencoderBroken: it is something else.
    """
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise AutoencoderBroken(f"{path}: {name} must be true or false, not {value!r}")
    return value


def refuse_unknown(path: Path, config: Mapping[str, object], known: Collection[str]) -> None:
    """Refuses settings that nobody reads: any may change the latents.

    Raises:
        AutoencoderBroken: naming them.
    """
    unread = sorted(config.keys() - set(known))
    if unread:
        raise AutoencoderBroken(
            f"{path}: {', '.join(unread)} may change the latents and are not known; {', '.join(known)} are"
        )


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
