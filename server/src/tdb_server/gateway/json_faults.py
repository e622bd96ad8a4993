"""Errors of bodies that cannot be read, with the path of every value at fault.

A path is such as `subRequests[0].nodeAblations[1].value`; the body itself is called `body`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from tdb_server.domain.reason import Reason
from tdb_server.errors import FieldViolation, InvalidRequest

ModelT = TypeVar("ModelT", bound=BaseModel)
NO_TEXT = "holds half of a surrogate pair, which is no text"
_SHOWN_CHARACTERS = 100
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
}
"""What a value should be, by pydantic's type of error."""


def malformed(path: str, description: str, reason: Reason = Reason.MALFORMED_REQUEST) -> InvalidRequest:
    """The error for a value that cannot be read.

    Args:
        path: where it stands in the body; empty for the body itself.
        description: what it should be.
        reason: what is wrong.
    """
    return InvalidRequest([FieldViolation(path or "body", description, reason)])


def fault(
    description: str, reason: Reason = Reason.MALFORMED_REQUEST, path: Sequence[str] = ()
) -> ValidationError:
    """What a validator of a body's model raises.

    Args:
        description: what is wrong with the value, or what it should be.
        reason: what is wrong.
        path: keys that lead to the value at fault, from the one that is validated.
    """
    error = PydanticCustomError("fault", "{description}", {"description": description, "reason": reason})
    return ValidationError.from_exception_data(
        "body", [InitErrorDetails(type=error, loc=tuple(path), input=None)]
    )


def read_body(model: type[ModelT], body: Any) -> ModelT:
    """A parsed body as its model.

    Raises:
        InvalidRequest: values are not of the type they should be. All are named, but of each list the first.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest([_violation(one) for one in error.errors(include_url=False)]) from error
    except RecursionError:
        description = "objects stand too deep in each other"
        raise InvalidRequest([FieldViolation("body", description, Reason.MALFORMED_REQUEST)]) from None


def _violation(error: ErrorDetails) -> FieldViolation:
    keys = (one for one in error["loc"] if one != "[key]")
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    return FieldViolation(path or "body", *_what_is_wrong(error))


def _what_is_wrong(error: ErrorDetails) -> tuple[str, Reason]:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "fault":
            return context["description"], context["reason"]
        case "enum" | "literal_error" if not isinstance(value, str):
            return f"must be a string, not {_kind(value)}", Reason.MALFORMED_REQUEST
        case "enum" | "literal_error":
            known = context["expected"].replace("'", "").replace(" or ", ", ")
            return f"{shortened(value)} is not one of {known}", Reason.UNKNOWN_ENUM_VALUE
        case "greater_than_equal" | "less_than_equal":
            return f"{shortened(value)} is out of range", Reason.OUT_OF_RANGE
        case "float_type" if isinstance(value, int) and not isinstance(value, bool):
            return "is too large", Reason.OUT_OF_RANGE
        case "too_long":
            return f"has more than the {context['max_length']} entries that make sense", Reason.OUT_OF_RANGE
        case "too_short":
            return "must not be empty; leave it out for the tokens", Reason.MALFORMED_REQUEST
        case "string_unicode":
            return NO_TEXT, Reason.MALFORMED_REQUEST
        case _ if kind in _WANTED:
            return f"must be {_WANTED[kind]}, not {_kind(value)}", Reason.MALFORMED_REQUEST
        case _:
            return error["msg"], Reason.MALFORMED_REQUEST


def shortened(value: Any) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


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
