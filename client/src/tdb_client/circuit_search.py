"""How a circuit is found: components are ranked by estimates; then circuits are measured, pruned and swapped.

A circuit is measured by running the prompt with everything else set to the baseline's. Many are measured in
one call, whose sub-requests share a batch. The search asks for such calls and makes none itself, so that
both clients run it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeVar

from tdb_client.circuit import MAX_CALLS, Circuit, CircuitStep, best_of_each_size
from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode
from tdb_client.errors import InvalidValueError
from tdb_client.inference import ComponentTotalsSpec, InferenceSubRequest, Loss, Token
from tdb_client.model_info import ModelInfo
from tdb_client.results import ComponentTotalsResult, InferenceResult, named_result

Found = TypeVar("Found")
RankBy = Literal["act_times_grad", "direct_effect"]
"""What components are ranked by at first, summed over tokens."""

_SCALARS: dict[RankBy, str] = {
    "act_times_grad": "act_times_grad",
    "direct_effect": "write_to_final_residual_grad",
}
"""The ending of derived scalars' names, by what is ranked by."""
_TOTALS = "totals"
_MOST_FAILURES = 5
"""After so many attempts that found nothing smaller, the search ends."""
_N_ADDED = 48
"""How many of the components that were added before are added again: those that helped most."""
_N_SWAPS = 64
"""How many swaps are measured: those that promise most."""
_FIRST_MLP = CircuitNode("whole_mlp", 0)
"""Works as a second embedding of every token, so that almost every circuit needs it."""

Nodes = Sequence[CircuitNode]
MeasureFlow = Generator[list[InferenceSubRequest], list[InferenceResult], Found]
CircuitFlow = MeasureFlow[Circuit]


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
        """The sub-request that runs the prompt, with these nodes alone where some are given."""
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
        cls, n_calls: int, sub_requests: Sequence[InferenceSubRequest], answers: Sequence[InferenceResult]
    ) -> CircuitsMeasured:
        """What a call has measured."""
        pairs = zip(sub_requests, answers, strict=True)
        steps = [
            CircuitStep(one.only_these, answer.circuit)
            for one, answer in pairs
            if one.only_these is not None and answer.circuit is not None
        ]
        return cls(n_calls, tuple(steps))


class _OutOfCallsError(Exception):
    """No more may be measured."""


def find_circuit(question: CircuitQuestion, model: ModelInfo, n_per_call: int) -> CircuitFlow:
    """Asks for calls, is sent their results, and returns the circuit.

    Args:
        question: what is asked.
        model: whose components they are.
        n_per_call: circuits that are measured in one call.

    Raises:
        InvalidValueError: the baseline has the same objective as the prompt.
    """
    answers = yield _estimates(question, model)
    ranking = _ranking(question, model, answers)
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
    """The prompt compared with its baselines, and each baseline compared with the prompt.

    Under RELP act x grad foretells what setting an MLP to the baseline does; plain gradients do not.
    """
    ending = _SCALARS[question.rank_by]
    wanted = {_TOTALS: ComponentTotalsSpec([f"{kind}_{ending}" for kind in WHOLE_NODE_TYPES])}
    runs = [question.run(), *(_exchanged(question, one) for one in question.baseline)]
    return [
        replace(one, results=wanted, backward_rule="relp") for one in runs[: model.limits.max_sub_requests]
    ]


def _exchanged(question: CircuitQuestion, baseline: str) -> InferenceSubRequest:
    return replace(question, prompt=baseline, baseline=(question.prompt,)).run()


def _ranking(
    question: CircuitQuestion,
    model: ModelInfo,
    answers: Sequence[InferenceResult],
) -> list[tuple[CircuitNode, float]]:
    """All components by what they are estimated to do for the objective, the largest first.

    A first-order estimate at the prompt alone misses what saturates there, and at the baseline alone what is
    saturated here: the mean of both comes nearer to what the way between them amounts to.
    """
    estimates = dict.fromkeys(_components(model), 0.0)
    n_exchanged = len(answers) - 1
    for number, answer in enumerate(answers):
        share = 1.0 if not n_exchanged else 0.5 if number == 0 else -0.5 / n_exchanged
        found = named_result(answer, _TOTALS, ComponentTotalsResult)
        heads, mlps = (
            found.totals[f"{kind}_{_SCALARS[question.rank_by]}"].array for kind in WHOLE_NODE_TYPES
        )
        for node in estimates:
            of_layer = (heads if node.type == "whole_head" else mlps)[node.layer]
            estimates[node] += share * float(of_layer[node.index] if node.type == "whole_head" else of_layer)
    return sorted(estimates.items(), key=lambda one: -one[1])


