"""How a call that failed ends: its status goes to the client, and into the call's record."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc.aio

from tdb_server.errors import TdbError
from tdb_server.service.error_status import STATUS_DETAILS_KEY, error_status, status_code
from tdb_server.service.telemetry.call_record import current_record

if TYPE_CHECKING:  # generic for the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]


async def refuse(context: Context, error: TdbError) -> None:
    """Ends a call with an error.

    Raises:
        AbortError: always, gRPC's way of ending a call; unless
        CancelledError: the client has gone.
    """
    error.__traceback__ = None  # gRPC keeps what is raised here for a while, and with it all that it leads to
    record = current_record()
    record.status, record.reason = status_code(error).name, error.reason
    status = error_status(error)
    details = status.SerializeToString()
    trailers = (*(context.trailing_metadata() or ()), (STATUS_DETAILS_KEY, details))
    try:
        await context.abort(status_code(error), status.message, trailers)
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError("the client has gone") from gone
