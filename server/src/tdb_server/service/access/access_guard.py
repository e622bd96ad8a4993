"""Lets in who may call, before anything of the request is looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tdb_server.domain.caller import Caller
from tdb_server.errors import OverLimit, Unauthenticated
from tdb_server.service.access.access import Access, Connection
from tdb_server.service.access.client_address import host_of
from tdb_server.service.handlers import answer_of, handler_like, handler_that_refuses
from tdb_server.service.refusal import refuse
from tdb_server.service.telemetry.call_record import current_record

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context, Handler

OPEN_METHODS = "/grpc.health.v1.Health/"
"""Asked by balancers and probes, which have no tokens."""

OUR_METHODS = "/transformer_debugger."


class AccessGuard(grpc.aio.ServerInterceptor):
    """Asks for a token, and holds the limits of its owner.

    Reflection and channelz ask for a token too, but do not count.

    Args:
        access: who may call.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See `grpc.aio.ServerInterceptor`."""
        method = handler_call_details.method
        if method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        try:
            owner = self._access.token_owner(_values(handler_call_details, "authorization"))
        except Unauthenticated as error:
            return handler_that_refuses(partial(refuse, error=error))
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OUR_METHODS) or handler.request_streaming:
            return handler
        forwarded_for = _values(handler_call_details, "x-forwarded-for")
        return self._admitted(handler, owner, tuple(forwarded_for))

    def _admitted(self, handler: Handler, owner: Caller | None, forwarded_for: tuple[str, ...]) -> Handler:
        answer, deserialize = answer_of(handler), handler.request_deserializer

        async def answer_if_within_limits(raw: bytes, context: Context) -> Any:
            names = _certificate_names(context)
            peer = context.peer()
            connection = Connection(peer, host_of(peer), forwarded_for)
            caller = self._access.caller(owner, names[0] if names else None, connection)
            current_record().caller = caller.name
            try:
                self._access.check_certificate(names)
                with self._access.one_call(caller):
                    return await answer(deserialize(raw) if deserialize else raw, context)
            except (Unauthenticated, OverLimit) as error:  # those of the call have been answered further in
                await refuse(context, error)

        # The request is deserialized only once its caller is found to be within limits.
        return handler_like(handler, answer_if_within_limits, None, handler.response_serializer)


def _values(details: grpc.HandlerCallDetails, header: str) -> list[str]:
    return [str(value) for key, value in details.invocation_metadata or () if key == header]


def _certificate_names(context: Context) -> list[str]:
    """The names in the client's certificate, which the handshake has checked; the best known first."""
    said = context.auth_context()
    keys = ("x509_common_name", "x509_subject_alternative_name", "x509_subject")
    return [name.decode(errors="replace") for key in keys for name in said.get(key, ())]
