"""Values that no message can carry are refused by name before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral

from tdb_client.errors import InvalidValueError

LARGEST = 2**31 - 1
"""Whole numbers of requests are of 32 bits."""


def check_values(value: object, path: str) -> None:
    """Looks through a value and all that it consists of.

    Args:
        value: text, a number, or mappings, sequences and dataclasses of such.
        path: what the value is called; its parts are named as they are reached: `sub_requests[0].prompt`.

    Raises:
        InvalidValueError: a text holds half a surrogate pair, or a whole number does not fit.
    """
    match value:
        case str():
            check_text(value, path)
        case Integral() if not -LARGEST <= int(value) <= LARGEST:
            raise InvalidValueError(path, f"{value} is no number that a request can hold (32 bits)")
        case Mapping():
            for key, one in value.items():
                check_values(key, path)
                check_values(one, f"{path}[{key!r}]")
        case list() | tuple():
            for i, one in enumerate(value):
                check_values(one, f"{path}[{i}]")
        case _ if is_dataclass(value):
            for field in fields(value):
                check_values(getattr(value, field.name), f"{path}.{field.name}")


def check_text(text: str, path: str) -> None:
    """As `check_values`, of a text.

    Python keeps bytes that are no text, such as arguments of a command, as halves of surrogate pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = (
            f"character {error.start}, {text[error.start]!r}, is half of a surrogate pair, which is no text"
        )
        raise InvalidValueError(path, what) from None


def check_token(token: str) -> None:
    """Refuses a bearer token that no header can carry."""
    if not token or not all("!" <= one <= "~" for one in token):
        raise InvalidValueError(
            "token", "must be one line of ASCII letters, digits and signs, without spaces"
        )
