"""The limits that are promised, and whether this run kept them. On a CPU: 2 threads, float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.latency import Row
from benchmarks.sharing import Sharing
from benchmarks.transport import Transport

GB = 1e9
RATIOS = (
    ("plain", 16, 2.2),
    ("plain", 64, 1.4),
    ("plain", 256, 1.1),
    ("ablated", 64, 1.4),
    ("neuron", 64, 1.4),
    ("latents", 64, 4.0),
)
MEMORY_GB = ((256, 1.0), (1_000, 6.0))
TOKENIZE_MS = 2.0
STREAM_MB_PER_SECOND = 300.0
GROWTH = 1.1
"""How much the ratio to the floor may grow from one length to the next: not at all, but for noise.

The floor is then the one with attention written out. The service's must be, since its probabilities are asked
for; so it grows with the square of the length, which is allowed for.
"""


@dataclass(frozen=True)
class Limit:
    """One promise.

    Attributes:
        what: is promised, with its unit.
        bound: `≤ 1.4` or `≥ 300`.
        measured: in the same unit; None where it was not measured, or failed.
        is_kept: None where it was not measured.
    """

    model: str
    what: str
    bound: str
    measured: float | None
    is_kept: bool | None


def limits(rows: Sequence[Row], transports: Sequence[Transport], sharings: Sequence[Sharing]) -> list[Limit]:
    """Every promise about what was measured."""
    on_cpu = [row for row in rows if row.precision == "float32"]
    models = list(dict.fromkeys(row.model for row in on_cpu))
    found = [limit for model in models for limit in _of_rows(model, [r for r in on_cpu if r.model == model])]
    for one in transports:
        found.append(_at_most(one.model, "`Tokenize` round trip, ms", TOKENIZE_MS, one.tokenize_p50 * 1e3))
        speed = one.bytes_per_second / 1e6
        is_kept = speed >= STREAM_MB_PER_SECOND
        found.append(
            Limit(one.model, "10 MiB tensor streamed, MB/s", f"≥ {STREAM_MB_PER_SECOND:g}", speed, is_kept)
        )
    for sharing in sharings:
        # A worker that copied the weights has them in its private memory, and more beside them.
        what = "private memory of one of two workers, over the weights"
        found.append(_at_most(sharing.model, what, 1.0, sharing.private_bytes / sharing.weight_bytes))
    return found


def _of_rows(model: str, rows: Sequence[Row]) -> Iterator[Limit]:
    by_key = {(row.case, row.n_tokens): row for row in rows}
    for case, n_tokens, bound in RATIOS:
        row = by_key.get((case, n_tokens))
        if row is not None:
            floor = "floor of a batch of two" if case == "ablated" else "floor"
            yield _at_most(model, f"{row.title}, {n_tokens} tokens, × {floor}", bound, worst_ratio(row))
    for n_tokens, bound in MEMORY_GB:
        row = by_key.get(("plain", n_tokens))
        if row is not None:
            n_gb = None if row.memory_bytes is None else row.memory_bytes / GB
            yield _at_most(model, f"memory above weights, plain, {n_tokens} tokens, GB", bound, n_gb)
    plain = sorted((row for row in rows if row.case == "plain"), key=lambda row: row.n_tokens)
    for shorter, longer in pairwise(plain):
        before, after = _ratio_to_eager(shorter), _ratio_to_eager(longer)
        growth = None if before is None or after is None else after / before
        lengths = f"from {shorter.n_tokens} to {longer.n_tokens} tokens"
        what = f"plain, growth of the ratio to the floor with eager attention {lengths}"
        yield _at_most(model, what, GROWTH, growth)


def worst_ratio(row: Row) -> float | None:
    """The larger ratio to the floor, of the streamed and the unary call."""
    return max((one for one in (row.stream_ratio, row.debug_ratio) if one is not None), default=None)


def _ratio_to_eager(row: Row) -> float | None:
    """The same to the floor with attention written out."""
    ratio = worst_ratio(row)
    if ratio is None or row.floor_p50 is None or row.floor_eager_p50 is None:
        return None
    return ratio * row.floor_p50 / row.floor_eager_p50


def _at_most(model: str, what: str, bound: float, measured: float | None) -> Limit:
    is_kept = None if measured is None else measured <= bound
    return Limit(model, what, f"≤ {bound:g}", measured, is_kept)
