"""Enum values by the names that users write: `mlp_write_norm` is DERIVED_SCALAR_TYPE_MLP_WRITE_NORM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

from tdb_client.errors import UnknownNameError

Value = TypeVar("Value", bound=int)


class Enum(Protocol[Value]):
    """What the generated code has for an enum of the protos."""

    def Name(self, number: Value) -> str:  # noqa: D102, N802
        ...

    def Value(self, name: str) -> Value:  # noqa: D102, N802
        ...

    def keys(self) -> Sequence[str]:  # noqa: D102
        ...


def enum_value(enum: Enum[Value], name: str) -> Value:
    """The value called `name`, without the enum's prefix; capitals do not matter and `.` is read as `_`.

    Raises:
        UnknownNameError: there is none. The message names the nearest, or all of a few.
    """
    try:
        return enum.Value(_prefix(enum) + name.upper().replace(".", "_"))
    except ValueError:
        raise UnknownNameError(_unknown(enum, name)) from None


@lru_cache(maxsize=1024)
def enum_name(enum: Enum[Value], value: Value) -> str:
    """The name of a value in lower case, without the enum's prefix.

    Of a value newer than these protos, the number.
    """
    try:
        return enum.Name(value).removeprefix(_prefix(enum)).lower()
    except ValueError:
        return str(int(value))


def _prefix(enum: Enum[Value]) -> str:
    return enum.keys()[0].removesuffix("UNSPECIFIED")


def _unknown(enum: Enum[Value], name: str) -> str:
    from difflib import get_close_matches  # only a wrong name needs it

    prefix = _prefix(enum)
    names = [key.removeprefix(prefix).lower() for key in list(enum.keys())[1:]]
    near = get_close_matches(name.lower(), names, n=1) if len(names) > 6 else names
    hint = (
        f"; it is one of {', '.join(names)}"
        if near == names
        else f"; did you mean {near[0]}?"
        if near
        else ""
    )
    return f"unknown {prefix.removesuffix('_').lower().replace('_', ' ')} {name!r}{hint}"
