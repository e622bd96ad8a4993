"""Errors over HTTP: a status, and a body with a message for people."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse

from tdb_server import errors
from tdb_server.service.error_status import status_codes


class UnsupportedMediaType(errors.InvalidRequest):
    """A body that does not say that it is JSON, as pages can send to any site without asking."""


def http_status(error: errors.TdbError) -> int:
    """The status of an error."""
    if isinstance(error, UnsupportedMediaType):
        return 415
    if isinstance(error, errors.OverLimit) and error.retry_after_seconds is not None:
        return 429
    return status_codes(error)[1]


def error_body(error: errors.TdbError, *, names_fields: bool = False) -> dict[str, Any]:
    """What is said of an error: in words, and where it is wanted also field by field."""
    if not names_fields:
        return {"message": _message(error)}
    violations = error.violations if isinstance(error, errors.ViolationError) else ()
    return {"message": _message(error), "violations": [asdict(one) for one in violations]}


def error_response(error: errors.TdbError, *, names_fields: bool = False) -> JSONResponse:
    """The error as an answer. When to try again stands in the header `Retry-After`."""
    headers = {}
    if isinstance(error, errors.RetryableError) and error.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error, names_fields=names_fields), http_status(error), headers)


def _message(error: errors.TdbError) -> str:
    """What it says for people, with a way out that there is over HTTP."""
    if isinstance(error, errors.ResponseTooLarge):
        return (
            f"{error.size}; ask for fewer nodes or specs, or send fewer sub-requests at a time, "
            f"or take {error.streaming_call} over gRPC"
        )
    return error.message
