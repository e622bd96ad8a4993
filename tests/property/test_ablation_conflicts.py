"""Ablations that contradict each other are found as by comparing each with each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, ValueType

from tests.unit.service.tiny_requests import model

PLACES = {2: HookPoint.MLP_POST_ACT, 3: HookPoint.ATTN_QK_PROBS}
Ablations = list[tuple[str, AblationSpec]]


def test_the_same_as_comparing_each_with_each() -> None:
    chance, n_found = random.Random(0), 0
    for _ in range(2000):
        ablations = _random_ablations(chance)
        found = [(one.field, one.description.split()[2]) for one in conflict_violations(ablations, model())]
        assert found == list(_compared(ablations)), ablations
        n_found += len(found)
    assert n_found > 1000, "else little was tried"


def _random_ablations(chance: random.Random) -> Ablations:
    n_axes = chance.choice(list(PLACES))
    return [
        (
            f"ablations[{number}]",
            AblationSpec(
                ActivationIndex(PLACES[n_axes], 0, _some_cells(chance, n_axes), PassType.FORWARD),
                float(chance.randrange(3)),
                chance.choice((ValueType.NUMBER, ValueType.NUMBER, *ValueType)),
                attended_to_token=chance.choice((None, None, 0, 1)),
            ),
        )
        for number in range(chance.randrange(12))
    ]


def _some_cells(chance: random.Random, n_axes: int) -> tuple[int | None, ...]:
    return tuple(chance.choice((None, 0, 1, 2)) for _ in range(n_axes))


def _compared(ablations: Ablations) -> Iterator[tuple[str, str]]:
    """Who sets what somebody before has set to another value, and the first who has."""
    for number, (path, ablation) in enumerate(ablations):
        for other_path, other in ablations[:number]:
            if _differ(other, ablation) and _meet(_cells(other), _cells(ablation)):
                yield path, other_path
                break


def _differ(one: AblationSpec, other: AblationSpec) -> bool:
    """Factors and summands would both count, even where they are the same."""
    if {one.value_type, other.value_type} & {ValueType.SCALE, ValueType.ADD}:
        return True
    return (one.value_type, one.value) != (other.value_type, other.value)


def _cells(ablation: AblationSpec) -> tuple[int | None, ...]:
    return (*ablation.index.tensor_indices, ablation.attended_to_token)


def _meet(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))
