"""Requests put to an engine in this process, and its answers as numbers by node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.requests import (
    AblationSpec,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ProcessingSpec,
    Trace,
)
from tdb_server.domain.results import (
    Finished,
    MultipleTopKResult,
    NamedResult,
    ObjectiveValues,
    ProcessingResult,
)
from tdb_server.engine.engine import Engine
from torch import Tensor

from tests.property.small_models import VOCABULARY_SIZE

EVERY_NODE = 1_000_000


def examples(n: int) -> settings:
    """So many examples, the same in every run, however long each takes.

    A failing one is shown as it is: to shrink it would take minutes, and all are small.
    """
    return settings(max_examples=n, derandomize=True, deadline=None, phases=[Phase.generate])


def prompts(min_size: int = 3, max_size: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    token = st.integers(0, VOCABULARY_SIZE - 1)
    return st.lists(token, min_size=min_size, max_size=max_size).map(tuple)


@st.composite
def losses(draw: st.DrawFn) -> LossConfig:
    """Any loss but `zero`, over distinct tokens."""
    name = draw(st.sampled_from([LossName.LOGIT_DIFF, LossName.LOGIT_MINUS_MEAN, LossName.PROBS]))
    tokens = draw(st.lists(st.integers(0, VOCABULARY_SIZE - 1), min_size=4, max_size=4, unique=True))
    n_targets = draw(st.integers(1, 2))
    n_distractors = draw(st.integers(0, 2)) if name is LossName.LOGIT_DIFF else 0
    return LossConfig(name, tuple(tokens[:n_targets]), tuple(tokens[2 : 2 + n_distractors]))


def inference(
    token_ids: tuple[int, ...],
    loss: LossConfig | None = None,
    trace: Trace | None = None,
    ablations: Sequence[AblationSpec] = (),
) -> InferenceSpec:
    """How TDB runs a prompt: the final norm's scale is held constant."""
    return InferenceSpec(token_ids, loss, trace, (*ablations, HOLD_FINAL_NORM_SCALE))


def every_node(*scalars: DerivedScalar) -> MultipleTopKSpec:
    """All nodes that do not score zero."""
    return MultipleTopKSpec(((GroupId.SINGLETON, scalars),), EVERY_NODE)


@dataclass
class Answer:
    """All that one sub-request was answered."""

    loss: float | None = None
    activation_value: float | None = None
    results: dict[str, ProcessingResult] = field(default_factory=dict)

    def top_k(self, name: str) -> MultipleTopKResult:
        result = self.results[name]
        assert isinstance(result, MultipleTopKResult)
        return result


def answers_of_calls(engine: Engine, calls: Sequence[Sequence[InferenceSubRequest]]) -> list[list[Answer]]:
    """Runs several calls as one batch."""
    found = [[Answer() for _ in call] for call in calls]
    batch = [Call(str(index), tuple(call)) for index, call in enumerate(calls)]
    finished = set()
    for call_id, event in engine.run(batch, lambda _: False):
        of_call = found[int(call_id)]
        match event:
            case NamedResult():
                of_call[event.sub_request_index].results[event.name] = event.result
            case ObjectiveValues():
                of_call[event.sub_request_index].loss = event.loss
                of_call[event.sub_request_index].activation_value = event.activation_value
            case Finished():
                finished.add(call_id)
    assert len(finished) == len(calls)
    return found


def answer(engine: Engine, run: InferenceSpec, **processing: ProcessingSpec) -> Answer:
    """Runs one sub-request on its own."""
    return answers_of_calls(engine, [[InferenceSubRequest(run, processing)]])[0][0]


def of_every_node(sub_request: InferenceSubRequest) -> InferenceSubRequest:
    """The sub-request with every ranking asking for all nodes, so that rounding cannot leave any out."""
    processing = {
        name: replace(spec, top_and_bottom_k=EVERY_NODE) if isinstance(spec, MultipleTopKSpec) else spec
        for name, spec in sub_request.processing.items()
    }
    return replace(sub_request, processing=processing)


def numbers_by_node(result: MultipleTopKResult, group: GroupId = GroupId.SINGLETON) -> dict[NodeIndex, float]:
    return dict(zip(result.nodes, result.groups[group].activations.tolist(), strict=True))


def numbers_of_layer(
    result: MultipleTopKResult,
    layer_index: int | None,
    shape: Sequence[int],
    group: GroupId = GroupId.SINGLETON,
) -> Tensor:
    """A layer's numbers as the tensor they are entries of: zero for nodes that were not chosen."""
    numbers = torch.zeros(*shape, dtype=torch.float64)
    for node, number in numbers_by_node(result, group).items():
        if node.layer_index == layer_index:
            numbers[node.tensor_indices] = number
    return numbers
