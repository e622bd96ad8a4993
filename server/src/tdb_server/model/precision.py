"""Half precision where it is stored and passed through, float32 where something is derived.

A pass over bfloat16 weights computes in bfloat16. Products and sums of what it leaves would lose digits that
it still has, so these are float32. Weights are widened each time they are read: of a layer's matrix there are
two copies while it is used, of the vocabulary's one and a part of another, and of the model one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.activation_cost import WIDENED_NUMBERS

Record = TypeVar("Record")


def wide(x: Tensor) -> Tensor:
    """Half precision to float32, in which squares and exponentials neither overflow nor lose small terms."""
    return x.float() if is_narrow(x) else x


def is_narrow(x: Tensor) -> bool:
    """Whether it is half precision."""
    return x.is_floating_point() and x.dtype.itemsize < 4


def wide_parts(matrix: Tensor) -> Iterator[Tensor]:
    """What `wide` makes of a matrix [n, d]: in half precision a few rows at a time, else all at once."""
    for part in torch.split(matrix, rows_at_a_time(matrix)) if is_narrow(matrix) else (matrix,):
        yield wide(part)


def rows_at_a_time(matrix: Tensor) -> int:
    """How many rows of a matrix [n, d] in half precision are float32 at a time."""
    return max(1, WIDENED_NUMBERS // matrix.shape[1])


def wide_linear(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix.T` in x's precision, without gradients: [..., d] and [n, d] to [..., n]."""
    if x.dtype == matrix.dtype:
        return F.linear(x, matrix)
    found = x.new_empty(*x.shape[:-1], len(matrix))
    places = torch.split(found, rows_at_a_time(matrix), dim=-1)
    for place, part in zip(places, wide_parts(matrix), strict=True):
        place.copy_(F.linear(x, part))
    return found


def wide_product(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix` in x's precision, without gradients: [..., n] and [n, d] to [..., d]."""
    if x.dtype == matrix.dtype:
        return x @ matrix
    found = x.new_zeros(*x.shape[:-1], matrix.shape[1])
    of_parts = torch.split(x, rows_at_a_time(matrix), dim=-1)
    for own, part in zip(of_parts, wide_parts(matrix), strict=True):
        found += own @ part
    return found


def wide_sum(matrix: Tensor) -> Tensor:
    """The sum of a matrix's rows: [n, d] to [d]."""
    sums = [part.sum(dim=0) for part in wide_parts(matrix)]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)


def widened(record: Record) -> Record:
    """The same dataclass, dict or list: whoever reads a tensor of it gets what `wide` makes of that."""
    found: Any = record
    if isinstance(record, list):
        found = [widened(one) for one in record]
    elif isinstance(record, dict):
        found = {key: widened(one) for key, one in record.items()}
    elif is_dataclass(record) and not isinstance(record, type):
        tensors = {field.name: widened(getattr(record, field.name)) for field in fields(record)}
        found = _widening(type(record))(**tensors)
    return found  # type: ignore[no-any-return]


@cache
def _widening(kind: type) -> type:
    """A dataclass whose tensors are widened when they are read."""

    def read(self: object, name: str) -> Any:
        value = object.__getattribute__(self, name)
        return wide(value) if isinstance(value, Tensor) else value

    return type(kind.__name__, (kind,), {"__getattribute__": read})
