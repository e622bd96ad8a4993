"""Half precision where it is stored and passed through, float32 where something is derived.

A pass over bfloat16 weights computes in bfloat16. Products and sums of what it leaves would lose digits that
it still has, so these are float32. Weights are widened each time they are read: of a layer's matrix there are
two copies while it is used, and of the model one.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

Record = TypeVar("Record")


def wide(x: Tensor) -> Tensor:
    """Half precision to float32, in which squares and exponentials neither overflow nor lose small terms."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


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
