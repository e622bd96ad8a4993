"""Reads values out of a JSON body, and says where a value is not what it should be.

Only the types of values are checked here; whether they make sense is for the service to say. Keys that are
not known are ignored, as the reference does, and a key with null is as good as none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

from tdb_server.domain.reason import Reason
from tdb_server.errors import FieldViolation, InvalidRequest
from tdb_server.service.enum_names import EnumNames

T = TypeVar("T")
MemberT = TypeVar("MemberT", bound=Enum)
NumberT = TypeVar("NumberT", bound=int)
_INT32 = range(-(2**31), 2**31)


def malformed(path: str, description: str, reason: Reason = Reason.MALFORMED_REQUEST) -> InvalidRequest:
    """The error for a value that cannot be read.

    Args:
        path: where it stands in the body; empty for the body itself.
        description: what it should be.
        reason: what is wrong.
    """
    return InvalidRequest([FieldViolation(path or "body", description, reason)])


class JsonObject:
    """An object of a body, and where it stands.

    Args:
        value: what was parsed from JSON.
        path: where it stands in the body; empty for the body itself.

    Raises:
        InvalidRequest: it is not an object.
    """

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise malformed(path, f"must be an object, not {_kind(value)}")
        self._value = value
        self._path = path

    def path(self, key: str) -> str:
        """Where a key's value stands in the body."""
        return f"{self._path}.{key}" if self._path else key

    def value(self, key: str) -> Any:
        """A key's value as it is; None where it is missing."""
        return self._value.get(key)

    def items(self) -> list[tuple[str, Any]]:
        """All keys and values, in order."""
        return list(self._value.items())

    def object(self, key: str) -> JsonObject | None:
        """An object; None where it is missing."""
        value = self.value(key)
        return None if value is None else JsonObject(value, self.path(key))

    def objects(self, key: str) -> list[JsonObject]:
        """A list of objects; empty where it is missing."""
        return self._list(key, JsonObject)

    def string(self, key: str) -> str:
        """A text; empty where it is missing."""
        value = self.value(key)
        return "" if value is None else as_string(value, self.path(key))

    def strings(self, key: str) -> list[str]:
        """A list of texts; empty where it is missing."""
        return self._list(key, as_string)

    def integer(self, key: str) -> int | None:
        """A whole number of 32 bits; None where it is missing."""
        value = self.value(key)
        return None if value is None else as_integer(value, self.path(key))

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers; empty where it is missing."""
        return self._list(key, as_integer)

    def number(self, key: str) -> float:
        """A number, 0 where it is missing. NaN and the infinities are left for the service to refuse."""
        value, path = self.value(key), self.path(key)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise malformed(path, f"must be a number, not {_kind(value)}")
        try:
            return float(value)
        except OverflowError as error:
            raise malformed(path, "is too large", Reason.OUT_OF_RANGE) from error

    def boolean(self, key: str) -> bool | None:
        """True or false; None where it is missing."""
        value = self.value(key)
        if value is not None and not isinstance(value, bool):
            raise malformed(self.path(key), f"must be true or false, not {_kind(value)}")
        return value

    def member(self, key: str, members: type[MemberT]) -> MemberT | None:
        """One of an enum's values; None where it is missing."""
        value = self.value(key)
        return None if value is None else as_member(value, members, self.path(key))

    def number_of(self, key: str, names: EnumNames[MemberT, NumberT]) -> NumberT:
        """The wire's number of one of an enum's values; UNSPECIFIED where it is missing."""
        member = self.member(key, names.type)
        return names.unspecified if member is None else names.numbers[member]

    def numbers_of(self, key: str, names: EnumNames[MemberT, NumberT]) -> list[NumberT]:
        """The wire's numbers of a list of an enum's values; empty where it is missing."""
        return self._list(key, lambda value, path: names.numbers[as_member(value, names.type, path)])

    def _list(self, key: str, read: Callable[[Any, str], T]) -> list[T]:
        value = self.value(key)
        if value is None:
            return []
        return [read(one, f"{self.path(key)}[{i}]") for i, one in enumerate(as_list(value, self.path(key)))]


def as_list(value: Any, path: str) -> Sequence[Any]:
    """The value, if it is a list."""
    if not isinstance(value, list):
        raise malformed(path, f"must be a list, not {_kind(value)}")
    return value


def as_integer(value: Any, path: str) -> int:
    """The value, if it is a whole number of 32 bits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise malformed(path, f"must be a whole number, not {_kind(value)}")
    if value not in _INT32:
        raise malformed(path, f"{value} is out of range", Reason.OUT_OF_RANGE)
    return value


def as_member(value: Any, members: type[MemberT], path: str) -> MemberT:
    """The enum's member of that value."""
    text = as_string(value, path)
    try:
        return members(text)
    except ValueError as error:
        known = ", ".join(str(one.value) for one in members)
        raise malformed(path, f"{text!r} is not one of {known}", Reason.UNKNOWN_ENUM_VALUE) from error


def as_string(value: Any, path: str) -> str:
    """The value, if it is text."""
    if not isinstance(value, str):
        raise malformed(path, f"must be a string, not {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise malformed(path, "holds half of a surrogate pair, which is no text") from error
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
