"""What ASGI applications are made of, and an answer of one that is small."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
"""A scope, or an event."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


async def answer(
    send: Send,
    status: int,
    content_type: bytes,
    body: bytes,
    headers: Headers | None = None,
    *,
    is_head: bool = False,
) -> None:
    """Sends a whole answer.

    Args:
        send: to the client.
        status: of HTTP.
        content_type: of the body.
        body: all of it.
        headers: more of them.
        is_head: whether the request was HEAD, so that the body stays here.
    """
    general = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*general, *(headers or ())]})
    await send({"type": "http.response.body", "body": b"" if is_head else body})
