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
    behavior = getattr(handler, _kind(handler))

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
    build = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    like: Handler = build(answer, deserialize, serialize)
    return like


def _kind(handler: Handler) -> str:
    return "_".join(
        "stream" if is_stream else "unary"
        for is_stream in (handler.request_streaming, handler.response_streaming)
    )
