"""Reads the objects that the page sends, field by field, and gathers every fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tdb_client.errors import FieldViolation, InvalidValueError, NodeError, TdbError
from tdb_client.value_check import LARGEST, check_text

Value = TypeVar("Value")
MOST_FAULTS = 100
"""More are not told of: an answer stays short, whatever was sent."""
MOST_CHARACTERS = 200
"""The most in the spelling of a node, and of a field's name that an error repeats."""


class QuestionError(TdbError):
    """What the page has sent cannot be asked.

    Attributes:
        violations: every field at fault, by its name in the page's question.
    """

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(map(str, violations)))
        self.violations = tuple(violations)


class BodyReader:
    """One object. A field that is missing or null has its default; one that is at fault, too.

    Args:
        body: the object, as JSON is parsed.
        known: the fields that it may have.
        path: what comes before the fields' names in faults, such as `loss.`.
        faults: where faults are put; of one's own where none are given.
    """

    def __init__(
        self, body: object, known: Sequence[str], path: str = "", faults: list[FieldViolation] | None = None
    ) -> None:
        self.faults: list[FieldViolation] = [] if faults is None else faults
        self._path = path
        self._body: Mapping[str, Any] = body if isinstance(body, dict) else {}
        if not isinstance(body, dict):
            self.fault("", "must be an object")
        for name in self._body:
            if name not in known:
                # Half a surrogate pair is no text that an answer could have in it.
                shown = name[:MOST_CHARACTERS].encode(errors="backslashreplace").decode()
                self.fault(shown, f"is not known; known are {', '.join(known)}", "FIELD_NOT_ALLOWED")

    def fault(self, name: str, description: str, reason: str = "MALFORMED_REQUEST") -> None:
        """Notes a fault of a field."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(FieldViolation(f"{self._path}{name}" or "body", description, reason))

    def check(self) -> None:
        """To be called when all is read.

        Raises:
            QuestionError: there are faults.
        """
        if self.faults:
            raise QuestionError(self.faults)

    def value(self, name: str) -> Any:
        """The value of a field as it is; None where it is missing."""
        return self._body.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.value(name)
        return default if value is None else self._text(name, value)

    def flag(self, name: str) -> bool | None:
        """True, false, or None where it is not said."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            self.fault(name, "must be true or false")
            return None
        return value

    def whole(self, name: str, default: int | None = None) -> int | None:
        """A whole number."""
        value = self.value(name)
        return default if value is None else self._whole(name, value)

    def required(self, name: str) -> int:
        """A whole number that cannot be left out."""
        if self.value(name) is None:
            self.fault(name, "is required", "FIELD_REQUIRED")
        return self.whole(name) or 0

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            self.fault(name, "must be a number")
            return default
        return float(value)

    def choice(self, name: str, allowed: Sequence[str], default: str) -> Any:
        """One of some words."""
        value = self.value(name)
        if value is None:
            return default
        if value not in allowed:
            self.fault(name, f"must be one of {', '.join(allowed)}", "UNKNOWN_ENUM_VALUE")
            return default
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self._text(f"{name}[{i}]", one) for i, one in enumerate(self._list(name)))

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        return tuple(self._whole(f"{name}[{i}]", one) for i, one in enumerate(self._list(name)))

    def choices(self, name: str, allowed: Sequence[str]) -> tuple[Any, ...]:
        """A list of some words."""
        values = self._list(name)
        for i, one in enumerate(values):
            if one not in allowed:
                self.fault(f"{name}[{i}]", f"must be one of {', '.join(allowed)}", "UNKNOWN_ENUM_VALUE")
        return tuple(values)

    def spelled(self, name: str, parse: Callable[[str], Value]) -> Value | None:
        """What a text spells; None where there is none, or an empty one."""
        text = self.text(name)
        return self._parsed(name, text, parse) if text else None

    def all_spelled(self, name: str, parse: Callable[[str], Value]) -> tuple[Value, ...]:
        """What each of some texts spells."""
        parsed = [self._parsed(f"{name}[{i}]", one, parse) for i, one in enumerate(self.texts(name))]
        return tuple(one for one in parsed if one is not None)

    def _list(self, name: str) -> list[Any]:
        value = self.value(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fault(name, "must be a list")
            return []
        return value

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            self.fault(name, "must be a text")
            return ""
        try:
            check_text(value, name)
        except InvalidValueError as error:
            self.fault(name, error.description)
            return ""
        return value

    def _whole(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
            self.fault(name, "must be a whole number")
            return 0
        return value

    def _parsed(self, name: str, text: str, parse: Callable[[str], Value]) -> Value | None:
        if len(text) > MOST_CHARACTERS:
            self.fault(
                name, f"has {len(text)} characters; at most {MOST_CHARACTERS} are read", "OUT_OF_RANGE"
            )
            return None
        try:
            return parse(text)
        except NodeError as error:
            self.fault(name, str(error))
            return None
