"""How a circuit is found: components are ranked by estimates, and a few are measured, grown, pruned, swapped.

A circuit is measured by running the prompt with everything else set to the baseline's. Many are measured in
one call, whose sub-requests share a batch. The search asks for such calls and makes none itself, so that
both clients run it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from tdb_client.circuit import MAX_CALLS, Circuit, CircuitStep, best_of_each_size
from tdb_client.circuit_nodes import CircuitNode
from tdb_client.errors import IncompleteResponseError, InvalidValueError
from tdb_client.inference import InferenceSubRequest, Loss, MultipleTopKSpec, Token
from tdb_client.model_info import ModelInfo
from tdb_client.results import InferenceResult, MultipleTopKResult

Found = TypeVar("Found")
RankBy = Literal["act_times_grad", "direct_effect"]
"""What components are ranked by at first, summed over tokens."""

_SCALARS: dict[RankBy, tuple[str, str]] = {
    "act_times_grad": ("act_times_grad", "act_times_grad"),
    "direct_effect": ("direction_write", "write_to_final_residual_grad"),
}
"""Of each, the group, and how the derived scalars end."""
_MOST_NODES = 1000
_FIRST_MLP = CircuitNode("whole_mlp", 0)
"""Makes of embeddings what later layers read, whatever the prompt: hardly a circuit does without it."""

Nodes = Sequence[CircuitNode]
Measuring = Generator[list[InferenceSubRequest], list[InferenceResult], Found]
Asked = Generator[list[InferenceSubRequest], list[InferenceResult], Circuit]


@dataclass(frozen=True, slots=True)
class CircuitQuestion:
    """What a circuit is to keep, and how it is searched for.

    Attributes:
        prompt: the prompt.
        target: tokens that count for the objective.
        distractor: tokens that count against it.
        baseline: prompts whose values all other nodes get; without any 0.
        add_bos: as in DebugSubRequest.
        faithfulness: share of the objective that it must keep.
        rank_by: what components are ranked by.
        max_calls: calls that may measure.

    Raises:
        InvalidValueError: one of them makes no sense.
    """

    prompt: str
    target: tuple[Token, ...]
    distractor: tuple[Token, ...] = ()
    baseline: tuple[str, ...] = ()
    add_bos: bool | None = None
    faithfulness: float = 0.85
    rank_by: RankBy = "act_times_grad"
    max_calls: int = MAX_CALLS

    def __post_init__(self) -> None:
        if not 0 < self.faithfulness <= 1:
            raise InvalidValueError("faithfulness", f"{self.faithfulness} is not above 0 and at most 1")
        if self.max_calls < 1:
            raise InvalidValueError("max_calls", f"{self.max_calls} calls measure nothing")
        if self.rank_by not in _SCALARS:
            raise InvalidValueError("rank_by", f"{self.rank_by!r} is none of {', '.join(_SCALARS)}")

    def run(self, nodes: tuple[CircuitNode, ...] | None = None) -> InferenceSubRequest:
        """The prompt's run, with these nodes alone where some are given."""
        loss = Loss("logit_diff", self.target, self.distractor)
        return InferenceSubRequest(
            self.prompt, loss, add_bos=self.add_bos, baseline=self.baseline, only_these=nodes
        )


class _OutOfCallsError(Exception):
    """No more may be measured."""


def find_circuit(question: CircuitQuestion, model: ModelInfo, n_per_call: int) -> Asked:
    """Asks for calls, is sent their results, and returns the circuit.

    Args:
        question: what is asked.
        model: whose components they are.
        n_per_call: circuits that are measured in one call.

    Raises:
        InvalidValueError: the baseline has the same objective as the prompt.
    """
    estimated = _estimates(question, model)
    answers = yield estimated
    ranking = _ranking(question, model, estimated, answers)
    search = _Search(question, [node for node, _ in ranking], n_per_call)
    with suppress(_OutOfCallsError):
        yield from search.run()
    return Circuit(
        question.prompt,
        question.target,
        question.distractor,
        question.baseline,
        question.add_bos,
        answers[0].call.model_name,
        answers[0].call.model_digest,
        question.faithfulness,
        len(ranking),
        best_of_each_size(list(search.measured.values())),
        tuple(ranking),
        len(search.measured),
    )


