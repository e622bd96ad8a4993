"""Rotary positions: queries and keys turn by an angle that grows with the token's place.

Su et al. 2021, "RoFormer". Channel i of the first half of a head is paired with channel i of the second half,
as Hugging Face's checkpoints of the Llama family are stored; where only the first channels turn, those count
as the head. Models stretched to longer contexts slow the rotation down: all channels alike ("linear", Chen et
al. 2023), the slow ones alone ("llama3", Dubey et al. 2024), or each by a number of its own ("longrope", Ding
et al. 2024, which has other numbers beyond a length; prompts are kept below it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import Rotary


def rotary_frequencies(rotary: Rotary, n_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the first tokens' angles, as `rotate` takes them: two tensors [T, n], float32.

    Raises:
        UnsupportedModel: the checkpoint scales its rotation in a way not known here.
        ModelBroken: a number that the scaling needs is missing or makes no sense.
    """
    places = torch.arange(n_tokens, dtype=torch.float32, device=device)
    angles = torch.outer(places, inverse_frequencies(rotary).to(device)).repeat(1, 2)  # [T, n]
    first, second = angles.sin().chunk(2, dim=1)
    factor = attention_factor(rotary)
    return angles.cos() * factor, torch.cat((-first, second), dim=1) * factor


def inverse_frequencies(rotary: Rotary) -> Tensor:
    """The angle, in radians, by which each pair of n channels turns from one token to the next: [n / 2].

    Raises:
        UnsupportedModel, ModelBroken: as `rotary_frequencies`.
    """
    frequencies = _scaled_frequencies(rotary)
    if not bool((frequencies.isfinite() & (frequencies > 0)).all()):
        raise ModelBroken("config.json: rotary positions turn by angles that are not finite or not above 0")
    return frequencies


def attention_factor(rotary: Rotary) -> float:
    """What "longrope" multiplies turned queries and keys with; 1 for all others.

    Raises:
        ModelBroken: it is no number above 0.
    """
    is_longrope = scaling_type(rotary.scaling) == "longrope"
    return _positive_number(rotary.scaling, "attention_factor") if is_longrope else 1.0


def _scaled_frequencies(rotary: Rotary) -> Tensor:
    exponents = torch.arange(0, rotary.n_channels, 2, dtype=torch.float32) / rotary.n_channels
    frequencies = 1.0 / rotary.theta**exponents
    scaling = rotary.scaling
    match scaling_type(scaling):
        case "default":
            return frequencies
        case "linear":
            return frequencies / _positive_number(scaling, "factor")
        case "llama3":
            return _slow_down_long_waves(frequencies, scaling)
        case "longrope":
            return frequencies / _divisors(scaling, len(frequencies))
        case other:
            raise UnsupportedModel(
                f"rotary positions scaled by {other!r} are not supported; default, linear, llama3 and "
                "longrope are"
            )


def scaling_type(scaling: Mapping[str, object]) -> str:
    """What a `rope_scaling` or `rope_parameters` block calls itself, under its new or its old key."""
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def rotate(x: Tensor, cosine: Tensor | float, sine: Tensor | None) -> Tensor:
    """Turns [B, heads, T, e] by tables [T, e], of which the sine is negative in its first half.

    Where the sine is narrower, the channels behind it are scaled alone; without a sine, all are.
    """
    turned = x * cosine
    if sine is None:
        return turned
    n_channels = sine.shape[-1]
    if n_channels == x.shape[-1]:
        return torch.addcmul(turned, x.roll(n_channels // 2, dims=-1), sine)
    first = x[..., :n_channels].roll(n_channels // 2, dims=-1)
    return torch.cat((torch.addcmul(turned[..., :n_channels], first, sine), turned[..., n_channels:]), dim=-1)


def write_rotated(
    x: Tensor, cosine: Tensor | float, sine: Tensor | None, into: Tensor, *, is_back: bool = False
) -> None:
    """Writes what `rotate` returns; or its gradient, which is turned back by the same tables."""
    torch.mul(x, cosine, out=into)
    if sine is not None:
        n_channels, sign = sine.shape[-1], -1 if is_back else 1
        half = n_channels // 2
        into[..., :half].addcmul_(x[..., half:n_channels], sine[:, :half], value=sign)
        into[..., half:n_channels].addcmul_(x[..., :half], sine[:, half:], value=sign)


def _slow_down_long_waves(frequencies: Tensor, scaling: Mapping[str, object]) -> Tensor:
    """Llama 3.1's scaling: waves that fit often into the old context stay, long ones slow down by `factor`.

    Between the two, how often the wave fits into the old context decides the mixture.
    """
    factor = _positive_number(scaling, "factor")
    low = _positive_number(scaling, "low_freq_factor")
    high = _positive_number(scaling, "high_freq_factor")
    if high <= low:
        raise ModelBroken(f"config.json: high_freq_factor {high} must be above low_freq_factor {low}")
    turns = _positive_number(scaling, "original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def _divisors(scaling: Mapping[str, object], n_pairs: int) -> Tensor:
    factors = scaling.get("short_factor")
    if not isinstance(factors, list) or len(factors) != n_pairs:
        raise ModelBroken(f"config.json: rotary scaling 'longrope' needs {n_pairs} numbers in short_factor")
    return torch.tensor(
        [_positive_number({**scaling, "short_factor": one}, "short_factor") for one in factors]
    )


def _positive_number(scaling: Mapping[str, object], key: str) -> float:
    value = scaling.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2.0**127:
        raise ModelBroken(
            f"config.json: rotary scaling {scaling_type(scaling)!r} needs a {key} above 0, got {value!r}"
        )
    return float(value)
