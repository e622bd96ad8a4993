"""The one table from errors to HTTP: a status, and a body with a message for people."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from tdb_server import errors


class UnsupportedMediaType(errors.InvalidRequest):
    """A body that does not say that it is JSON, as pages can send to any site without asking."""


HTTP_STATUSES: dict[type[errors.TdbError], int] = {
    UnsupportedMediaType: 415,
    errors.InvalidRequest: 400,
    errors.FailedPrecondition: 400,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 401,
    errors.Cancelled: 408,
    errors.DeadlineExceeded: 408,
    errors.OverLimit: 413,
    errors.Unavailable: 503,
    errors.Internal: 500,
}
TOO_MANY_REQUESTS = 429


def http_status(error: errors.TdbError) -> int:
    """The status of an error; 500 for those that no client should ever see."""
    if isinstance(error, errors.OverLimit) and error.retry_after_seconds is not None:
        return TOO_MANY_REQUESTS
    return next((HTTP_STATUSES[kind] for kind in type(error).__mro__ if kind in HTTP_STATUSES), 500)


def error_response(error: errors.TdbError) -> JSONResponse:
    """The error as an answer. When to try again stands in the header `Retry-After`."""
    headers = {}
    if isinstance(error, errors.RetryableError) and error.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"message": error.message}, http_status(error), headers)
