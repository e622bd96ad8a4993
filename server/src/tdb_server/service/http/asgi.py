"""What ASGI applications are made of, and an answer of one that is small."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Message = MutableMapping[str, Any]
"""A scope, or an event."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


async def answer(
    scope: Message, send: Send, status: int, content_type: bytes, body: bytes, headers: Headers = ()
) -> None:
    """Sends a whole answer; where the request was HEAD, without its body. `headers` are further ones."""
    general = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*general, *headers]})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
