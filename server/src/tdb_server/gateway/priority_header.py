"""The header that says how urgent a request is: the bodies are the reference's, and have no place for it."""

from __future__ import annotations

from collections.abc import Sequence

from tdb_server.domain.priority import Priority
from tdb_server.domain.reason import Reason
from tdb_server.errors import FieldViolation, InvalidRequest

PRIORITY_HEADER = "tdb-priority"
PRIORITY_NAMES = [one.value for one in Priority]


def header_priority(values: Sequence[str]) -> Priority | None:
    """The priority that a request's header says; None without one.

    Args:
        values: every value of the header.

    Raises:
        InvalidRequest: more than one, or one that is no priority.
    """
    if not values:
        return None
    if len(values) > 1 or values[0] not in PRIORITY_NAMES:
        description = f"must be one of {', '.join(PRIORITY_NAMES)}"
        raise InvalidRequest([FieldViolation(PRIORITY_HEADER, description, Reason.UNKNOWN_ENUM_VALUE)])
    return Priority(values[0])
