"""What is answered, in plain data with numpy arrays: the protos' results under the protos' names.

Arrays are read-only. `T` is the number of tokens of the prompt, `n` the number of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tdb_client.errors import IncompleteResponseError
from tdb_client.inference import AblationSpec, held_norm_scales
from tdb_client.nodes import Node

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class RankedTokens:
    """Vocabulary tokens with their scores, best first.

    Attributes:
        ids: vocabulary indices.
        tokens: the tokens as text.
        scores: the scores.
        normalized_scores: scores over the larger of the two leading magnitudes of top and bottom, -1 to 1.
    """

    ids: IntArray
    tokens: tuple[str, ...]
    scores: FloatArray
    normalized_scores: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class TopTokens:
    """The tokens at both ends of a ranking of the vocabulary; the bottom's smallest score is first."""

    top: RankedTokens
    bottom: RankedTokens


@dataclass(frozen=True, slots=True, eq=False)
class LabelledArray:
    """An array and the names of its axes, such as `sequence_tokens`."""

    array: FloatArray
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GroupResult:
    """One group's scalar of every node [n], and the sums of its derived scalars by name."""

    activations: FloatArray
    sums: Mapping[str, LabelledArray]


@dataclass(frozen=True, slots=True, eq=False)
class MultipleTopKResult:
    """The most important nodes, every group's value at each, and the sums; groups by name.

    `vocab_tokens` has the text of each node when they are logits, and is empty else.
    """

    nodes: tuple[Node, ...]
    groups: Mapping[str, GroupResult]
    vocab_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class DerivedScalarsResult:
    """One component's derived scalar at every token [T], also normalized where that was asked for."""

    nodes: tuple[Node, ...]
    activations: FloatArray
    normalized_activations: FloatArray | None = None
    top_tokens: TopTokens | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionTotals:
    """Per token [T]: sums and maxima over the tokens it attends to ("in") or that attend to it ("out")."""

    total: FloatArray
    normalized_total: FloatArray
    maximum: FloatArray
    normalized_maximum: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class DerivedAttentionScalarsResult:
    """One attention component's derived scalar for every token pair [T, T], attended-from token first."""

    tokens: tuple[str, ...]
    scalars: FloatArray
    normalized_scalars: FloatArray
    totals_in: AttentionTotals
    totals_out: AttentionTotals


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTokensResult:
    """Scored tokens per node; None where this scoring does not fit the node.

    The lists are read when one of them is first looked at, with a `ResponseError` if they are malformed.
    """

    nodes: tuple[Node, ...]
    top_tokens: Sequence[TopTokens | None]


@dataclass(frozen=True, slots=True, eq=False)
class AttendedToTokens:
    """Attended-to tokens of an attention latent, largest attribution first: positions and attributions."""

    token_indices: IntArray
    attributions: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class TokenPairAttributionResult:
    """Attended-to tokens per node; None for nodes that are no active attention latent."""

    nodes: tuple[Node, ...]
    attended_to: tuple[AttendedToTokens | None, ...]


@dataclass(frozen=True, slots=True)
class EdgeWriter:
    """Where edges start: `embedding`, `head` or `mlp`. Without a layer or a head that is None."""

    type: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """As `L9 head 6`."""
        return _component(self.type, self.layer, self.head)


@dataclass(frozen=True, slots=True)
class EdgeReader:
    """Where edges lead: `head_query`, `head_key`, `head_value`, `mlp` or `logits`.

    The logits have no layer. Keys and values have the index of a key/value head, which heads may share.
    """

    type: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """As `L9 head 6 query`, or `L9 key head 2`, as several heads may share that."""
        if self.type in ("head_key", "head_value"):
            return f"L{self.layer} {self.type.removeprefix('head_')} head {self.head}"
        return f"{self.component} query" if self.type == "head_query" else self.component

    @property
    def component(self) -> str:
        """As `L9 head 6`; of a key or a value, where each head has its own."""
        return _component(self.type, self.layer, self.head)


def _component(kind: str, layer: int | None, head: int | None) -> str:
    if layer is None:
        return kind
    return f"L{layer} MLP" if head is None else f"L{layer} head {head}"


@dataclass(frozen=True, slots=True, eq=False)
class EdgesResult:
    """Edges between components.

    Attributes:
        writers: all of them, in the order in which they write.
        readers: all of them.
        writers_before: of each reader, how many writers come before it: the first so many.
        edge_writers: of each listed edge, which writer it starts from [k]; largest absolute score first.
        edge_readers: which reader it leads to [k].
        edge_scores: its score, in units of the objective [k].
        scores: of all pairs [writers, readers], 0 where the writer does not come first; where asked for.
    """

    writers: tuple[EdgeWriter, ...]
    readers: tuple[EdgeReader, ...]
    writers_before: tuple[int, ...]
    edge_writers: IntArray
    edge_readers: IntArray
    edge_scores: FloatArray
    scores: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ComponentTotalsResult:
    """Derived scalars by name, summed over all tokens: [layers, heads], [layers], or of the embedding [].

    By token they are [layers, tokens, heads], [layers, tokens] and [tokens].
    """

    totals: Mapping[str, LabelledArray]