def _components(model: ModelInfo) -> Iterable[CircuitNode]:
    for layer in range(model.n_layers):
        yield from (CircuitNode("whole_head", layer, index) for index in range(model.n_heads))
        yield CircuitNode("whole_mlp", layer)


class _Search:
    """What was measured so far, and what to measure next."""

    def __init__(
        self, question: CircuitQuestion, ranking: Sequence[tuple[CircuitNode, float]], n_per_call: int
    ) -> None:
        self._question = question
        self._order = [node for node, _ in ranking]
        self._estimates = dict(ranking)
        self._n_per_call = n_per_call
        self._n_calls = 0
        self._gains: dict[CircuitNode, float] = {}
        self._swapped: set[frozenset[CircuitNode]] = set()
        self.measured: dict[frozenset[CircuitNode], CircuitStep] = {}

    def run(self) -> MeasureFlow[None]:
        """Finds a small circuit that is faithful enough, as far as the calls go."""
        first = [_FIRST_MLP, *(one for one in self._order if one != _FIRST_MLP)]
        sizes = _sizes(len(self._order))
        prefixes = [order[:size] for order in (self._order, first) for size in sizes]
        best = self._smallest((yield from self._measure(prefixes)))
        yield from self._improve((yield from self._pruned(best)))

    def _improve(self, best: CircuitStep) -> MeasureFlow[None]:
        """Swaps components of circuits one smaller than the best, until none becomes faithful enough.

        What was measured on the way is kept, so that the nearest of all such circuits is taken every time.
        """
        n_failures = 0
        while n_failures < _MOST_FAILURES and len(best) > 1:
            yield from self._without_each(best)
            smaller = [
                one
                for nodes, one in self.measured.items()
                if len(one) == len(best) - 1 and nodes not in self._swapped
            ]
            if not smaller:
                break
            yield from self._swap(min(smaller, key=_distance))
            found = self._smallest(list(self.measured.values()))
            n_failures = 0 if self._is_enough(found) and len(found) < len(best) else n_failures + 1
            best = found

    def _swap(self, circuit: CircuitStep) -> MeasureFlow[None]:
        """Measures it with one less and with one more, and the swaps that promise most by both."""
        self._swapped.add(frozenset(circuit.nodes))
        narrower = yield from self._without_each(circuit)
        free = sorted((one for one in self._order if one not in circuit.nodes), key=self._promise)
        tried = free[: _N_ADDED if self._gains else 2 * max(_N_ADDED, self._n_per_call)]
        wider = yield from self._measure([[*circuit.nodes, one] for one in tried])
        costs = {
            node: circuit.faithfulness - one.faithfulness
            for node, one in zip(circuit.nodes, narrower, strict=True)
        }
        gains = {
            node: one.faithfulness - circuit.faithfulness for node, one in zip(tried, wider, strict=True)
        }
        self._gains |= gains
        swaps = sorted(
            product(costs, gains),
            key=lambda swap: abs(1 - (circuit.faithfulness - costs[swap[0]] + gains[swap[1]])),
        )
        yield from self._measure(
            [[*(one for one in circuit.nodes if one != old), new] for old, new in swaps[:_N_SWAPS]]
        )

    def _promise(self, node: CircuitNode) -> tuple[float, float]:
        """What is tried first has the least: what helped most when it was tried, then by its estimate."""
        return -self._gains.get(node, 0.0), -abs(self._estimates[node])

    def _pruned(self, circuit: CircuitStep) -> MeasureFlow[CircuitStep]:
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

    def _by_cost(self, circuit: CircuitStep) -> MeasureFlow[list[CircuitNode]]:
        """Its nodes, those first without which it is farthest from the whole objective."""
        without = yield from self._without_each(circuit)
        left = dict(zip(circuit.nodes, map(_distance, without), strict=True))
        return sorted(circuit.nodes, key=lambda one: -left[one])

    def _without_each(self, circuit: CircuitStep) -> MeasureFlow[list[CircuitStep]]:
        """The circuit without each of its components, in their order."""
        found = yield from self._measure(
            [[one for one in circuit.nodes if one != node] for node in circuit.nodes]
        )
        return found

    def _measure(self, circuits: Sequence[Nodes]) -> MeasureFlow[list[CircuitStep]]:
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
