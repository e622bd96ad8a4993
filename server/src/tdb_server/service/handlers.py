"""gRPC method handlers of all four kinds, taken apart and put together again by interceptors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

if TYPE_CHECKING:  # generic for the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

Answer = Callable[[Any, "Context"], Awaitable[Any]]
Convert = Callable[[Any], Any] | None

_KINDS: dict[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


async def write(context: Context, response: Any) -> None:
    """Sends one message of a stream.

    Raises:
        CancelledError: the client has gone. gRPC itself cancels a call when it notices in time, and else says
            that it has failed; but that a client leaves is no error.
    """
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError("the client has gone") from error


def answer_of(handler: Handler) -> Answer:
    """What answers a call. Responses of a stream are written, and none is returned."""
    attribute, _ = _kind(handler)
    behavior = getattr(handler, attribute)

    async def answer(request: Any, context: Context) -> Any:
        outcome = behavior(request, context)
        if not hasattr(outcome, "__aiter__"):
            return await outcome
        async with aclosing(outcome) as responses:
            async for response in responses:
                await write(context, response)
            return None

    return answer


def handler_like(handler: Handler, answer: Answer, deserialize: Convert, serialize: Convert) -> Handler:
    """A handler of the same kind that answers with something else."""
    _, build = _kind(handler)
    like: Handler = build(answer, deserialize, serialize)
    return like


def handler_that_refuses(refuse: Callable[[Context], Awaitable[None]]) -> Handler:
    """A handler for any method that aborts the call; no byte of the request is read for it."""

    async def answer(_: Any, context: Context) -> None:
        await refuse(context)

    handler: Handler = grpc.stream_stream_rpc_method_handler(answer)
    return handler


def _kind(handler: Handler) -> tuple[str, Any]:
    return _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
