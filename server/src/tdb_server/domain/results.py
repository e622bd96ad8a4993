"""What is answered, in plain data: numpy arrays and tuples that cross process borders as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgesResult
from tdb_server.domain.node import Dimension, Nodes

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class LabelledArray:
    """A contiguous array and what its axes run over."""

    array: FloatArray
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class GroupResult:
    """One group's value at every node [n_nodes], and the sum of each of its derived scalars."""

    activations: FloatArray
    sums: dict[DerivedScalar, LabelledArray]


@dataclass(frozen=True, slots=True)
class MultipleTopKResult:
    """The union of the groups' top nodes, every group's value at each, and the sums."""

    nodes: Nodes
    groups: dict[GroupId, GroupResult]


@dataclass(frozen=True, slots=True)
class TopTokens:
    """Vocabulary tokens ranked for each of n nodes: arrays [n, n_tokens], largest (smallest) first.

    `normalized` arrays are the scalars over the larger of the two leading magnitudes.
    """

    top_ids: IntArray
    top_scalars: FloatArray
    top_normalized: FloatArray
    bottom_ids: IntArray
    bottom_scalars: FloatArray
    bottom_normalized: FloatArray


@dataclass(frozen=True, slots=True)
class ScoredTokensResult:
    """Token lists for some of the nodes: `rows[i]` is node i's row in `tokens`, or -1 for none."""

    nodes: Nodes
    rows: IntArray
    tokens: TopTokens


@dataclass(frozen=True, slots=True)
class TokenPairAttributionResult:
    """Attended-to tokens of attention latents: row i of the arrays for node i where `rows[i] >= 0`."""

    nodes: Nodes
    rows: IntArray
    token_indices: IntArray
    attributions: FloatArray


@dataclass(frozen=True, slots=True)
class DerivedScalarsResult:
    """One component at every token [T]; `top_tokens` has one row."""

    nodes: Nodes
    activations: FloatArray
    normalized_activations: FloatArray | None = None
    top_tokens: TopTokens | None = None


@dataclass(frozen=True, slots=True)
class AttentionTotals:
    """Per token [T]: sums and maxima over attended-to tokens ("in") or attending tokens ("out")."""

    total: FloatArray
    normalized_total: FloatArray
    maximum: FloatArray
    normalized_maximum: FloatArray


@dataclass(frozen=True, slots=True)
class DerivedAttentionScalarsResult:
    """One head at every token pair [q, k], lower triangle, with its totals per token."""

    scalars: FloatArray
    normalized_scalars: FloatArray
    totals_in: AttentionTotals
    totals_out: AttentionTotals


@dataclass(frozen=True, slots=True)
class ComponentTotalsResult:
    """Each derived scalar's total for every component: by layer, and of heads by head."""

    totals: dict[DerivedScalar, LabelledArray]


@dataclass(frozen=True, slots=True)
class LensResult:
    """Logits of the embedding and of each layer.

    Attributes:
        layers: behind the embedding.
        token_indices: the prompt's tokens.
        vocabulary_tokens: those chosen.
        logits: of these [1 + L, n_tokens, n_chosen].
        top_ids: the likeliest tokens [(1 + L) * n_tokens, n], best first.
        top_logits: theirs.
    """

    layers: tuple[int, ...]
    token_indices: tuple[int, ...]
    vocabulary_tokens: tuple[int, ...]
    logits: FloatArray
    top_ids: IntArray
    top_logits: FloatArray


@dataclass(frozen=True, slots=True)
class ActivationsResult:
    """A place's values or gradients by layer, at some tokens."""

    layers: tuple[tuple[int | None, LabelledArray], ...]
    token_indices: tuple[int, ...]


ProcessingResult = (
    MultipleTopKResult
    | ScoredTokensResult
    | TokenPairAttributionResult
    | DerivedScalarsResult
    | DerivedAttentionScalarsResult
    | EdgesResult
    | ComponentTotalsResult
    | LensResult
    | ActivationsResult
)


@dataclass(frozen=True, slots=True)
class NamedResult:
    """A finished result of one sub-request."""

    sub_request_index: int
    name: str
    result: ProcessingResult


LEAST_DIFFERENCE = 1e-6
"""Between the objectives of prompt and baseline, for what is kept of it to mean anything."""


@dataclass(frozen=True, slots=True)
class CircuitValues:
    """The objective with a circuit alone, with nothing set, and of the baseline."""

    objective: float
    of_prompt: float
    of_baseline: float

    @property
    def faithfulness(self) -> float | None:
        """How much of the objective is kept; None where prompt and baseline do not differ."""
        difference = self.of_prompt - self.of_baseline
        return (
            None if abs(difference) < LEAST_DIFFERENCE else (self.objective - self.of_baseline) / difference
        )


@dataclass(frozen=True, slots=True)
class ObjectiveValues:
    """The loss, where one was computed, and the traced objective's value, where one was traced."""

    sub_request_index: int
    loss: float | None
    activation_value: float | None
    circuit: CircuitValues | None = None


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Where a call's time went."""

    queue: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    derive: float = 0.0
    score: float = 0.0
    serialize: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a call's results.

    Attributes:
        seconds: where the time went.
        peak_memory_bytes: 0 when not known.
        n_events: of the call, that the worker has sent before this one; None where nobody has counted.
    """

    seconds: StageSeconds = field(default_factory=StageSeconds)
    peak_memory_bytes: int = 0
    n_events: int | None = None


CallEvent = NamedResult | ObjectiveValues | Finished
