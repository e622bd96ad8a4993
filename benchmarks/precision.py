"""How far answers in bfloat16 and TensorFloat-32 are from those in float32; for GPUs.

Which nodes are at the top may differ between precisions, so what is compared does not depend on that: the
loss, and the sums over nodes that a debug request gives for every token and pair of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tdb_client import Event, ModelInfo, MultipleTopKResult, ResultReady, Values

from benchmarks.caller import Caller
from benchmarks.cases import Case
from benchmarks.prompts import Words

SUMS = "componentSumsForTokenDisplay"
N_PROMPTS = 4
N_TOKENS = 64
SEED = 77


@dataclass(frozen=True)
class Precision:
    """A way to compute in float32 or less.

    Attributes:
        name: for the tables.
        dtype: as `--dtype` takes it.
        environment: what the server's process needs to be told beside its flags.
    """

    name: str
    dtype: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def tf32(self) -> bool:
        """Whether products of float32 matrices may be rounded to TensorFloat-32."""
        return bool(self.environment)


FLOAT32 = Precision("float32", "float32")
GPU_PRECISIONS = (
    FLOAT32,
    Precision("tf32", "float32", {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}),
    Precision("bfloat16", "bfloat16"),
)


@dataclass(frozen=True)
class Answers:
    """What is compared: the losses [prompts], and every sum, by the prompt's, group's and scalar's name."""

    losses: npt.NDArray[np.float64]
    sums: Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class PrecisionError:
    """How far off a precision is.

    Attributes:
        loss: largest difference of a loss, in logits.
        median_sum: over all sums, the median of the largest difference over the largest magnitude.
        worst_sum: the same, of the sum that is furthest off.
    """

    model: str
    precision: str
    loss: float
    median_sum: float
    worst_sum: float


def answers(caller: Caller, case: Case, info: ModelInfo, words: Words) -> Answers:
    """Answers to the same few prompts every time, where `words` were made with `SEED`."""
    losses: list[float] = []
    sums: dict[str, npt.NDArray[np.float64]] = {}
    for index in range(N_PROMPTS):
        call = caller.stream_debug(case.sub_requests(words.prompt(N_TOKENS), info, words))
        losses += [one.loss or 0.0 for one in call.events if isinstance(one, Values)]
        sums |= {f"{index} {name}": array for name, array in _sums(call.events).items()}
    return Answers(np.array(losses), sums)


def _sums(events: Sequence[Event]) -> dict[str, npt.NDArray[np.float64]]:
    found = [one.result for one in events if isinstance(one, ResultReady) and one.name == SUMS]
    return {
        f"{group} {scalar}": np.asarray(labelled.array, dtype=np.float64)
        for result in found
        if isinstance(result, MultipleTopKResult)
        for group, one in result.groups.items()
        for scalar, labelled in one.sums.items()
    }


def precision_error(model: str, precision: str, found: Answers, exact: Answers) -> PrecisionError:
    """Compares answers to the same prompts."""
    relative = [
        float(np.abs(found.sums[name] - array).max() / max(np.abs(array).max(), 1e-30))
        for name, array in exact.sums.items()
    ]
    loss = float(np.abs(found.losses - exact.losses).max())
    return PrecisionError(model, precision, loss, float(np.median(relative)), max(relative))