def _estimates(question: CircuitQuestion, model: ModelInfo) -> list[InferenceSubRequest]:
    """The prompt compared with its baselines, and each baseline compared with the prompt."""
    group, ending = _SCALARS[question.rank_by]
    scalars = [f"whole_head_{ending}", f"whole_mlp_{ending}"]
    wanted = {
        "strongest": MultipleTopKSpec({group: scalars}, min(_MOST_NODES, model.limits.max_top_and_bottom_k))
    }
    runs = [question.run(), *(_exchanged(question, one) for one in question.baseline)]
    return [replace(one, results=wanted) for one in runs[: model.limits.max_sub_requests]]


def _exchanged(question: CircuitQuestion, baseline: str) -> InferenceSubRequest:
    return replace(question, prompt=baseline, baseline=(question.prompt,)).run()


def _ranking(
    question: CircuitQuestion,
    model: ModelInfo,
    asked: Sequence[InferenceSubRequest],
    answers: Sequence[InferenceResult],
) -> list[tuple[CircuitNode, float]]:
    """All components by what they are estimated to do for the objective, the largest first.

    A first-order estimate at the prompt alone misses what saturates there, and at the baseline alone what is
    saturated here: the mean of both comes nearer to what the way between them amounts to.
    """
    estimates = {
        node: 0.0
        for layer in range(model.n_layers)
        for node in (
            *(CircuitNode("whole_head", layer, index) for index in range(model.n_heads)),
            CircuitNode("whole_mlp", layer),
        )
    }
    n_exchanged = len(asked) - 1
    for place, answer in enumerate(answers):
        share = 1.0 if not n_exchanged else 0.5 if place == 0 else -0.5 / n_exchanged
        strongest = answer.results.get("strongest")
        if not isinstance(strongest, MultipleTopKResult):
            raise IncompleteResponseError("the answer has no ranking of components")
        values = strongest.groups[_SCALARS[question.rank_by][0]].activations
        for node, value in zip(strongest.nodes, values, strict=True):
            estimates[replace(CircuitNode.of(node), token=None)] += share * float(value)
    return sorted(estimates.items(), key=lambda one: -one[1])


