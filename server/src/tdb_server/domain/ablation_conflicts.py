"""No cell is set twice to different values: found without comparing each ablation with each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from tdb_server.domain.axes import specific_hook_point
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AblationSpec, ValueType
from tdb_server.errors import FieldViolation

Axes = tuple[int, ...]
Setting = tuple[object, ...]
"""What is done to a cell. To do the same twice is no conflict where it sets; factors and summands are told
apart, as both would count."""
_Cells = dict[Axes, dict[Axes, dict[tuple[int, ...], dict[Setting, int]]]]
"""Ablations of one hook point by the axes they fix, some of these axes, and where they fix those: for each
setting the first one's number. So an ablation finds those it meets without a look at each."""


def conflict_violations(
    ablations: Sequence[tuple[str, AblationSpec]], info: ModelInfo
) -> Iterator[FieldViolation]:
    """Ablations that set a cell which an earlier one, by path, sets to another value."""
    seen: dict[tuple[object, ...], _Cells] = {}
    for number, (path, ablation) in enumerate(ablations):
        index = ablation.index
        cells = seen.setdefault(
            (specific_hook_point(index.hook_point, info), index.layer_index, index.pass_type), {}
        )
        setting, where = _setting(ablation, number), (*index.tensor_indices, ablation.attended_to_token)
        earlier = _first_conflict(cells, where, setting)
        if earlier is not None:
            earlier_path, other = ablations[earlier]
            yield FieldViolation(
                path,
                f"sets what {earlier_path} sets {_in_words(other)}, {_in_words(ablation)}",
                Reason.DUPLICATE_ABLATION,
            )
        _note_cells(cells, where, setting, number)


def _setting(ablation: AblationSpec, number: int) -> Setting:
    if ablation.value_type in (ValueType.SCALE, ValueType.ADD):
        return ablation.value_type, number
    return ablation.value_type, ablation.value


def _in_words(ablation: AblationSpec) -> str:
    match ablation.value_type:
        case ValueType.BASELINE:
            return "to the baseline's"
        case ValueType.SCALE:
            return f"times {ablation.value:g}"
        case ValueType.ADD:
            return f"plus {ablation.value:g}"
        case _:
            return f"to {ablation.value:g}"


def _first_conflict(cells: _Cells, indices: tuple[int | None, ...], setting: Setting) -> int | None:
    """The number of the first ablation that sets one of these cells otherwise."""
    found = [
        number
        for their_axes, by_axes in cells.items()
        for axes in [tuple(axis for axis in their_axes if indices[axis] is not None)]
        for theirs, number in _two(by_axes[axes].get(_at(indices, axes), {}))
        if theirs != setting
    ]
    return min(found, default=None)


def _two(numbers: dict[Setting, int]) -> Iterable[tuple[Setting, int]]:
    """The first two settings: at least one of them is another than any given one."""
    return itertools.islice(numbers.items(), 2)


def _note_cells(cells: _Cells, indices: tuple[int | None, ...], setting: Setting, number: int) -> None:
    own_axes = tuple(axis for axis, index in enumerate(indices) if index is not None)
    by_axes = cells.setdefault(own_axes, {})
    for n_axes in range(len(own_axes) + 1):
        for axes in itertools.combinations(own_axes, n_axes):
            by_axes.setdefault(axes, {}).setdefault(_at(indices, axes), {}).setdefault(setting, number)


def _at(indices: tuple[int | None, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(index for axis in axes if (index := indices[axis]) is not None)
