"""How a circuit is found: components are ranked by estimates, and a few are measured, grown, pruned, swapped.

A circuit is measured by running the prompt with everything else set to the baseline's. Many are measured in
one call, whose sub-requests share a batch. The search asks for such calls and makes none itself, so that
both clients run it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
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
_MOST_FAILURES = 4
"""After so many attempts that found nothing smaller or nearer, the search ends."""
_MOST_GIVEN = 6
"""Of so many that cost least, two are given."""
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


@dataclass(frozen=True, slots=True)
class CircuitsMeasured:
    """A call of a search was answered.

    Attributes:
        n_calls: how many there were so far, the one that ranks components included.
        steps: the circuits that it has measured.
    """

    n_calls: int
    steps: tuple[CircuitStep, ...]

    @classmethod
    def by(
        cls, n_calls: int, asked: Sequence[InferenceSubRequest], answers: Sequence[InferenceResult]
    ) -> CircuitsMeasured:
        """What a call has measured."""
        pairs = zip(asked, answers, strict=True)
        steps = [
            CircuitStep(one.only_these, answer.circuit)
            for one, answer in pairs
            if one.only_these is not None and answer.circuit is not None
        ]
        return cls(n_calls, tuple(steps))


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
    search = _Search(question, ranking, n_per_call)
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

    def __init__(
        self, question: CircuitQuestion, ranking: Sequence[tuple[CircuitNode, float]], n_per_call: int
    ) -> None:
        self._question = question
        self._order = [node for node, _ in ranking]
        self._estimates = dict(ranking)
        self._most = max(map(abs, self._estimates.values())) or 1.0
        self._n_per_call = n_per_call
        self._n_calls = 0
        self._gains: dict[CircuitNode, float] = {}
        self.measured: dict[frozenset[CircuitNode], CircuitStep] = {}

    def run(self) -> Measuring[None]:
        """Finds a small circuit that is faithful enough, as far as the calls go."""
        first = [_FIRST_MLP, *(one for one in self._order if one != _FIRST_MLP)]
        sizes = _sizes(len(self._order))
        prefixes = [order[:size] for order in (self._order, first) for size in sizes]
        best = self._smallest((yield from self._measure(prefixes)))
        yield from self._improve((yield from self._pruned(best)))

    def _improve(self, best: CircuitStep) -> Measuring[None]:
        """Exchanges two for others, and prunes, as long as that makes it smaller or nearer to the whole."""
        n_failures = 0
        while n_failures < _MOST_FAILURES:
            wider = yield from self._widened(best, n_failures)
            yield from self._pruned(wider)
            found = self._smallest(list(self.measured.values()))
            is_better = self._is_enough(found) and _size_and_distance(found) < _size_and_distance(best)
            best, n_failures = (found, 0) if is_better else (best, n_failures + 1)

    def _pruned(self, circuit: CircuitStep) -> Measuring[CircuitStep]:
        """Leaves out those whose loss costs least, up to a quarter together, until none can go."""
        while len(circuit) > 1:
            by_cost = yield from self._by_cost(circuit)
            sizes = range(max(1, len(by_cost) - self._n_per_call), len(by_cost))
            found = yield from self._measure([by_cost[:size] for size in sizes])
            smallest = self._smallest([one for one in [*found, circuit] if 4 * len(one) >= 3 * len(circuit)])
            if len(smallest) >= len(circuit):
                break
            circuit = smallest
        return circuit

    def _widened(self, circuit: CircuitStep, n_failures: int) -> Measuring[CircuitStep]:
        """Gives two that cost little together, and takes in the best of many, by what each does for the rest.

        After failures it gives the two that come next.
        """
        by_cost = yield from self._by_cost(circuit)
        pairs = combinations(by_cost[-_MOST_GIVEN:], min(2, len(by_cost) - 1))
        cores = yield from self._measure([[one for one in by_cost if one not in pair] for pair in pairs])
        core = sorted(cores, key=_distance)[n_failures % len(cores)]
        free = sorted((one for one in self._order if one not in core.nodes), key=self._promise, reverse=True)
        candidates = free[: 2 * self._n_per_call]
        found = yield from self._measure([[*core.nodes, one] for one in candidates])
        gains = {node: _distance(core) - _distance(one) for node, one in zip(candidates, found, strict=True)}
        self._gains |= gains
        best = sorted(gains, key=lambda one: -gains[one])[: self._n_per_call // 2]
        wider = yield from self._measure([[*core.nodes, *best[:n]] for n in range(1, len(best) + 1)])
        ample = (1 + self._question.faithfulness) / 2
        return next(
            (one for one in wider if one.faithfulness >= ample), min([*wider, circuit], key=_distance)
        )

    def _promise(self, node: CircuitNode) -> tuple[bool, float]:
        """What is tried first: what has helped, then what was not tried and has the largest estimate."""
        gain = self._gains.get(node)
        if gain is None:
            return (True, abs(self._estimates[node]) / self._most)
        return (gain > 0, 1 + gain)

    def _by_cost(self, circuit: CircuitStep) -> Measuring[list[CircuitNode]]:
        """Its nodes, those first without which it is farthest from the whole objective."""
        costs = yield from self._costs(circuit)
        return sorted(circuit.nodes, key=lambda one: -costs[one])

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
        return min(enough, key=_size_and_distance) if enough else min(found, key=_distance)

    def _is_enough(self, circuit: CircuitStep) -> bool:
        return circuit.faithfulness >= self._question.faithfulness


def _sizes(n_components: int) -> list[int]:
    """Sizes of prefixes of a ranking, each half as large again as the one before; the whole at the end."""
    sizes = {round(2 ** (step / 2)) for step in range(2, 2 * n_components.bit_length())}
    return sorted({one for one in sizes if one < n_components} | {n_components})


def _size_and_distance(circuit: CircuitStep) -> tuple[int, float]:
    return len(circuit), _distance(circuit)


def _distance(circuit: CircuitStep) -> float:
    return abs(1 - circuit.faithfulness)
