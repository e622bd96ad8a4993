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
        UnknownNameError: there is none. The message names the nearest, or all.
    """
    try:
        return enum.Value(_prefix(enum) + plain_name(name).upper())
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


def plain_name(name: str) -> str:
    """A name as answers have it: in lower case, with `_` for `.`."""
    return name.lower().replace(".", "_")


def known_names(enum: Enum[Value]) -> list[str]:
    """The names of all values but the one that says nothing."""
    prefix = _prefix(enum)
    return [key.removeprefix(prefix).lower() for key in list(enum.keys())[1:]]


def _prefix(enum: Enum[Value]) -> str:
    return enum.keys()[0].removesuffix("UNSPECIFIED")


def _unknown(enum: Enum[Value], name: str) -> str:
    from difflib import get_close_matches  # only a wrong name needs it

    names = known_names(enum)
    near = get_close_matches(plain_name(name), names, n=1) if len(names) > 6 else []
    hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(names)}"
    kind = _prefix(enum).removesuffix("_").lower().replace("_", " ")
    return f"unknown {kind} {name!r}; {hint}"