class _Search:
    """What was measured so far, and what to measure next."""

    def __init__(self, question: CircuitQuestion, order: Nodes, n_per_call: int) -> None:
        self._question = question
        self._order = order
        self._n_per_call = n_per_call
        self._n_calls = 0
        self._gains: dict[CircuitNode, float] = {}
        self.measured: dict[frozenset[CircuitNode], CircuitStep] = {}

    def run(self) -> Measuring[None]:
        """Finds a small circuit that is faithful enough, as far as the calls go."""
        prefixes = [
            order[:size]
            for order in (self._order, [_FIRST_MLP, *(one for one in self._order if one != _FIRST_MLP)])
            for size in _sizes(len(self._order))
        ]
        best = self._smallest((yield from self._measure(prefixes)))
        costs = yield from self._costs(best)
        by_cost = sorted(best.nodes, key=lambda one: -costs[one])
        prefixes = [by_cost[:size] for size in range(1, len(by_cost))]
        ranked = yield from self._measure(prefixes[-self._n_per_call :])
        half = self._question.faithfulness / 2
        core = next((one for one in ranked if one.faithfulness >= half), self._smallest([*ranked, best]))
        grown = yield from self._grow(core)
        yield from self._prune(self._smallest([*ranked, best, grown]))

    def _grow(self, circuit: CircuitStep) -> Measuring[CircuitStep]:
        """Takes in the best of the next components until it is faithful enough or none helps."""
        while not self._is_enough(circuit):
            best = yield from self._best_with_one_more(circuit)
            if best is None or best.faithfulness <= circuit.faithfulness:
                break
            circuit = best
        return circuit

    def _prune(self, circuit: CircuitStep) -> Measuring[None]:
        """Takes out what can go; then exchanges one or two for a better one, while that helps."""
        while len(circuit) > 1:
            costs = yield from self._costs(circuit)
            cheapest = min(costs, key=lambda one: costs[one])
            less = self.measured[frozenset(circuit.nodes) - {cheapest}]
            if self._is_enough(less):
                circuit = less
                continue
            second = sorted(costs, key=lambda one: costs[one])[1]
            (fewer,) = yield from self._measure([[one for one in less.nodes if one != second]])
            best = yield from self._best_with_one_more(fewer)
            if best is None or not self._is_enough(best):
                best = yield from self._best_with_one_more(less)
            if best is None or not self._is_better(best, circuit):
                return
            circuit = best

    def _best_with_one_more(self, circuit: CircuitStep) -> Measuring[CircuitStep | None]:
        """The best with one of the next components: those that helped most before, and some not yet tried."""
        free = [one for one in self._order if one not in circuit.nodes]
        n_tried = self._n_per_call // 2
        helped = sorted((one for one in free if one in self._gains), key=lambda one: -self._gains[one])[
            :n_tried
        ]
        new = [one for one in free if one not in self._gains]
        candidates = helped + new[: self._n_per_call - len(helped)]
        found = yield from self._measure([[*circuit.nodes, one] for one in candidates])
        for node, one in zip(candidates, found, strict=True):
            self._gains[node] = one.faithfulness - circuit.faithfulness
        return min(found, key=_distance, default=None)

    def _costs(self, circuit: CircuitStep) -> Measuring[dict[CircuitNode, float]]:
        """How much farther from the whole objective the circuit is without each of its components."""
        without = [[one for one in circuit.nodes if one != node] for node in circuit.nodes]
        found = yield from self._measure(without)
        return {node: _distance(one) for node, one in zip(circuit.nodes, found, strict=True)}

    def _measure(self, circuits: Sequence[Nodes]) -> Measuring[list[CircuitStep]]:
        """Measures those that were not yet, so many in a call.

        Raises:
            _OutOfCallsError: that would take another call.
            InvalidValueError: the baseline has the same objective as the prompt.
        """
        new = list({frozenset(one): one for one in circuits if frozenset(one) not in self.measured}.values())
        for start in range(0, len(new), self._n_per_call):
            if self._n_calls == self._question.max_calls:
                raise _OutOfCallsError
            self._n_calls += 1
            part = new[start : start + self._n_per_call]
            answers = yield [self._question.run(tuple(one)) for one in part]
            for nodes, answer in zip(part, answers, strict=True):
                if answer.circuit is None or answer.circuit.faithfulness is None:
                    raise InvalidValueError(
                        "baseline", "has the same objective as the prompt: nothing is to be kept"
                    )
                self.measured[frozenset(nodes)] = CircuitStep(tuple(nodes), answer.circuit)
        return [self.measured[frozenset(one)] for one in circuits]

    def _smallest(self, found: Sequence[CircuitStep]) -> CircuitStep:
        """The smallest that is faithful enough, or else the nearest to it."""
        enough = [one for one in found if self._is_enough(one)]
        return min(enough, key=len) if enough else min(found, key=_distance)

    def _is_enough(self, circuit: CircuitStep) -> bool:
        return circuit.faithfulness >= self._question.faithfulness

    def _is_better(self, one: CircuitStep, other: CircuitStep) -> bool:
        """Whether one is faithful enough, and smaller than another or as small and nearer to the whole."""
        return self._is_enough(one) and (len(one), _distance(one)) < (len(other), _distance(other))


def _sizes(n_components: int) -> list[int]:
    """Sizes of prefixes of a ranking, each half as large again as the one before; the whole at the end."""
    sizes = {round(2 ** (step / 2)) for step in range(2, 2 * n_components.bit_length())}
    return sorted({one for one in sizes if one < n_components} | {n_components})


def _distance(circuit: CircuitStep) -> float:
    return abs(1 - circuit.faithfulness)