@dataclass(frozen=True, slots=True, eq=False)
class LensTokens:
    """The likeliest tokens of one layer at one token, best first."""

    ids: IntArray
    tokens: tuple[str, ...]
    logits: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class LensResult:
    """What the embedding (row 0) and each of `layers` (row i + 1) would predict.

    Attributes:
        layers: the layers.
        at: the prompt's tokens.
        tokens: the vocabulary tokens whose logits were asked for, as text.
        token_ids: their vocabulary indices.
        logits: of these [1 + layers, at, tokens]; None where none were asked for.
        top_tokens: by row and token of the prompt; empty when not asked for.
    """

    layers: tuple[int, ...]
    at: tuple[int, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    logits: FloatArray | None
    top_tokens: tuple[tuple[LensTokens, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ActivationsResult:
    """A place's values, by layer (None where it has no layers). The first axis is that of the tokens `at`."""

    layers: Mapping[int | None, LabelledArray]
    at: tuple[int, ...]


ProcessingResult = (
    MultipleTopKResult
    | DerivedScalarsResult
    | DerivedAttentionScalarsResult
    | ScoredTokensResult
    | TokenPairAttributionResult
    | EdgesResult
    | ComponentTotalsResult
    | LensResult
    | ActivationsResult
)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Which call it was and what answered it; `request_id` also stands in the server's logs."""

    request_id: str
    model_name: str
    model_digest: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a call went, in seconds."""

    queue_seconds: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    derive_seconds: float = 0.0
    score_seconds: float = 0.0
    serialize_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EstimatedCost:
    """What a call would cost: activations and gradients held at once, and the whole response.

    `seconds` is about how long it would keep a worker busy; None while the server has measured nothing.
    """

    activation_bytes: int
    response_bytes: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt's tokens, as vocabulary indices and as text.

    Attributes:
        token_ids: vocabulary indices.
        tokens: the tokens as text.
        bos_added: whether the first is the beginning-of-text token and was put in front of the text.
        prompt_adds_bos: of Client.tokenize, whether the text has that token in front of it as a prompt that
            does not say `add_bos`; then each token of the prompt is one further.
        special: of Client.tokenize, which tokens are marks, such as of a turn in a chat, and no text.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    bos_added: bool = False
    prompt_adds_bos: bool = False
    special: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LossTokens:
    """The tokens of a loss: those asked for as text, then those asked for by vocabulary index.

    Attributes:
        target_ids: vocabulary indices of the targets.
        targets: the targets as text.
        distractor_ids: vocabulary indices of the distractors.
        distractors: the distractors as text.
    """

    target_ids: tuple[int, ...]
    targets: tuple[str, ...]
    distractor_ids: tuple[int, ...] = ()
    distractors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CircuitValues:
    """How much of the objective is left where nodes other than a circuit's are set.

    Attributes:
        objective: with the circuit alone.
        of_prompt: of the prompt with nothing set.
        of_baseline: of the baseline prompts, their mean; without any, with all nodes of the named types at 0.
        faithfulness: `(objective - of_baseline) / (of_prompt - of_baseline)`: 1 where the circuit does all
            that the model does, 0 where it does nothing. None where the two are the same.
    """

    objective: float
    of_prompt: float
    of_baseline: float
    faithfulness: float | None


@dataclass(frozen=True, slots=True, eq=False)
class InferenceResult:
    """Everything about one sub-request.

    Attributes:
        call: which call, which model.
        prompt: the prompt's tokens.
        loss: the loss; None when none was computed.
        traced_value: the traced objective (`activation_value_for_backward_pass`); None without a trace.
        results: the results by name.
        timings: where the time of the whole call went.
        peak_memory_bytes: the most memory in use on the worker's device; 0 when not known.
        cached: whether the results come from the server's cache.
        loss_tokens: the loss's targets and distractors; None without a loss, or from an older server.
        ablations: what was set in the run: nodes as the cells they stand for, and gradients.
        backward_rule: how gradients went back through what is not linear: `gradient`, `relp`, ...
        baselines: the tokens of the prompts that it was compared with; scalars are then of differences.
        circuit: how much of the objective the nodes of `only_these` keep; None where that was not asked.
    """

    call: CallInfo
    prompt: PromptTokens
    loss: float | None
    traced_value: float | None
    results: Mapping[str, ProcessingResult]
    timings: Timings
    peak_memory_bytes: int = 0
    cached: bool = False
    loss_tokens: LossTokens | None = None
    ablations: tuple[AblationSpec, ...] = ()
    backward_rule: str = "gradient"
    baselines: tuple[PromptTokens, ...] = ()
    circuit: CircuitValues | None = None

    @property
    def held_norm_scales(self) -> tuple[str, ...]:
        """The norms whose scales were held constant on the way back: none, unless `ablate` asks for it.

        That of the norm through which a traced node reads always is, and is not listed. With another
        backward rule than `gradient` all are.
        """
        return held_norm_scales(self.ablations)


Result = TypeVar("Result", bound=ProcessingResult)


def named_result(answer: InferenceResult, name: str, kind: type[Result]) -> Result:
    """One of an answer's results.

    Raises:
        IncompleteResponseError: it is missing, or of another kind.
    """
    found = answer.results.get(name)
    if not isinstance(found, kind):
        raise IncompleteResponseError(f"the answer has no result {name!r}")
    return found
